use std::ffi::c_void;
use std::fmt;
use std::path::{Component, Path};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use host_core::{
    CheckpointSink, Fetch, Fetched, MetricValue, Preflight, Publish, Receipt, Result, SinkError,
};
use host_plugin_abi::{
    HOST_CANCELLED, HOST_FETCH_FOR_RESUME, HOST_PANIC, HOST_TEMPORARY, HostCheckpoint,
    HostCheckpointSink, HostCreate, HostDestroy, HostFetch, HostOut, HostPreflight, HostStatus,
    HostStr,
};
use serde_json::{Map, Value};

use crate::PluginKind;
use crate::guard::{self, Look, name_of};
use crate::instance::{Failure, Instance};
use crate::out::Output;
use crate::vtable::required;

/// Maximum size of a receipt in bytes. It is limited because a receipt becomes part of an event.
const LONGEST_RECEIPT: usize = 64 << 10;

/// Maximum size in bytes of the text that a preflight may return.
const LONGEST_FINDING: usize = 4 << 10;

/// A plugin's function table for a sink. All required functions are present.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the ABI documents the fields of its table")]
pub struct CheckpointSinkFunctions {
    pub create: HostCreate,
    pub destroy: HostDestroy,
    pub publish:
        unsafe extern "C" fn(*mut c_void, *const HostCheckpoint, *const HostOut) -> HostStatus,
    pub cancel: unsafe extern "C" fn(*mut c_void),
    /// Absent in plugins of ABI 1.0 and in plugins without a preflight.
    pub preflight: Option<PreflightFunction>,
    /// Absent in plugins of ABI 1.1 and earlier, and in plugins that cannot fetch.
    pub fetch: Option<FetchFunction>,
}

pub(crate) type PreflightFunction =
    unsafe extern "C" fn(*mut c_void, *const HostPreflight, *const HostOut) -> HostStatus;

pub(crate) type FetchFunction =
    unsafe extern "C" fn(*mut c_void, *const HostFetch, *const HostOut) -> HostStatus;

impl CheckpointSinkFunctions {
    pub(crate) fn from_table(table: HostCheckpointSink) -> Result<Self, String> {
        let kind = PluginKind::CheckpointSink;
        Ok(Self {
            create: required(kind, "create", table.create)?,
            destroy: required(kind, "destroy", table.destroy)?,
            publish: required(kind, "publish", table.publish)?,
            cancel: required(kind, "cancel", table.cancel)?,
            preflight: table.preflight,
            fetch: table.fetch,
        })
    }
}

/// Adapts a plugin's sink to the host's `CheckpointSink` trait.
pub(crate) struct PluginCheckpointSink {
    /// The instance is destroyed only after this struct's `drop` has removed it from `living`.
    instance: Instance,
    functions: CheckpointSinkFunctions,
    living: Arc<Living>,
    /// Whether a cancellation was requested. It applies to the running call. If no call is running, it
    /// applies to the next call.
    is_cancelled: Arc<AtomicBool>,
}

/// The instance, for functions that cancel a call. It is `None` after the instance was destroyed or poisoned.
/// The lock is held while the plugin's `cancel` runs, so that the instance cannot be destroyed during that
/// call.
struct Living(Mutex<Option<NonNull<c_void>>>);

// SAFETY: the pointer is only passed to `cancel`, which is `[any]`.
unsafe impl Send for Living {}
// SAFETY: as above.
unsafe impl Sync for Living {}

impl Living {
    fn close(&self) {
        self.put(None);
    }

    fn put(&self, instance: Option<NonNull<c_void>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = instance;
    }
}

impl PluginCheckpointSink {
    pub(crate) fn new(instance: Instance, functions: CheckpointSinkFunctions) -> Self {
        let living = Arc::new(Living(Mutex::new(Some(instance.pointer()))));
        Self {
            instance,
            functions,
            living,
            is_cancelled: Arc::default(),
        }
    }
}

