//! Evaluation batches as structs of the ABI, in every layout that the ABI allows.

use std::ptr;

use fastrand::Rng;
use host_core::Need;
use host_plugin_abi::{
    DLDataType, DLDevice, DLTensor, HOST_TENSOR_READ_ONLY, HostBatch, HostStr, HostTensor,
};

use crate::child::cannot;
use crate::memory::Memory;
use crate::test::Stop;

const I64: DLDataType = dtype(0, 64);
const F32: DLDataType = dtype(2, 32);
const F64: DLDataType = dtype(2, 64);
/// Number of different tokens.
const VOCABULARY: i64 = 11;
/// Number of bytes before the data if `byte_offset` is not 0.
const OFFSET: usize = 64;

const fn dtype(code: u8, bits: u8) -> DLDataType {
    DLDataType {
        code,
        bits,
        lanes: 1,
    }
}

/// The measurements of an evaluation for some sequences, row by row.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    batch: usize,
    time: usize,
    nll: Vec<f32>,
    labels: Vec<i64>,
    argmax: Vec<i64>,
    rank: Vec<i64>,
    logits: Vec<f32>,
}

/// The layout of a batch.
#[derive(Clone, Debug, Default)]
pub(super) struct Form {
    /// Whether there are gaps between the elements.
    pub(super) is_strided: bool,
    /// Whether the data begins at a `byte_offset` above 0.
    pub(super) is_offset: bool,
    /// Whether every input is a scalar, regardless of its normal shape.
    pub(super) is_zero_dim: bool,
    /// Whether the batch imitates a newer host. Each `HostTensor` then ends with unknown fields, and the
    /// batch has an unknown input.
    pub(super) is_newer: bool,
    /// An input to omit.
    pub(super) missing: Option<Need>,
    /// An input to convert, and its new element type.
    pub(super) dtype: Option<(Need, DLDataType)>,
}

/// A batch and all data that it points to.
pub(super) struct Batch {
    raw: HostBatch,
    pub(super) memories: Vec<Memory>,
    _views: Vec<View>,
    _tensors: Vec<u64>,
}

/// A view of a tensor. Moving the view does not move the contents of the boxes.
struct View {
    dl: Box<DLTensor>,
    _shape: Box<[i64]>,
    _strides: Box<[i64]>,
}

/// A contiguous input.
struct Array {
    dtype: DLDataType,
    shape: Vec<i64>,
    bytes: Vec<u8>,
}

impl Tokens {
    pub(super) fn random(random: &mut Rng, batch: usize, time: usize) -> Self {
        let count = batch * time;
        let mut tokens = Self {
            batch,
            time,
            nll: (0..count).map(|_| random.f32() * 12.0).collect(),
            labels: (0..count).map(|_| random.i64(0..VOCABULARY)).collect(),
            argmax: Vec::new(),
            rank: Vec::new(),
            logits: (0..count * VOCABULARY as usize)
                .map(|_| random.f32() * 8.0 - 4.0)
                .collect(),
        };
        for label in &tokens.labels {
            let is_right = random.bool();
            tokens.rank.push(match is_right {
                true => 0,
                false => random.i64(1..VOCABULARY),
            });
            tokens.argmax.push(match is_right {
                true => *label,
                false => (label + 1) % VOCABULARY,
            });
        }
        tokens
    }

    /// Returns `count` random batches of various shapes.
    pub(super) fn several(random: &mut Rng, count: usize) -> Vec<Self> {
        (0..count)
            .map(|_| {
                // At least two tokens, for metrics that compare neighbors.
                let (batch, time) = (random.usize(1..5), random.usize(2..17));
                Self::random(random, batch, time)
            })
            .collect()
    }

    /// Replaces the first negative log likelihood and the first logit with this value.
    pub(super) fn with_first(mut self, nll: f32) -> Self {
        self.nll[0] = nll;
        self.logits[0] = nll;
        self
    }

    fn array(&self, need: Need) -> Array {
        let numbers = |values: &[i64]| values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        let reals = |values: &[f32]| values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        let (batch, time) = (self.batch as i64, self.time as i64);
        let table = vec![batch, time];
        let scalar = |value: i64| (I64, Vec::new(), numbers(&[value]));
        let (dtype, shape, bytes) = match need {
            Need::LossSum => {
                let sum: f64 = self.nll.iter().map(|&nll| f64::from(nll)).sum();
                (F64, Vec::new(), sum.to_ne_bytes().to_vec())
            }
            Need::TokenCount => scalar(batch * time),
            // Three bytes per token, and one more byte per sequence.
            Need::ByteCount => scalar(batch * time * 3 + batch),
            Need::Nll => (F32, table, reals(&self.nll)),
            Need::Labels => (I64, table, numbers(&self.labels)),
            Need::Argmax => (I64, table, numbers(&self.argmax)),
            Need::LabelRank => (I64, table, numbers(&self.rank)),
            Need::Logits => (F32, vec![batch, time, VOCABULARY], reals(&self.logits)),
        };
        Array {
            dtype,
            shape,
            bytes,
        }
    }

