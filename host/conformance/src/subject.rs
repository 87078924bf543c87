//! The plugin under test, met by its raw functions: what the host's ports refuse or put right on the
//! way must reach it here.

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
    /// What its instances are given.
    api: &'static HostApi,
    pub(super) config: String,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    call: &'static str,
    given: String,
    status: HostStatus,
    /// What the plugin told `set_error`.
    pub(super) reason: Option<String>,
    /// What was wrong with the output of a call that says it succeeded.
    output: Option<String>,
}

/// What `create` made; it is destroyed with this.
pub(super) struct Instance {
    pointer: *mut c_void,
    destroy: HostDestroy,
}

/// An instance as what its kind is.
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

/// What `create` did with settings.
pub(super) struct Created {
    pub(super) result: Result<Instance, Failure>,
    /// Whether it gave an instance although it failed.
    pub(super) made_one_anyway: bool,
}

// SAFETY: `publish` and `cancel` are called from two threads at once, as the ABI allows; all else is
// called from one at a time.
unsafe impl Sync for Sink {}
// SAFETY: by the ABI an instance may migrate between threads.
unsafe impl Send for Sink {}

impl Subject {
    /// Loads it as the host does, and finds settings for it.
    pub(super) fn load(setup: &Setup) -> Result<Self, Stop> {
        let library = load(setup)?;
        Ok(Self {
            library,
            api: library.api,
            config: setup.config()?,
        })
    }

    /// The same with another host around its instances.
    pub(super) fn with_api(mut self, api: &'static HostApi) -> Self {
        self.api = api;
        self
    }

    pub(super) fn manifest(&self) -> &'static PluginManifest {
        &self.library.manifest
    }

    fn functions<F: Copy>(&self, functions: Option<F>, kind: PluginKind) -> Result<F, Stop> {
        functions.ok_or_else(|| Stop::Skip(format!("the plugin is no {kind}")))
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

    /// `create` and `destroy` of each kind.
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

    /// Makes one of other settings than the subject's own, perhaps of none that can be.
    pub(super) fn create_from(
        &self,
        (_, create, destroy): (PluginKind, HostCreate, HostDestroy),
        config: &[u8],
    ) -> Created {
        create_with(create, destroy, self.api, config)
    }
}

/// Loads the library as the host does. One that it refuses is another test's finding.
pub(super) fn load(setup: &Setup) -> Result<&'static Library, Stop> {
    stage("its loading");
    Image::read(&setup.path)
        .and_then(|image| Library::load(&image, &setup.path))
        .or_else(|error| {
            skip(format!(
                "the host does not take the library: {}",
                error.message()
            ))
        })
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
        // SAFETY: the function is of the loaded library, the API lives for ever, the settings and
        // `pointer` outlive the call.
        let status = unsafe { create(api, HostStr::from_bytes(config), &raw mut pointer) };
        match pointer.is_null() {
            true if status == HOST_OK => (status, Err("gave no instance".to_owned())),
            _ => (status, Ok(())),
        }
    });
    let made_one_anyway = result.is_err() && !pointer.is_null();
    Created {
        result: result.map(|()| Instance { pointer, destroy }),
        made_one_anyway,
    }
}

