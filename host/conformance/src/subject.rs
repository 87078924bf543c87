//! The plugin under test. Its functions are called directly, so that the plugin also receives inputs that the
//! host would otherwise reject or correct before the call.

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::ptr;

use host_core::{Ask, ParamGroup, ParamInfo};
use host_plugin_abi::{
    HOST_CANCELLED, HOST_ERROR, HOST_OK, HOST_PANIC, HOST_TEMPORARY, HOST_UNSUPPORTED, HostApi,
    HostBatch, HostCheckpoint, HostCreate, HostDestroy, HostEvent, HostFetch, HostGroupsRequest,
    HostOut, HostPreflight, HostStatus, HostStr,
};

use crate::child::{panicked, stage};
use crate::setup::Setup;
use crate::test::{Stop, fault, skip};
use host_plugin::raw::Image;
use host_plugin::raw::Library;
use host_plugin::raw::MetricFunctions;
use host_plugin::raw::Output;
use host_plugin::raw::take_error;
use host_plugin::raw::{CheckpointSinkFunctions, fetched, finding, receipt};
use host_plugin::raw::{Groups, ParamGroupsFunctions};
use host_plugin::raw::{ObserverFunctions, Requests, StateFunctions};
use host_plugin::{PluginKind, PluginManifest};

/// A loaded plugin and the settings for its instances.
pub(super) struct Subject {
    library: &'static Library,
    /// The host API that its instances receive.
    api: &'static HostApi,
    pub(super) config: String,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    call: &'static str,
    given: String,
    status: HostStatus,
    /// The reason that the plugin passed to `set_error`.
    pub(super) reason: Option<String>,
    /// The fault in the call's output, if the call returned success.
    output: Option<String>,
}

/// An instance from `create`. Dropping it calls `destroy`.
pub(super) struct Instance {
    pointer: *mut c_void,
    destroy: HostDestroy,
}

/// A metric's instance, and the functions to call it. The other kinds have similar structs.
pub(super) struct Metric {
    instance: Instance,
    functions: MetricFunctions,
}

pub(super) struct Grouper {
    instance: Instance,
    functions: ParamGroupsFunctions,
}

pub(super) struct Sink {
    instance: Instance,
    functions: CheckpointSinkFunctions,
}

pub(super) struct Observer {
    instance: Instance,
    functions: ObserverFunctions,
}

/// The result of calling `create`.
pub(super) struct Created {
    pub(super) result: Result<Instance, Failure>,
    /// Whether `create` returned an instance although the call failed.
    pub(super) made_one_anyway: bool,
}

// SAFETY: `publish` and `cancel` are called from two threads at the same time, which the ABI allows. All
// other functions are called from one thread at a time.
unsafe impl Sync for Sink {}
// SAFETY: by the ABI an instance may migrate between threads.
unsafe impl Send for Sink {}

impl Subject {
    /// Loads the plugin as the host does, and determines its settings.
    pub(super) fn load(setup: &Setup) -> Result<Self, Stop> {
        let library = load(setup)?;
        Ok(Self {
            library,
            api: library.api,
            config: setup.config()?,
        })
    }

    /// Replaces the host API that the instances receive.
    pub(super) fn with_api(mut self, api: &'static HostApi) -> Self {
        self.api = api;
        self
    }

