use std::borrow::Cow;

use host_core::{Device, Dtype, Metric, MetricBatch, Need, Result, TensorView};

use super::protocol::{Call, Reply, TensorHead};
use super::remote::Remote;
use crate::metric::{host_fault, input};

/// A metric in a child process.
#[derive(Debug)]
pub(crate) struct RemoteMetric {
    remote: Remote,
    needs: Vec<Need>,
    /// Whether the accumulated state is lost because the child died. A reset clears this.
    is_state_lost: bool,
    /// Copies of tensors whose elements are not contiguous.
    copies: Vec<Vec<u8>>,
}

impl RemoteMetric {
    pub(crate) fn new(remote: Remote, needs: Vec<Need>) -> Self {
        Self {
            copies: vec![Vec::new(); needs.len()],
            remote,
            needs,
            is_state_lost: false,
        }
    }

    fn call(&mut self, call: &Call<'_>, parts: &[&[u8]]) -> Result<Reply> {
        if self.is_state_lost {
            let reason = "its process was restarted and lost its state; calls fail until the next evaluation";
            return Err(self.remote.refusal(call.name(), reason));
        }
        let reply = self.remote.ask(call, parts);
        self.is_state_lost = self.remote.is_dead();
        reply
    }

    fn act(&mut self, call: &Call<'_>, parts: &[&[u8]]) -> Result<()> {
        match self.call(call, parts)? {
            Reply::Done => Ok(()),
            _ => Err(self.wrong_reply(call)),
        }
    }

    /// Sends a batch. `copies` has one buffer per input. An input whose elements are not contiguous is copied
    /// to its buffer.
    fn send(&mut self, batch: &MetricBatch<'_>, copies: &mut [Vec<u8>]) -> Result<()> {
        let mut tensors = Vec::with_capacity(self.needs.len());
        let mut parts = Vec::with_capacity(self.needs.len());
        for (&need, copy) in self.needs.iter().zip(copies) {
            let view = input(batch, need)?;
            if view.device != Device::Cpu {
                return Err(host_fault(
                    need,
                    "is on a device that the metric cannot read",
                ));
            }
            tensors.push(TensorHead {
                need,
                dtype: view.dtype,
                shape: Cow::Borrowed(view.shape),
            });
            parts.push(elements(view, copy));
        }
        let step = batch.step;
        self.act(&Call::Update { step, tensors }, &parts)
    }

    fn wrong_reply(&mut self, call: &Call<'_>) -> host_core::Error {
        self.is_state_lost = true;
        self.remote.wrong_reply(call.name())
    }
}

impl Metric for RemoteMetric {
    fn id(&self) -> &str {
        self.remote.id()
    }

    fn needs(&self) -> &[Need] {
        &self.needs
    }

    /// The message to the child process contains the elements themselves, not a device address.
    fn reads_cuda(&self) -> bool {
        false
    }

    fn reset(&mut self) -> Result<()> {
        // If the child was restarted, its new instance is in the same state as a reset one.
        self.is_state_lost = false;
        self.act(&Call::Reset, &[])
    }

    fn update(&mut self, batch: MetricBatch<'_>) -> Result<()> {
        // The copies are moved out of `self`, because `send` borrows both. They are moved back even after an
        // error.
        let mut copies = std::mem::take(&mut self.copies);
        let outcome = self.send(&batch, &mut copies);
        self.copies = copies;
        outcome
    }

    fn export_state(&mut self) -> Result<Vec<u8>> {
        match self.call(&Call::ExportState, &[])? {
            Reply::State => Ok(self.remote.behind().to_vec()),
            _ => Err(self.wrong_reply(&Call::ExportState)),
        }
    }

    fn merge_state(&mut self, state: &[u8]) -> Result<()> {
        self.act(&Call::MergeState, &[state])
    }

    fn compute(&mut self) -> Result<Vec<(String, f64)>> {
        match self.call(&Call::Compute, &[])? {
            Reply::Values(values) => Ok(values),
            _ => Err(self.wrong_reply(&Call::Compute)),
        }
    }

    fn lost(&self) -> Option<String> {
        self.remote.lost()
    }
}