impl PluginCheckpointSink {
    /// Calls the plugin once. If the instance panicked in an earlier call, a new instance first replaces it.
    /// No state is lost, because a sink's state is in its folder.
    fn call<T>(
        &mut self,
        call: &'static str,
        body: impl FnOnce(*mut c_void, &HostOut) -> HostStatus,
        take: impl FnOnce(Output) -> Result<T, String>,
    ) -> Result<T, SinkError> {
        if self.instance.panicked().is_some() {
            self.instance
                .renew()
                .map_err(|error| SinkError::Temporary(error.to_string()))?;
        }
        if self.instance.panicked().is_none() {
            self.living.put(Some(self.instance.pointer()));
        }
        let body = |instance, output: &mut Output| body(instance, &output.callbacks());
        let outcome = self.instance.call(call, Output::default(), body, take);
        if self.instance.panicked().is_some() {
            self.living.close();
        }
        // A cancellation that arrived just before the call also applies to this call.
        let was_cancelled = self.is_cancelled.swap(false, Ordering::SeqCst);
        outcome.map_err(|Failure { status, reason }| match status {
            // A panic does not mean that the checkpoint cannot be delivered: a new instance may deliver it.
            HOST_TEMPORARY | HOST_PANIC => SinkError::Temporary(reason),
            HOST_CANCELLED if was_cancelled => SinkError::Cancelled,
            HOST_CANCELLED => SinkError::Temporary(format!(
                "it reported a cancellation that was not requested: {reason}"
            )),
            _ => SinkError::Permanent(reason),
        })
    }
}

impl fmt::Debug for PluginCheckpointSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginCheckpointSink")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl CheckpointSink for PluginCheckpointSink {
    fn id(&self) -> &str {
        self.instance.id()
    }

    fn publish(&mut self, publish: Publish<'_>) -> Result<Receipt, SinkError> {
        let dir = absolute(&publish.checkpoint.path)?;
        let state_dir = absolute(publish.state_dir)?;
        let manifest = serde_json::to_string(&publish.checkpoint.manifest).map_err(|error| {
            SinkError::Permanent(format!("cannot encode the manifest as JSON: {error}"))
        })?;
        let metrics = metrics_json(&publish.checkpoint.metrics);
        let checkpoint = HostCheckpoint {
            struct_size: size_of::<HostCheckpoint>() as u32,
            flags: 0,
            step: publish.checkpoint.step.0,
            run: HostStr::new(publish.run.as_str()),
            dir: HostStr::new(&dir),
            manifest_json: HostStr::new(&manifest),
            metrics_json: HostStr::new(&metrics),
            state_dir: HostStr::new(&state_dir),
        };
        let function = self.functions.publish;
        let publish = |instance, out: &HostOut| {
            // SAFETY: the library created the instance. The checkpoint, its texts and the callbacks' context
            // outlive the call.
            unsafe { function(instance, &raw const checkpoint, out) }
        };
        self.call("publish", publish, |output| {
            output.into_bytes().and_then(receipt)
        })
    }

    fn preflight(&mut self, preflight: Preflight<'_>) -> Result<Option<String>, SinkError> {
        let Some(function) = self.functions.preflight else {
            return Ok(None);
        };
        let state_dir = absolute(preflight.state_dir)?;
        let view = HostPreflight {
            struct_size: size_of::<HostPreflight>() as u32,
            flags: 0,
            run: HostStr::new(preflight.run.as_str()),
            state_dir: HostStr::new(&state_dir),
            checkpoint_bytes: preflight.checkpoint_bytes,
            model_bytes: preflight.model_bytes,
        };
        let look = |instance, out: &HostOut| {
            // SAFETY: the library created the instance. The view, its texts and the callbacks' context
            // outlive the call.
            unsafe { function(instance, &raw const view, out) }
        };
        self.call("preflight", look, |output| {
            output.into_any_bytes().and_then(finding)
        })
    }

    fn fetch(&mut self, fetch: Fetch<'_>) -> Result<Fetched, SinkError> {
        let Some(function) = self.functions.fetch else {
            let message = format!("{} cannot fetch checkpoints", self.id());
            return Err(SinkError::Permanent(message));
        };
        let state_dir = absolute(fetch.state_dir)?;
        let view = HostFetch {
            struct_size: size_of::<HostFetch>() as u32,
            flags: match fetch.for_resume {
                true => HOST_FETCH_FOR_RESUME,
                false => 0,
            },
            revision: HostStr::new(fetch.revision.unwrap_or_default()),
            state_dir: HostStr::new(&state_dir),
        };
        let bring = |instance, out: &HostOut| {
            // SAFETY: the library created the instance. The view, its texts and the callbacks' context
            // outlive the call.
            unsafe { function(instance, &raw const view, out) }
        };
        let receipt = self.call("fetch", bring, |output| {
            output.into_bytes().and_then(receipt)
        })?;
        fetched(&receipt, Path::new(&state_dir)).map_err(SinkError::Permanent)
    }

    fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
        let living = Arc::clone(&self.living);
        let is_cancelled = Arc::clone(&self.is_cancelled);
        let (cancel, plugin) = (self.functions.cancel, name_of(self.id()));
        Box::new(move || {
            is_cancelled.store(true, Ordering::SeqCst);
            let instance = living.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(instance) = *instance {
                guard::enter(plugin, "cancel", Look::Quick, || {
                    // SAFETY: the instance is not destroyed while the lock is held, and `cancel` is
                    // `[any]`.
                    unsafe { cancel(instance.as_ptr()) };
                });
            }
        })
    }

    fn lost(&self) -> Option<String> {
        self.instance.lost()
    }
}