    pub(super) fn manifest(&self) -> &'static PluginManifest {
        &self.library.manifest
    }

    fn functions<F: Copy>(&self, functions: Option<F>, kind: PluginKind) -> Result<F, Stop> {
        functions.ok_or_else(|| Stop::Skip(format!("the plugin does not implement {kind}")))
    }

    pub(super) fn metric(&self) -> Result<Metric, Stop> {
        let functions = self.functions(self.library.metric, PluginKind::Metric)?;
        let instance = self.instance(functions.create, functions.destroy)?;
        Ok(Metric {
            instance,
            functions,
        })
    }

    pub(super) fn grouper(&self) -> Result<Grouper, Stop> {
        let functions = self.functions(self.library.param_groups, PluginKind::ParamGroups)?;
        let instance = self.instance(functions.create, functions.destroy)?;
        Ok(Grouper {
            instance,
            functions,
        })
    }

    pub(super) fn sink(&self) -> Result<Sink, Stop> {
        let functions = self.functions(self.library.checkpoint_sink, PluginKind::CheckpointSink)?;
        let instance = self.instance(functions.create, functions.destroy)?;
        Ok(Sink {
            instance,
            functions,
        })
    }

    pub(super) fn observer(&self) -> Result<Observer, Stop> {
        let functions = self.functions(self.library.observer, PluginKind::Observer)?;
        let instance = self.instance(functions.create, functions.destroy)?;
        Ok(Observer {
            instance,
            functions,
        })
    }

    fn instance(&self, create: HostCreate, destroy: HostDestroy) -> Result<Instance, Stop> {
        let created = create_with(create, destroy, self.api, self.config.as_bytes());
        Ok(created.result?)
    }

    /// Returns `create` and `destroy` of each kind.
    pub(super) fn makers(&self) -> Vec<(PluginKind, HostCreate, HostDestroy)> {
        let library = self.library;
        let mut makers = Vec::new();
        if let Some(it) = library.param_groups {
            makers.push((PluginKind::ParamGroups, it.create, it.destroy));
        }
        if let Some(it) = library.metric {
            makers.push((PluginKind::Metric, it.create, it.destroy));
        }
        if let Some(it) = library.checkpoint_sink {
            makers.push((PluginKind::CheckpointSink, it.create, it.destroy));
        }
        if let Some(it) = library.observer {
            makers.push((PluginKind::Observer, it.create, it.destroy));
        }
        makers
    }

    /// Calls `create` with the given settings, which may be invalid, instead of the subject's own settings.
    pub(super) fn create_from(
        &self,
        (_, create, destroy): (PluginKind, HostCreate, HostDestroy),
        config: &[u8],
    ) -> Created {
        create_with(create, destroy, self.api, config)
    }
}

/// Loads the library as the host does. Skips the test if the host rejects the library, because another test
/// reports that.
pub(super) fn load(setup: &Setup) -> Result<&'static Library, Stop> {
    stage("load");
    Image::read(&setup.path)
        .and_then(|image| Library::load(&image, &setup.path))
        .or_else(|error| skip(format!("the host rejects the library: {}", error.message())))
}

fn create_with(
    create: HostCreate,
    destroy: HostDestroy,
    api: &'static HostApi,
    config: &[u8],
) -> Created {
    let shown: String = String::from_utf8_lossy(config).chars().take(100).collect();
    let given = format!("the settings {shown}");
    let mut pointer = ptr::null_mut();
    let result = enter("create", &given, || {
        // SAFETY: the function belongs to the loaded library, the API lives forever, and the settings and
        // `pointer` outlive the call.
        let status = unsafe { create(api, HostStr::from_bytes(config), &raw mut pointer) };
        match pointer.is_null() {
            true if status == HOST_OK => (status, Err("it returned no instance".to_owned())),
            _ => (status, Ok(())),
        }
    });
    let made_one_anyway = result.is_err() && !pointer.is_null();
    Created {
        result: result.map(|()| Instance { pointer, destroy }),
        made_one_anyway,
    }
}

/// Runs `body`, which calls the plugin and returns the status and the checked output.
pub(super) fn enter<T>(
    call: &'static str,
    given: &str,
    body: impl FnOnce() -> (HostStatus, Result<T, String>),
) -> Result<T, Failure> {
    stage(&match given {
        "" => call.to_owned(),
        given => format!("{call}, given {given}"),
    });
    take_error();
    let (status, output) = body();
    let reason = take_error();
    match (status, output) {
        (HOST_OK, Ok(output)) => Ok(output),
        (status, output) => Err(Failure {
            call,
            given: given.to_owned(),
            status,
            reason,
            output: output.err(),
        }),
    }
}

impl Failure {
    /// Returns a failure that stands for a call that was not made, because the host itself rejects the input.
    pub(super) fn of_the_host(call: &'static str) -> Self {
        Self {
            call,
            given: String::new(),
            status: HOST_ERROR,
            reason: Some("the host never passes this".to_owned()),
            output: None,
        }
    }

    /// Returns a description such as "failed in update with HOST_ERROR, given a 0-d nll: reason".
    pub(super) fn words(&self) -> String {
        let given = match self.given.as_str() {
            "" => String::new(),
            given => format!(", given {given}"),
        };
        let call = self.call;
        match (self.status, &self.output) {
            (HOST_OK, Some(output)) => {
                format!("returned invalid output from {call}{given}: {output}")
            }
            (HOST_PANIC, _) => format!("panicked in {call}{given}: {}", self.reason()),
            (status, _) => format!(
                "failed in {call} with {}{given}: {}",
                status_name(status),
                self.reason()
            ),
        }
    }