/// Returns the size of an element in bytes.
pub(super) fn size_of_element(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bf16 => 2,
        Dtype::F32 => 4,
        Dtype::F64 | Dtype::I64 => 8,
    }
}

/// Returns the strides of a contiguous tensor.
pub(super) fn contiguous_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        strides[at - 1] = strides[at] * shape[at].max(1);
    }
    strides
}

/// Returns a tensor's elements as contiguous bytes: directly if they are already contiguous, otherwise copied
/// to `copy`.
fn elements<'a>(view: &TensorView<'a>, copy: &'a mut Vec<u8>) -> &'a [u8] {
    let size = size_of_element(view.dtype);
    let count: i64 = view.shape.iter().product();
    let bytes = usize::try_from(count).unwrap_or(0) * size;
    if bytes == 0 {
        return &[];
    }
    let first = view.data.cast::<u8>();
    let is_contiguous = std::iter::zip(view.shape, view.strides)
        .zip(contiguous_strides(view.shape))
        .all(|((&length, &stride), in_order)| length == 1 || stride == in_order);
    if is_contiguous {
        // SAFETY: `TensorView` guarantees that the elements are readable and do not change during `'a`. They
        // are contiguous.
        return unsafe { std::slice::from_raw_parts(first, bytes) };
    }
    copy.clear();
    copy.reserve(bytes);
    let mut index = vec![0i64; view.shape.len()];
    for _ in 0..count {
        let offset: i64 = std::iter::zip(&index, view.strides)
            .map(|(index, stride)| index * stride)
            .sum();
        let offset = isize::try_from(offset).expect("an offset in memory") * size as isize;
        // SAFETY: the index is within the shape, so `TensorView` guarantees that the element is readable.
        let element = unsafe { std::slice::from_raw_parts(first.offset(offset), size) };
        copy.extend_from_slice(element);
        for (index, length) in index.iter_mut().zip(view.shape).rev() {
            *index += 1;
            if *index < *length {
                break;
            }
            *index = 0;
        }
    }
    copy
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;

    fn view<'a>(data: &'a [f32], shape: &'a [i64], strides: &'a [i64]) -> TensorView<'a> {
        TensorView {
            data: data.as_ptr().cast(),
            shape,
            strides,
            dtype: Dtype::F32,
            device: Device::Cpu,
            owner: PhantomData,
        }
    }

    fn read(bytes: &[u8]) -> Vec<f32> {
        let (elements, rest) = bytes.as_chunks::<4>();
        assert_eq!(rest, [0u8; 0]);
        elements
            .iter()
            .map(|four| f32::from_le_bytes(*four))
            .collect()
    }

    #[test]
    fn elements_are_in_order_for_all_strides() {
        let data = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        for (shape, strides, wanted) in [
            (&[2i64, 3][..], &[3i64, 1][..], &data[..]),
            (&[3, 2], &[1, 3], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
            (&[2, 2], &[3, 2], &[0.0, 2.0, 3.0, 5.0]),
            (&[2, 3], &[0, 1], &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]),
            (&[1, 3], &[77, 1], &[0.0, 1.0, 2.0]),
            (&[], &[], &[0.0]),
            (&[0, 3], &[3, 1], &[]),
        ] {
            let mut copy = Vec::new();
            assert_eq!(
                read(elements(&view(&data, shape, strides), &mut copy)),
                wanted,
                "{shape:?} {strides:?}"
            );
        }
    }

    #[test]
    fn contiguous_elements_are_not_copied() {
        let data = [1.0, 2.0];
        let mut copy = Vec::new();
        let bytes = elements(&view(&data, &[2, 1], &[1, 9]), &mut copy);
        assert_eq!(bytes.as_ptr(), data.as_ptr().cast());
    }

    #[test]
    fn strides_of_a_contiguous_tensor() {
        assert_eq!(contiguous_strides(&[2, 3, 4]), [12, 4, 1]);
        assert_eq!(contiguous_strides(&[]), [0i64; 0]);
        assert_eq!(contiguous_strides(&[5, 0, 2]), [2, 2, 1]);
    }
}
