use std::ffi::c_void;
use std::path::Path;
use std::thread;

use host_plugin_abi::{HostCheckpointSink, HostFetch, HostPreflight, HostStr};

use super::metric::Results;
use super::plugin::Instance;
use super::{Checkpoint, Failure};

/// A sink of the plugin, called through its vtable.
///
/// ```standalone_crate
/// # use host_plugin_sdk::*;
/// # use std::sync::atomic::{AtomicBool, Ordering};
/// # static BEGAN: AtomicBool = AtomicBool::new(false);
/// # struct Slow;
/// # impl CheckpointSink for Slow {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self) }
/// #     fn publish(&mut self, checkpoint: &Checkpoint<'_>, cancel: &Cancel) -> Result<serde_json::Value> {
/// #         while checkpoint.step() == 2 {
/// #             BEGAN.store(true, Ordering::Release);
/// #             cancel.check()?;
/// #             std::thread::yield_now();
/// #         }
/// #         Ok(serde_json::json!({ "path": checkpoint.dir() }))
/// #     }
/// # }
/// # export_plugin! { description: "Never ends with step 2", checkpoint_sink: Slow }
/// use host_plugin_sdk::fake;
///
/// let scratch = fake::Scratch::new();
/// let checkpoint = |step: u64| {
///     fake::Checkpoint::write(&scratch.path().join(format!("step-{step}")), step, &[("a", b"1")])
/// };
/// let mut sink = fake::Plugin::load(&PLUGIN).checkpoint_sink("{}")?;
/// let first = checkpoint(1);
/// assert_eq!(sink.preflight(first.state_dir(), 3000)?, None); // this sink checks nothing
/// assert_eq!(sink.publish(&first)?["path"], first.dir().display().to_string());
/// assert!(sink.fetch("", first.state_dir()).is_err()); // this sink has no `fetch`
/// // `publish` of step 2 ends only after `cancel`. An earlier `cancel` has no effect, so wait for the start
/// // of `publish`.
/// let ended = sink.publish_with(&checkpoint(2), |canceller| {
///     while !BEGAN.load(Ordering::Acquire) {
///         std::thread::yield_now();
///     }
///     canceller.cancel();
/// });
/// assert!(ended.unwrap_err().is_cancelled());
/// let (vtable, _instance) = sink.raw();
/// assert!(vtable.publish.is_some());
/// # Ok::<_, fake::Failure>(())
/// ```
#[derive(Debug)]
pub struct CheckpointSink {
    vtable: &'static HostCheckpointSink,
    instance: Instance,
}

/// Cancels a sink's running `publish` from another thread.
///
/// ```
/// use host_plugin_sdk::fake::{Canceller, Checkpoint, CheckpointSink, Failure};
///
/// /// Publishes a checkpoint and cancels immediately from another thread, as the real host does.
/// fn cancelled(sink: &mut CheckpointSink, checkpoint: &Checkpoint) -> Result<(), Failure> {
///     sink.publish_with(checkpoint, |canceller: &Canceller| canceller.cancel()).map(|_| ())
/// }
/// ```
#[derive(Debug)]
pub struct Canceller {
    sink: &'static HostCheckpointSink,
    pointer: *mut c_void,
}

// SAFETY: `cancel` is `[any]`, so any thread may call it. The canceller is only lent out while its sink is
// alive.
unsafe impl Send for Canceller {}
// SAFETY: as above.
unsafe impl Sync for Canceller {}

impl CheckpointSink {
    pub(crate) fn new(vtable: &'static HostCheckpointSink, instance: Instance) -> Self {
        Self { vtable, instance }
    }

    /// Delivers the checkpoint and returns the receipt.
    ///
    /// # Panics
    /// Panics if the receipt is missing or is not JSON.
    pub fn publish(&mut self, checkpoint: &Checkpoint) -> Result<serde_json::Value, Failure> {
        self.publish_with(checkpoint, |_| {})
    }