    pub(super) fn status(&self) -> HostStatus {
        self.status
    }

    fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or("it gave no reason")
    }
}

/// Accepts an error, because a plugin is allowed to return one. Fails the test after a panic or invalid
/// output.
pub(super) fn tolerate<T>(result: Result<T, Failure>) -> Result<Result<T, Failure>, Stop> {
    match result {
        Err(failure) if failure.status == HOST_PANIC => Err(panicked(failure.words())),
        Err(failure) if failure.status == HOST_OK => Err(failure.into()),
        other => Ok(other),
    }
}

/// Checks that a failed call reported a reason.
pub(super) fn has_reason(failure: &Failure) -> Result<(), Stop> {
    match failure.reason {
        Some(_) => Ok(()),
        None => Err(fault(
            failure.words(),
            "a call that fails passes a reason to set_error",
            "call api->set_error(api->ctx, …) before returning the error",
        )),
    }
}

fn status_name(status: HostStatus) -> String {
    let name = match status {
        HOST_ERROR => "HOST_ERROR",
        HOST_PANIC => "HOST_PANIC",
        HOST_UNSUPPORTED => "HOST_UNSUPPORTED",
        HOST_CANCELLED => "HOST_CANCELLED",
        HOST_TEMPORARY => "HOST_TEMPORARY",
        _ => return format!("the status {status}"),
    };
    name.to_owned()
}

impl Drop for Instance {
    fn drop(&mut self) {
        stage("destroy");
        // SAFETY: the pointer came from `create`, and this is its last use.
        unsafe { (self.destroy)(self.pointer) };
    }
}

/// Calls a function that outputs bytes, and returns them.
fn bytes_from(
    call: &'static str,
    put: impl FnOnce(*const HostOut) -> HostStatus,
) -> Result<Vec<u8>, Failure> {
    enter(call, "", || {
        let mut output = Output::default();
        let out = output.callbacks();
        let status = put(&raw const out);
        match status {
            HOST_OK => (status, output.into_bytes()),
            _ => (status, Ok(Vec::new())),
        }
    })
}

impl Metric {
    pub(super) fn reset(&self) -> Result<(), Failure> {
        let instance = self.instance.pointer;
        // SAFETY: the library created the instance.
        enter("reset", "", || unsafe {
            ((self.functions.reset)(instance), Ok(()))
        })
    }

    pub(super) fn update(&self, batch: &HostBatch, given: &str) -> Result<(), Failure> {
        let instance = self.instance.pointer;
        // SAFETY: the library created the instance, and the batch and what it points to outlive the call.
        enter("update", given, || unsafe {
            ((self.functions.update)(instance, batch), Ok(()))
        })
    }

    pub(super) fn export_state(&self) -> Result<Vec<u8>, Failure> {
        bytes_from("export_state", |out| {
            // SAFETY: the library created the instance, and the callbacks' context outlives the call.
            unsafe { (self.functions.export_state)(self.instance.pointer, out) }
        })
    }

    pub(super) fn merge_state(&self, state: &[u8], given: &str) -> Result<(), Failure> {
        let instance = self.instance.pointer;
        let state = HostStr::from_bytes(state);
        // SAFETY: the library created the instance, and the state's bytes outlive the call.
        enter("merge_state", given, || unsafe {
            ((self.functions.merge_state)(instance, state), Ok(()))
        })
    }

    pub(super) fn compute(&self) -> Result<Vec<(String, f64)>, Failure> {
        enter("compute", "", || {
            let mut output = Output::default();
            let out = output.callbacks();
            // SAFETY: the library created the instance, and the callbacks' context outlives the call.
            let status = unsafe { (self.functions.compute)(self.instance.pointer, &raw const out) };
            match status {
                HOST_OK => (status, output.into_values()),
                _ => (status, Ok(Vec::new())),
            }
        })
    }
}

impl Grouper {
    /// Calls `group`, and checks the returned groups against `params`, which are the parameters in `request`.
    pub(super) fn group(
        &self,
        request: &HostGroupsRequest,
        params: &[ParamInfo],
        given: &str,
    ) -> Result<Vec<ParamGroup>, Failure> {
        enter("group", given, || {
            let mut groups = Groups::new(params.len());
            let out = groups.callbacks();
            // SAFETY: the library created the instance; the request, what it points to and the callbacks'
            // context outlive the call.
            let status =
                unsafe { (self.functions.group)(self.instance.pointer, request, &raw const out) };
            match status {
                HOST_OK => (status, groups.into_result().map(|(groups, _)| groups)),
                _ => (status, Ok(Vec::new())),
            }
        })
    }
}

