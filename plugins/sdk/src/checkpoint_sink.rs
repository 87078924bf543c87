use std::ffi::c_void;
use std::mem::size_of;

use host_plugin_abi::{
    HostApi, HostCheckpoint, HostCheckpointSink, HostFetch, HostOut, HostPreflight, HostStatus,
    HostStr,
};
use serde::de::DeserializeOwned;

use crate::export::Package;
use crate::out::Out;
use crate::{Cancel, Checkpoint, Error, Fetch, Fetched, Host, Preflight, Result, instance};

/// Delivers checkpoints to a destination. The host manages the queue of checkpoints and the ledger, which
/// records the state of each delivery.
///
/// `publish` runs on the sink's own thread and may block.
///
/// ```standalone_crate
/// use host_plugin_sdk::{
///     Cancel, Checkpoint, CheckpointSink, Error, Host, Preflight, Result, export_plugin, fake,
/// };
///
/// #[derive(serde::Deserialize)]
/// struct Config {
///     list: std::path::PathBuf,
/// }
///
/// /// Records the path of the newest checkpoint.
/// struct Latest(Config);
///
/// impl CheckpointSink for Latest {
///     type Config = Config;
///
///     fn create(config: Config, _host: Host) -> Result<Self> {
///         Ok(Self(config))
///     }
///     fn publish(&mut self, checkpoint: &Checkpoint<'_>, _cancel: &Cancel) -> Result<serde_json::Value> {
///         let path = checkpoint.dir().display().to_string();
///         std::fs::write(&self.0.list, &path).map_err(|e| Error::io("write", &self.0.list, &e))?;
///         Ok(serde_json::json!({ "path": path }))
///     }
///     // Optional: reports a problem now instead of after hours of training.
///     fn preflight(&mut self, _: &Preflight<'_>, _: &Cancel) -> Result<Option<String>> {
///         match self.0.list.parent() {
///             Some(folder) if folder.is_dir() => Ok(None),
///             _ => Err(Error::new(format!("no such folder: {}", self.0.list.display()))),
///         }
///     }
/// }
///
/// # // A real plugin names a schema: config: "config.schema.json".
/// export_plugin! { description: "Notes the newest checkpoint", checkpoint_sink: Latest }
///
/// let scratch = fake::Scratch::new();
/// let checkpoint = fake::Checkpoint::write(&scratch.path().join("step-1"), 1, &[("a", b"1")]);
/// let config = serde_json::json!({ "list": scratch.path().join("latest") }).to_string();
/// let plugin = fake::Plugin::load(&PLUGIN);
/// let mut sink = plugin.checkpoint_sink(&config).expect("created");
/// assert!(sink.preflight(scratch.path(), 1 << 20).is_ok());
/// assert!(sink.publish(&checkpoint).expect("published")["path"].is_string());
/// // This sink has no `fetch`. See `Fetch` for an example of one.
/// assert!(sink.fetch("", scratch.path()).is_err());
/// ```
pub trait CheckpointSink: Sized + Send + 'static {
    /// The configuration, deserialized from JSON that the host has checked against the schema.
    type Config: DeserializeOwned;

    /// Creates a sink.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Delivers the checkpoint and returns a receipt: a JSON object that helps users find the checkpoint, for
    /// example with the key `commit` or `path`. Delivering a checkpoint again must change nothing. After the
    /// host requests cancellation through `cancel`, this method must soon return
    /// [`Error::cancelled`](crate::Error::cancelled).
    fn publish(
        &mut self,
        checkpoint: &Checkpoint<'_>,
        cancel: &Cancel,
    ) -> Result<serde_json::Value>;

    /// Checks that checkpoints can be delivered: that the destination exists, is writable and has enough
    /// space. The host calls this before the first step of a new or resumed run. Delivers nothing. Returns an
    /// optional short text for users. Returns [`Error::temporary`](crate::Error::temporary) if the
    /// destination is not ready yet, and another error if it never will be. The default accepts every
    /// destination.
    fn preflight(&mut self, preflight: &Preflight<'_>, cancel: &Cancel) -> Result<Option<String>> {
        let _ = (preflight, cancel);
        Ok(None)
    }

    /// Copies a checkpoint from the destination into a folder below [`state_dir`](Fetch::state_dir), with
    /// the layout of a delivered checkpoint. The folder must be complete when this method returns, and the
    /// sink must not remove it later. Fetching a checkpoint again must change nothing. The default returns an
    /// error.
    fn fetch(&mut self, fetch: &Fetch<'_>, cancel: &Cancel) -> Result<Fetched> {
        let _ = (fetch, cancel);
        Err(Error::unsupported("this sink cannot fetch checkpoints"))
    }
}

#[doc(hidden)]
pub const fn vtable<T: CheckpointSink, P: Package>() -> HostCheckpointSink {
    HostCheckpointSink {
        struct_size: size_of::<HostCheckpointSink>() as u32,
        flags: 0,
        create: Some(create::<T, P>),
        destroy: Some(instance::destroy::<T>),
        publish: Some(publish::<T>),
        cancel: Some(cancel::<T>),
        preflight: Some(preflight::<T>),
        fetch: Some(fetch::<T>),
    }
}

unsafe extern "C" fn create<T: CheckpointSink, P: Package>(
    api: *const HostApi,
    config_json: HostStr,
    instance: *mut *mut c_void,
) -> HostStatus {
    // SAFETY: the host guarantees what `instance::create` requires.
    unsafe { instance::create(P::ID, api, config_json, instance, T::create) }
}

unsafe extern "C" fn publish<T: CheckpointSink>(
    instance: *mut c_void,
    checkpoint: *const HostCheckpoint,
    out: *const HostOut,
) -> HostStatus {
    // SAFETY: the host passes an instance from `create` that is not destroyed. The checkpoint and `out` are
    // valid until this function returns.
    unsafe {
        instance::call(instance, |sink: &mut T, cancel| {
            cancel.clear();
            let out = Out::new(out)?;
            let receipt = sink.publish(&Checkpoint::new(checkpoint)?, cancel)?;
            out.put_bytes(receipt.to_string().as_bytes())
        })
    }
}

unsafe extern "C" fn preflight<T: CheckpointSink>(
    instance: *mut c_void,
    preflight: *const HostPreflight,
    out: *const HostOut,
) -> HostStatus {
    // SAFETY: as in `publish`, with `preflight` instead of the checkpoint.
    unsafe {
        instance::call(instance, |sink: &mut T, cancel| {
            cancel.clear();
            let out = Out::new(out)?;
            match sink.preflight(&Preflight::new(preflight)?, cancel)? {
                Some(found) => out.put_bytes(found.as_bytes()),
                None => Ok(()),
            }
        })
    }
}

unsafe extern "C" fn fetch<T: CheckpointSink>(
    instance: *mut c_void,
    fetch: *const HostFetch,
    out: *const HostOut,
) -> HostStatus {
    // SAFETY: as in `publish`, with `fetch` instead of the checkpoint.
    unsafe {
        instance::call(instance, |sink: &mut T, cancel| {
            cancel.clear();
            let out = Out::new(out)?;
            let fetched = sink.fetch(&Fetch::new(fetch)?, cancel)?;
            out.put_bytes(fetched.receipt()?.to_string().as_bytes())
        })
    }
}

unsafe extern "C" fn cancel<T: CheckpointSink>(instance: *mut c_void) {
    // SAFETY: the instance is valid, as in `publish`. `instance::cancel` may be called while another call
    // runs.
    unsafe { instance::cancel::<T>(instance) };
}