impl Drop for PluginCheckpointSink {
    fn drop(&mut self) {
        self.living.close();
    }
}

pub(crate) fn absolute(path: &Path) -> Result<String, SinkError> {
    std::path::absolute(path)
        .map_err(|error| SinkError::Permanent(format!("{error}: {}", path.display())))?
        .into_os_string()
        .into_string()
        .map_err(|path| {
            SinkError::Permanent(format!(
                "the path is not UTF-8: {}",
                Path::new(&path).display()
            ))
        })
}

/// Encodes the metrics as a JSON object. JSON has no infinity and no NaN, so these values become strings.
fn metrics_json(metrics: &[MetricValue]) -> String {
    let values: Map<String, Value> = metrics
        .iter()
        .map(|metric| {
            let value = match metric.value {
                value if value.is_finite() => value.into(),
                value if value.is_nan() => "nan".into(),
                value if value > 0.0 => "inf".into(),
                _ => "-inf".into(),
            };
            (metric.name.to_string(), value)
        })
        .collect();
    Value::Object(values).to_string()
}

/// Checks the receipt of a sink.
///
/// # Errors
/// Returns an error if the receipt is too long, or is not a JSON object in UTF-8.
pub fn receipt(bytes: Vec<u8>) -> Result<Receipt, String> {
    if bytes.len() > LONGEST_RECEIPT {
        return Err(format!(
            "its receipt has {} bytes, more than {} KiB",
            bytes.len(),
            LONGEST_RECEIPT >> 10
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| "its receipt is not UTF-8".to_owned())?;
    match serde_json::from_str::<Map<String, Value>>(&text) {
        Ok(_) => Ok(Receipt(text)),
        Err(error) => Err(format!("its receipt is not a JSON object: {error}")),
    }
}

/// Parses the receipt of a fetch. Checks that the checkpoint's folder is inside the sink's own folder.
pub fn fetched(receipt: &Receipt, state_dir: &Path) -> Result<Fetched, String> {
    let receipt: Map<String, Value> = serde_json::from_str(&receipt.0)
        .map_err(|error| format!("its receipt is not a JSON object: {error}"))?;
    let text = |key: &str| receipt.get(key).and_then(Value::as_str);
    let path = Path::new(text("path").ok_or("its receipt has no path")?);
    let is_within =
        path.starts_with(state_dir) && !path.components().any(|part| part == Component::ParentDir);
    if !is_within || !path.is_dir() {
        return Err(format!(
            "the path in its receipt is not a subfolder of the sink's folder: {}",
            path.display()
        ));
    }
    Ok(Fetched {
        path: path.to_owned(),
        commit: text("commit").map(str::to_owned),
    })
}

/// Decodes the text that a preflight returned; `None` if it is absent or blank.
pub fn finding(bytes: Option<Vec<u8>>) -> Result<Option<String>, String> {
    let Some(bytes) = bytes else { return Ok(None) };
    if bytes.len() > LONGEST_FINDING {
        return Err(format!(
            "its preflight text has {} bytes, more than {} KiB",
            bytes.len(),
            LONGEST_FINDING >> 10
        ));
    }
    let text =
        String::from_utf8(bytes).map_err(|_| "its preflight text is not UTF-8".to_owned())?;
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_json_cannot_represent_are_strings() {
        let metrics = [
            MetricValue::new("loss/eval", 1.5),
            MetricValue::new("a", f64::INFINITY),
            MetricValue::new("b", f64::NEG_INFINITY),
            MetricValue::new("c", f64::NAN),
        ];
        assert_eq!(
            metrics_json(&metrics),
            r#"{"loss/eval":1.5,"a":"inf","b":"-inf","c":"nan"}"#
        );
    }

    #[test]
    fn a_preflight_text_is_short_or_absent() {
        assert_eq!(finding(None), Ok(None));
        assert_eq!(finding(Some(b" ".to_vec())), Ok(None));
        assert_eq!(finding(Some(b"room".to_vec())), Ok(Some("room".to_owned())));
        for bytes in [vec![0xff], vec![b'x'; LONGEST_FINDING + 1]] {
            assert!(finding(Some(bytes)).is_err());
        }
    }

    #[test]
    fn a_fetched_checkpoint_is_inside_the_sinks_folder() {
        let state_dir = tempfile::tempdir().expect("a folder");
        let within = state_dir.path().join("abc");
        std::fs::create_dir(&within).expect("a folder");
        let of = |path: &Path| {
            let receipt = serde_json::json!({ "path": path, "commit": "abc" });
            fetched(&Receipt(receipt.to_string()), state_dir.path())
        };
        let found = of(&within).expect("a folder within");
        assert_eq!(found.path, within);
        assert_eq!(found.commit.as_deref(), Some("abc"));
        for outside in [
            Path::new("/"),
            Path::new("abc"),
            within.join("../..").as_path(),
            within.join("gone").as_path(),
        ] {
            let error = of(outside).expect_err("not a folder within");
            assert!(
                error.starts_with("the path in its receipt is not a subfolder"),
                "{error}"
            );
        }
        let nameless = fetched(&Receipt("{}".to_owned()), state_dir.path());
        assert_eq!(nameless, Err("its receipt has no path".to_owned()));
    }

    #[test]
    fn a_receipt_is_a_small_json_object() {
        assert!(receipt(b"{\"path\": \"/x\"}".to_vec()).is_ok());
        assert_eq!(
            receipt(b"[]".to_vec()).expect_err("a list"),
            "its receipt is not a JSON object: invalid type: sequence, expected a map at line 1 column 0"
        );
        assert_eq!(
            receipt(b"\xff".to_vec()).expect_err("not text"),
            "its receipt is not UTF-8"
        );
        assert_eq!(
            receipt(vec![b' '; LONGEST_RECEIPT + 1]).expect_err("long"),
            "its receipt has 65537 bytes, more than 64 KiB"
        );
    }
}