impl Sink {
    /// Calls `publish`. If the sink returned a receipt, returns the receipt's bytes without checking them.
    pub(super) fn publish(
        &self,
        checkpoint: &HostCheckpoint,
        given: &str,
    ) -> Result<Option<Vec<u8>>, Failure> {
        enter("publish", given, || {
            let mut output = Output::default();
            let out = output.callbacks();
            // SAFETY: the library created the instance; the checkpoint, its texts and the callbacks' context
            // outlive the call.
            let status = unsafe {
                (self.functions.publish)(self.instance.pointer, checkpoint, &raw const out)
            };
            (status, Ok(output.into_bytes().ok()))
        })
    }

    /// Calls `preflight`, and returns its text. Returns `None` if the sink has no preflight.
    pub(super) fn preflight(
        &self,
        preflight: &HostPreflight,
        given: &str,
    ) -> Option<Result<Option<String>, Failure>> {
        let function = self.functions.preflight?;
        Some(enter("preflight", given, || {
            let mut output = Output::default();
            let out = output.callbacks();
            // SAFETY: the library created the instance; the view, its texts and the callbacks' context
            // outlive the call.
            let status = unsafe { function(self.instance.pointer, preflight, &raw const out) };
            match status {
                HOST_OK => (status, output.into_any_bytes().and_then(finding)),
                _ => (status, Ok(None)),
            }
        }))
    }

    /// Calls `fetch`, and returns the folder from its receipt, which must be inside `state_dir`. Returns
    /// `None` if the sink has no fetch.
    pub(super) fn fetch(
        &self,
        fetch: &HostFetch,
        state_dir: &Path,
        given: &str,
    ) -> Option<Result<PathBuf, Failure>> {
        let function = self.functions.fetch?;
        Some(enter("fetch", given, || {
            let mut output = Output::default();
            let out = output.callbacks();
            // SAFETY: the library created the instance; the view, its texts and the callbacks' context
            // outlive the call.
            let status = unsafe { function(self.instance.pointer, fetch, &raw const out) };
            let folder = match status {
                HOST_OK => output
                    .into_bytes()
                    .and_then(receipt)
                    .and_then(|receipt| fetched(&receipt, state_dir))
                    .map(|fetched| fetched.path),
                _ => Ok(PathBuf::new()),
            };
            (status, folder)
        }))
    }

    pub(super) fn cancel(&self) {
        // Does not call `stage`, because the stage that `publish` has set on the other thread is more
        // informative.
        // SAFETY: the library created the instance, and `cancel` is `[any]`.
        unsafe { (self.functions.cancel)(self.instance.pointer) };
    }
}

impl Observer {
    pub(super) fn observe(&self, event: &HostEvent, given: &str) -> Result<Vec<Ask>, Failure> {
        enter("observe", given, || {
            let mut requests = Requests::default();
            let out = requests.callbacks();
            // SAFETY: the library created the instance; the event, what it points to and the callbacks'
            // context outlive the call.
            let status =
                unsafe { (self.functions.observe)(self.instance.pointer, event, &raw const out) };
            match status {
                HOST_OK => (status, requests.into_result()),
                _ => (status, Ok(Vec::new())),
            }
        })
    }

    /// Returns the functions for the observer's state. Skips the test if the observer has no state.
    pub(super) fn state(&self) -> Result<StateFunctions, Stop> {
        match self.functions.state {
            Some(functions) => Ok(functions),
            None => skip("the observer has no state"),
        }
    }

    pub(super) fn export_state(&self) -> Result<Vec<u8>, Stop> {
        let StateFunctions { export_state, .. } = self.state()?;
        Ok(bytes_from("export_state", |out| {
            // SAFETY: the library created the instance, and the callbacks' context outlives the call.
            unsafe { export_state(self.instance.pointer, out) }
        })?)
    }

    pub(super) fn import_state(&self, state: &[u8], given: &str) -> Result<(), Failure> {
        let Some(StateFunctions { import_state, .. }) = self.functions.state else {
            return Ok(());
        };
        let instance = self.instance.pointer;
        let state = HostStr::from_bytes(state);
        // SAFETY: the library created the instance, and the state's bytes outlive the call.
        enter("import_state", given, || unsafe {
            (import_state(instance, state), Ok(()))
        })
    }
}
