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

/// Delivers checkpoints somewhere. The host owns the queue and the ledger; the sink reports.
///
/// `publish` runs on a thread of the sink's own and may block.
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
/// /// Writes down where the newest checkpoint is.
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
///     // Optional: found now, it is not found after the first hours of a training.
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
/// // `Fetch` has a sink that brings checkpoints back. This one does not.
/// assert!(sink.fetch("", scratch.path()).is_err());
/// ```
pub trait CheckpointSink: Sized + Send + 'static {
    /// The configuration, read from the JSON that the host has checked against the schema.
    type Config: DeserializeOwned;

    /// A sink.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Delivers the checkpoint, and returns a receipt: an object with what lets a person find it
    /// (`commit`, `path`). Delivering the same again changes nothing. When `cancel` asks, it ends
    /// soon with [`Error::cancelled`](crate::Error::cancelled).
    fn publish(
        &mut self,
        checkpoint: &Checkpoint<'_>,
        cancel: &Cancel,
    ) -> Result<serde_json::Value>;

    /// Looks, before the first step of a run or of its resume, whether checkpoints will arrive:
    /// whether the destination is there, may be written to and has room. It delivers nothing, and
    /// returns what it found as a short text for people, or nothing.
    /// [`Error::temporary`](crate::Error::temporary) says that the world is not ready, any other error
    /// that it never will be. A sink without one is taken to be ready.
    fn preflight(&mut self, preflight: &Preflight<'_>, cancel: &Cancel) -> Result<Option<String>> {
        let _ = (preflight, cancel);
        Ok(None)
    }

    /// Brings a checkpoint that the destination has into a folder below
    /// [`state_dir`](Fetch::state_dir), laid out as it was delivered. The folder is whole when this
    /// returns, and stays. Fetching the same again changes nothing. A sink without one brings nothing
    /// back.
    fn fetch(&mut self, fetch: &Fetch<'_>, cancel: &Cancel) -> Result<Fetched> {
        let _ = (fetch, cancel);
        Err(Error::unsupported("this sink brings no checkpoint back"))
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
    // SAFETY: the host's promise is the same as `instance::create` asks for.
    unsafe { instance::create(P::ID, api, config_json, instance, T::create) }
}

unsafe extern "C" fn publish<T: CheckpointSink>(
    instance: *mut c_void,
    checkpoint: *const HostCheckpoint,
    out: *const HostOut,
) -> HostStatus {
    // SAFETY: the host passes an instance that `create` made and that is not destroyed; the
    // checkpoint and `out` are borrowed until this returns.
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
    // SAFETY: as in `publish`, for what is looked at.
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
    // SAFETY: as in `publish`, for what is wanted.
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
    // SAFETY: as in `publish`, and this call may come while that one runs.
    unsafe { instance::cancel::<T>(instance) };
}
