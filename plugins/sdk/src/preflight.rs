use std::path::Path;

use host_plugin_abi::HostPreflight;

use crate::{Result, instance, sized};

/// What a sink may know of a run before its first step.
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
///         // This one leaves out what only a resume needs.
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
/// // The sink's own folder, and the bytes of a checkpoint, of which a third is the model.
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
    /// The run's name, as its checkpoints will have it.
    pub fn run(&self) -> &'a str {
        self.run
    }

    /// The sink's own folder, as its checkpoints will have it; absolute.
    pub fn state_dir(&self) -> &'a Path {
        self.state_dir
    }

    /// About how many bytes a checkpoint of the run takes, with all that a resume needs.
    pub fn checkpoint_bytes(&self) -> u64 {
        self.checkpoint_bytes
    }

    /// About how many of them are the model, its configuration and its tokenizer.
    pub fn model_bytes(&self) -> u64 {
        self.model_bytes
    }

    /// # Safety
    /// `preflight` is null, or what it points to is as the ABI promises and stays so for `'a`.
    pub(crate) unsafe fn new(preflight: *const HostPreflight) -> Result<Self> {
        // SAFETY: the caller's promise.
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