    /// Delivers the checkpoint while `beside` runs on another thread. Returns the receipt.
    ///
    /// # Panics
    /// Panics if the receipt is missing or is not JSON.
    pub fn publish_with(
        &mut self,
        checkpoint: &Checkpoint,
        beside: impl FnOnce(&Canceller) + Send,
    ) -> Result<serde_json::Value, Failure> {
        let canceller = Canceller {
            sink: self.vtable,
            pointer: self.instance.pointer,
        };
        let mut result = Results::default();
        let publish = self.vtable.publish.expect("publish");
        let status = thread::scope(|scope| {
            thread::Builder::new()
                .name("beside-publish".to_owned())
                .spawn_scoped(scope, || beside(&canceller))
                .expect("a thread");
            // SAFETY: the instance is live. The checkpoint and the result outlive the call.
            checkpoint.view(|checkpoint| unsafe {
                publish(self.instance.pointer, checkpoint, &result.out())
            })
        });
        self.instance.host.ended(status)?;
        let receipt = result.bytes.expect("publish did not pass a receipt");
        Ok(serde_json::from_slice(&receipt).expect("the receipt is JSON"))
    }

    /// Calls `preflight` for the run `demo` and returns the sink's text. The model's size is a third of
    /// `checkpoint_bytes`.
    ///
    /// # Panics
    /// Panics if the folder's path or the text is not UTF-8.
    pub fn preflight(
        &mut self,
        state_dir: &Path,
        checkpoint_bytes: u64,
    ) -> Result<Option<String>, Failure> {
        let Some(preflight) = self.vtable.preflight else {
            return Ok(None);
        };
        let view = HostPreflight {
            struct_size: size_of::<HostPreflight>() as u32,
            flags: 0,
            run: HostStr::new("demo"),
            state_dir: HostStr::new(state_dir.to_str().expect("UTF-8")),
            checkpoint_bytes,
            model_bytes: checkpoint_bytes / 3,
        };
        let mut result = Results::default();
        // SAFETY: the instance is live. The view and the result outlive the call.
        let status = unsafe { preflight(self.instance.pointer, &raw const view, &result.out()) };
        self.instance.host.ended(status)?;
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ok(result.bytes.map(text))
    }

    /// Fetches a checkpoint, including the data that only a resume needs. Returns the receipt. An empty
    /// `revision` means the newest checkpoint.
    ///
    /// # Panics
    /// Panics if the sink has no `fetch`, or if the receipt is missing or is not JSON.
    pub fn fetch(
        &mut self,
        revision: &str,
        state_dir: &Path,
    ) -> Result<serde_json::Value, Failure> {
        let view = HostFetch {
            struct_size: size_of::<HostFetch>() as u32,
            flags: host_plugin_abi::HOST_FETCH_FOR_RESUME,
            revision: HostStr::new(revision),
            state_dir: HostStr::new(state_dir.to_str().expect("UTF-8")),
        };
        let fetch = self.vtable.fetch.expect("fetch");
        let mut result = Results::default();
        // SAFETY: the instance is live. The view and the result outlive the call.
        let status = unsafe { fetch(self.instance.pointer, &raw const view, &result.out()) };
        self.instance.host.ended(status)?;
        let receipt = result.bytes.expect("fetch did not pass a receipt");
        Ok(serde_json::from_slice(&receipt).expect("the receipt is JSON"))
    }

    /// Returns the C interface, for tests that violate its rules.
    pub fn raw(&self) -> (&'static HostCheckpointSink, *mut c_void) {
        (self.vtable, self.instance.pointer)
    }
}

impl Canceller {
    /// Asks the running `publish` to end soon. Has no effect on a call that has not started yet.
    pub fn cancel(&self) {
        // SAFETY: the sink is alive, because the canceller is only lent out while the sink publishes.
        unsafe { self.sink.cancel.expect("cancel")(self.pointer) };
    }
}