/// Calls into the plugin. A status and what became of its output are given by `body`.
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
    /// What the host refuses in the plugin's place.
    pub(super) fn of_the_host(call: &'static str) -> Self {
        Self {
            call,
            given: String::new(),
            status: HOST_ERROR,
            reason: Some("the host passes no such thing".to_owned()),
            output: None,
        }
    }

    /// "failed in update with HOST_ERROR, given a 0-d nll: reason".
    pub(super) fn words(&self) -> String {
        let given = match self.given.as_str() {
            "" => String::new(),
            given => format!(", given {given}"),
        };
        let call = self.call;
        match (self.status, &self.output) {
            (HOST_OK, Some(output)) => format!("did wrong in {call}{given}: {output}"),
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

/// Lets an error pass, as the plugin's right, but no panic and no output that cannot be.
pub(super) fn tolerate<T>(result: Result<T, Failure>) -> Result<Result<T, Failure>, Stop> {
    match result {
        Err(failure) if failure.status == HOST_PANIC => Err(panicked(failure.words())),
        Err(failure) if failure.status == HOST_OK => Err(failure.into()),
        other => Ok(other),
    }
}

/// An error without a word helps nobody.
pub(super) fn has_reason(failure: &Failure) -> Result<(), Stop> {
    match failure.reason {
        Some(_) => Ok(()),
        None => Err(fault(
            failure.words(),
            "a call that fails tells set_error why",
            "call api->set_error(api->ctx, …) before the error is returned",
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
        // SAFETY: `create` made it, and this is its last use.
        unsafe { (self.destroy)(self.pointer) };
    }
}

/// Calls a function that puts bytes.
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
        // SAFETY: the instance is the library's own.
        enter("reset", "", || unsafe {
            ((self.functions.reset)(instance), Ok(()))
        })
    }

    pub(super) fn update(&self, batch: &HostBatch, given: &str) -> Result<(), Failure> {
        let instance = self.instance.pointer;
        // SAFETY: the instance is the library's own, and the batch and what it points to outlive
        // the call.
        enter("update", given, || unsafe {
            ((self.functions.update)(instance, batch), Ok(()))
        })
    }

    pub(super) fn export_state(&self) -> Result<Vec<u8>, Failure> {
        bytes_from("export_state", |out| {
            // SAFETY: as in `update`, for the callbacks' context.
            unsafe { (self.functions.export_state)(self.instance.pointer, out) }
        })
    }

    pub(super) fn merge_state(&self, state: &[u8], given: &str) -> Result<(), Failure> {
        let instance = self.instance.pointer;
        let state = HostStr::from_bytes(state);
        // SAFETY: as in `update`, for the bytes.
        enter("merge_state", given, || unsafe {
            ((self.functions.merge_state)(instance, state), Ok(()))
        })
    }

    pub(super) fn compute(&self) -> Result<Vec<(String, f64)>, Failure> {
        enter("compute", "", || {
            let mut output = Output::default();
            let out = output.callbacks();
            // SAFETY: as in `update`, for the callbacks' context.
            let status = unsafe { (self.functions.compute)(self.instance.pointer, &raw const out) };
            match status {
                HOST_OK => (status, output.into_values()),
                _ => (status, Ok(Vec::new())),
            }
        })
    }
}

impl Grouper {
    /// Groups what the request says, whose parameters are these.
    pub(super) fn group(
        &self,
        request: &HostGroupsRequest,
        params: &[ParamInfo],
        given: &str,
    ) -> Result<Vec<ParamGroup>, Failure> {
        enter("group", given, || {
            let mut groups = Groups::new(params.len());
            let out = groups.callbacks();
            // SAFETY: the instance is the library's own; the request, what it points to and the
            // callbacks' context outlive the call.
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
    /// The receipt as the sink put it, or none.
    pub(super) fn publish(
        &self,
        checkpoint: &HostCheckpoint,
        given: &str,
    ) -> Result<Option<Vec<u8>>, Failure> {
        enter("publish", given, || {
            let mut output = Output::default();
            let out = output.callbacks();
            // SAFETY: the instance is the library's own; the checkpoint, its texts and the
            // callbacks' context outlive the call.
            let status = unsafe {
                (self.functions.publish)(self.instance.pointer, checkpoint, &raw const out)
            };
            (status, Ok(output.into_bytes().ok()))
        })
    }

    /// What the sink found, if it says so; `None` if it has no preflight.
    pub(super) fn preflight(
        &self,
        preflight: &HostPreflight,
        given: &str,
    ) -> Option<Result<Option<String>, Failure>> {
        let function = self.functions.preflight?;
        Some(enter("preflight", given, || {
            let mut output = Output::default();
            let out = output.callbacks();
            // SAFETY: the instance is the library's own; the view, its texts and the callbacks'
            // context outlive the call.
            let status = unsafe { function(self.instance.pointer, preflight, &raw const out) };
            match status {
                HOST_OK => (status, output.into_any_bytes().and_then(finding)),
                _ => (status, Ok(None)),
            }
        }))
    }

    /// The folder that the receipt names, within `state_dir`; `None` if the sink has no fetch.
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
            // SAFETY: the instance is the library's own; the view, its texts and the callbacks'
            // context outlive the call.
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
        // No stage: that of `publish` on the other thread says more.
        // SAFETY: the instance is the library's own, and `cancel` is `[any]`.
        unsafe { (self.functions.cancel)(self.instance.pointer) };
    }
}

impl Observer {
    pub(super) fn observe(&self, event: &HostEvent, given: &str) -> Result<Vec<Ask>, Failure> {
        enter("observe", given, || {
            let mut requests = Requests::default();
            let out = requests.callbacks();
            // SAFETY: the instance is the library's own; the event, what it points to and the
            // callbacks' context outlive the call.
            let status =
                unsafe { (self.functions.observe)(self.instance.pointer, event, &raw const out) };
            match status {
                HOST_OK => (status, requests.into_result()),
                _ => (status, Ok(Vec::new())),
            }
        })
    }

    /// The functions of its state, if it has one.
    pub(super) fn state(&self) -> Result<StateFunctions, Stop> {
        match self.functions.state {
            Some(functions) => Ok(functions),
            None => skip("the observer keeps no state"),
        }
    }

    pub(super) fn export_state(&self) -> Result<Vec<u8>, Stop> {
        let StateFunctions { export_state, .. } = self.state()?;
        Ok(bytes_from("export_state", |out| {
            // SAFETY: as in `observe`.
            unsafe { export_state(self.instance.pointer, out) }
        })?)
    }

    pub(super) fn import_state(&self, state: &[u8], given: &str) -> Result<(), Failure> {
        let Some(StateFunctions { import_state, .. }) = self.functions.state else {
            return Ok(());
        };
        let instance = self.instance.pointer;
        let state = HostStr::from_bytes(state);
        // SAFETY: as in `observe`, for the bytes.
        enter("import_state", given, || unsafe {
            (import_state(instance, state), Ok(()))
        })
    }
}