    /// Returns these measurements as a batch with the given inputs.
    pub(super) fn batch(&self, needs: &[Need], form: &Form) -> Result<Batch, Stop> {
        let mut views = Vec::new();
        let mut memories = Vec::new();
        let mut names = Vec::new();
        if form.is_newer {
            let (view, memory) = self.array(Need::Labels).lay_out(&Form::default())?;
            names.push("of_a_newer_host");
            views.push(view);
            memories.push(memory);
        }
        for &need in needs.iter().filter(|&&need| form.missing != Some(need)) {
            let mut array = self.array(need);
            match form.dtype {
                Some((odd, dtype)) if odd == need => array.dtype = dtype,
                _ => {}
            }
            let (view, memory) = array.lay_out(form)?;
            names.push(need.name());
            views.push(view);
            memories.push(memory);
        }
        let words = size_of::<HostTensor>() / 8 + if form.is_newer { 3 } else { 0 };
        // With `is_newer`, each tensor ends with fields unknown to the plugin. They keep this fill value.
        let mut tensors = vec![u64::MAX; words * views.len()];
        for (n, (name, view)) in names.iter().zip(&views).enumerate() {
            let tensor = HostTensor {
                struct_size: u32::try_from(words * 8).unwrap_or(u32::MAX),
                flags: HOST_TENSOR_READ_ONLY,
                name: HostStr::new(name),
                dl: &raw const *view.dl,
                stream: ptr::null_mut(),
            };
            // SAFETY: the pointer is within the vector and aligned to 8.
            unsafe {
                tensors
                    .as_mut_ptr()
                    .add(n * words)
                    .cast::<HostTensor>()
                    .write(tensor);
            }
        }
        Ok(Batch {
            raw: HostBatch {
                struct_size: size_of::<HostBatch>() as u32,
                flags: 0,
                step: 1,
                tensors: tensors.as_ptr().cast(),
                n_tensors: views.len(),
            },
            memories,
            _views: views,
            _tensors: tensors,
        })
    }
}

impl Batch {
    pub(super) fn raw(&self) -> &HostBatch {
        &self.raw
    }
}

impl Array {
    fn lay_out(mut self, form: &Form) -> Result<(View, Memory), Stop> {
        let item = usize::from(self.dtype.bits) / 8;
        let count = self.shape.iter().product::<i64>() as usize;
        let unit = self.bytes.len().checked_div(count).unwrap_or(item);
        if form.is_zero_dim {
            self.shape.clear();
            self.bytes.truncate(unit);
            // If the array is empty, `truncate` leaves no element, so a zero is added.
            self.bytes.resize(unit, 0);
        }
        // Row-major order, with gaps if requested.
        let gap = i64::from(form.is_strided);
        let mut strides = vec![0; self.shape.len()];
        let mut stride = 1 + gap;
        for (at, size) in self.shape.iter().enumerate().rev() {
            strides[at] = stride;
            stride = stride * size.max(&1) + gap;
        }
        let mut bytes = match form.is_strided && !self.shape.is_empty() {
            true => spread(&self.bytes, &self.shape, &strides, unit),
            false => self.bytes,
        };
        if form.is_offset {
            bytes.splice(0..0, std::iter::repeat_n(0x55, OFFSET));
        }
        // Elements of the type in `form.dtype` may be larger than the original elements.
        let larger = item.saturating_sub(unit) * (bytes.len() / unit.max(1));
        bytes.resize(bytes.len() + larger, 0);
        let is_empty = self.shape.contains(&0);
        let memory = Memory::holding(&bytes).map_err(|error| cannot("map memory", &error))?;
        let (mut shape, mut strides) = (self.shape.into_boxed_slice(), strides.into_boxed_slice());
        let sizes = |sizes: &mut Box<[i64]>| match sizes.is_empty() {
            true => ptr::null_mut(),
            false => sizes.as_mut_ptr(),
        };
        let dl = Box::new(DLTensor {
            data: match is_empty {
                true => ptr::null_mut(),
                false => memory.address().cast(),
            },
            device: DLDevice {
                device_type: 1,
                device_id: 0,
            },
            ndim: i32::try_from(shape.len()).unwrap_or(i32::MAX),
            dtype: self.dtype,
            shape: sizes(&mut shape),
            strides: sizes(&mut strides),
            byte_offset: match form.is_offset {
                true => OFFSET as u64,
                false => 0,
            },
        });
        let view = View {
            dl,
            _shape: shape,
            _strides: strides,
        };
        Ok((view, memory))
    }
}

/// Inserts gaps between elements, filled with implausible values.
fn spread(bytes: &[u8], shape: &[i64], strides: &[i64], unit: usize) -> Vec<u8> {
    let place = |index: &[i64]| -> usize {
        let at: i64 = index.iter().zip(strides).map(|(i, s)| i * s).sum();
        at as usize * unit
    };
    if shape.contains(&0) {
        return Vec::new();
    }
    let last: Vec<i64> = shape.iter().map(|size| size - 1).collect();
    let mut apart = vec![0x55; place(&last) + unit];
    let mut index = vec![0; shape.len()];
    for element in bytes.chunks_exact(unit) {
        let at = place(&index);
        apart[at..at + unit].copy_from_slice(element);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_at_the_positions_of_their_strides() {
        let bytes: Vec<u8> = (1..=6).collect();
        assert_eq!(
            spread(&bytes, &[2, 3], &[7, 2], 1),
            [1, 0x55, 2, 0x55, 3, 0x55, 0x55, 4, 0x55, 5, 0x55, 6]
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let of = |seed| Tokens::random(&mut Rng::with_seed(seed), 2, 3).nll;
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }
}
