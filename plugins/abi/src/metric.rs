use core::ffi::c_void;

use crate::{HostCreate, HostDestroy, HostOut, HostStatus, HostStr, HostTensor};

/// The inputs of one evaluation batch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostBatch {
    /// Size of this struct in the host's build.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// The optimizer step at which the evaluation takes place.
    pub step: u64,
    /// What the manifest's `needs` asked for, in any order.
    ///
    /// | name | shape and type | what |
    /// |---|---|---|
    /// | `loss_sum` | 0-d f64 | sum of the negative log likelihoods in nats |
    /// | `token_count` | 0-d i64 | number of predicted tokens |
    /// | `nll` | (batch, time) f32 | negative log likelihood of each predicted token, nats |
    /// | `labels` | (batch, time) i64 | the predicted tokens' ids |
    /// | `argmax` | (batch, time) i64 | the most likely token |
    /// | `label_rank` | (batch, time) i64 | the label's place from 0, the likeliest first, of equal ones the lower id |
    /// | `byte_count` | 0-d i64 | UTF-8 bytes of the predicted tokens |
    /// | `logits` | (batch, time, vocabulary) f32 | all of them; large, so the last resort |
    pub tensors: *const HostTensor,
    /// Length of `tensors`.
    pub n_tensors: usize,
}

/// An evaluation metric: a state that batches are added to and that merges across ranks.
///
/// Merging is associative and commutative: integers exactly, f64 sums to 1e-12.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostMetric {
    /// Size of this struct in the plugin's build.
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// See [`HostCreate`].
    pub create: Option<HostCreate>,
    /// See [`HostDestroy`].
    pub destroy: Option<HostDestroy>,
    /// `[inst]` Makes the state that of a new instance. It comes before each evaluation.
    pub reset: Option<unsafe extern "C" fn(instance: *mut c_void) -> HostStatus>,
    /// `[inst]` Adds a batch to the state. The batch and its tensors are the host's and are borrowed
    /// until this returns. Of an input that it cannot read it says `HOST_UNSUPPORTED`. After a failure
    /// the metric has no value in this evaluation.
    pub update:
        Option<unsafe extern "C" fn(instance: *mut c_void, batch: *const HostBatch) -> HostStatus>,
    /// `[inst]` Puts the state as bytes by `put_bytes`, which copies. They say their own version.
    pub export_state:
        Option<unsafe extern "C" fn(instance: *mut c_void, out: *const HostOut) -> HostStatus>,
    /// `[inst]` Adds to the state one that another instance exported. The bytes are borrowed until this
    /// returns, and need not be aligned. Those that are no state are an error and leave this one's as
    /// it is.
    pub merge_state:
        Option<unsafe extern "C" fn(instance: *mut c_void, state: HostStr) -> HostStatus>,
    /// `[inst]` Puts the named values of the state by `put_f64`, and leaves the state as it is. Infinity
    /// and NaN are values; where there is none, as of no batch, it fails.
    pub compute:
        Option<unsafe extern "C" fn(instance: *mut c_void, out: *const HostOut) -> HostStatus>,
}
