use std::path::Path;

use host_plugin_abi::HostPreflight;

use crate::{Result, instance, sized};

/// Information about a run, available before its first step.
///
/// ```standalone_crate
/// # use host_plugin_sdk::*;
/// # struct Shelf;
/// impl CheckpointSink for Shelf {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self) }
/// #     fn publish(&mut self, _: &Checkpoint<'_>, _: &Cancel) -> Result<serde_json::Value> {
/// #         Ok(serde_json::json!({}))
/// #     }
///     // …
///     fn preflight(&mut self, preflight: &Preflight<'_>, _: &Cancel) -> Result<Option<String>> {
///         let used = std::fs::read_dir(preflight.state_dir())?.count() as u64;
///         let room = 1000 - used;
///         if preflight.checkpoint_bytes() > room {
///             return Err(Error::temporary("the shelf is full"));
///         }
///         // This sink stores only the model, not the data for a resume.
///         let count = room / preflight.model_bytes();
///         Ok(Some(format!("room for {count} models of {}", preflight.run())))
///     }
/// }
/// # export_plugin! { description: "Has little room", checkpoint_sink: Shelf }
/// # fn main() {
/// use host_plugin_sdk::fake;
///
/// let mut sink = fake::Plugin::load(&PLUGIN).checkpoint_sink("{}").expect("created");
/// let scratch = fake::Scratch::new();
/// // Arguments: the sink's own folder, and the size of a checkpoint. The model has a third of this size.
/// let found = sink.preflight(scratch.path(), 900).expect("ready");
/// assert_eq!(found.as_deref(), Some("room for 3 models of demo"));
/// assert!(sink.preflight(scratch.path(), 1200).unwrap_err().is_temporary());
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Preflight<'a> {
    run: &'a str,
    state_dir: &'a Path,
    checkpoint_bytes: u64,
    model_bytes: u64,
}

impl<'a> Preflight<'a> {
    /// Returns the run's name. The run's checkpoints contain the same name.
    pub fn run(&self) -> &'a str {
        self.run
    }

    /// Returns the absolute path of the sink's own folder. It is the same path as in the run's checkpoints.
    pub fn state_dir(&self) -> &'a Path {
        self.state_dir
    }

    /// Returns the approximate size of a checkpoint of the run, including the data that only a resume needs.
    pub fn checkpoint_bytes(&self) -> u64 {
        self.checkpoint_bytes
    }

    /// Returns the approximate total size of three parts of a checkpoint: model, configuration and tokenizer.
    pub fn model_bytes(&self) -> u64 {
        self.model_bytes
    }

    /// # Safety
    /// `preflight` is null, or points to data that is valid according to the ABI for `'a`.
    pub(crate) unsafe fn new(preflight: *const HostPreflight) -> Result<Self> {
        // SAFETY: guaranteed by the caller.
        let raw = unsafe { sized::read(preflight) }?;
        // SAFETY: as above.
        let text = |view, what| unsafe { instance::text(view, what) };
        Ok(Self {
            run: text(raw.run, "a run's name")?,
            state_dir: Path::new(text(raw.state_dir, "a folder")?),
            checkpoint_bytes: raw.checkpoint_bytes,
            model_bytes: raw.model_bytes,
        })
    }
}
