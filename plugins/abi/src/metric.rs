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
    /// The optimizer step of the evaluation.
    pub step: u64,
    /// The inputs that the manifest's `needs` lists, in any order.
    ///
    /// | name | shape and type | content |
    /// |---|---|---|
    /// | `loss_sum` | 0-d f64 | sum of the negative log likelihoods in nats |
    /// | `token_count` | 0-d i64 | number of predicted tokens |
    /// | `nll` | (batch, time) f32 | negative log likelihood of each predicted token, nats |
    /// | `labels` | (batch, time) i64 | the predicted tokens' ids |
    /// | `argmax` | (batch, time) i64 | the most likely token's id |
    /// | `label_rank` | (batch, time) i64 | the label's rank by likelihood, from 0; ties are ordered by id |
    /// | `byte_count` | 0-d i64 | number of UTF-8 bytes of the predicted tokens |
    /// | `logits` | (batch, time, vocabulary) f32 | all logits; large, so use them only as a last resort |
    pub tensors: *const HostTensor,
    /// Length of `tensors`.
    pub n_tensors: usize,
}

/// An evaluation metric. The host adds batches to the state of an instance, and merges the states
/// of all ranks.
///
/// Merging must be associative and commutative: exactly for integers, to 1e-12 for f64 sums.
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
    /// `[inst]` Resets the state to that of a new instance. Called before each evaluation.
    pub reset: Option<unsafe extern "C" fn(instance: *mut c_void) -> HostStatus>,
    /// `[inst]` Adds a batch to the state. The batch and its tensors are borrowed until this
    /// returns. Returns `HOST_UNSUPPORTED` for an input that the metric cannot read. If the call
    /// fails, the metric has no value in this evaluation.
    pub update:
        Option<unsafe extern "C" fn(instance: *mut c_void, batch: *const HostBatch) -> HostStatus>,
    /// `[inst]` Passes the state as bytes to `put_bytes`, which copies them. The bytes must contain
    /// the version of their format.
    pub export_state:
        Option<unsafe extern "C" fn(instance: *mut c_void, out: *const HostOut) -> HostStatus>,
    /// `[inst]` Merges a state that another instance exported into this state. The bytes are borrowed
    /// until this returns and can be unaligned. Returns an error for bytes that are not a valid state, and
    /// then leaves this state unchanged.
    pub merge_state:
        Option<unsafe extern "C" fn(instance: *mut c_void, state: HostStr) -> HostStatus>,
    /// `[inst]` Passes the named values of the state to `put_f64`. Does not change the state.
    /// Values can be infinite or NaN. Fails if there is no value, for example because no batch was
    /// added.
    pub compute:
        Option<unsafe extern "C" fn(instance: *mut c_void, out: *const HostOut) -> HostStatus>,
}
