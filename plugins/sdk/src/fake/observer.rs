use std::ffi::c_void;

use host_plugin_abi::{
    HOST_DELIVERY_DELIVERED, HOST_DELIVERY_DROPPED, HOST_DELIVERY_FAILED, HOST_DELIVERY_QUEUED,
    HOST_DELIVERY_SENDING, HOST_ERROR, HOST_EVENT_CHECKPOINT_FAILED, HOST_EVENT_CHECKPOINT_WRITTEN,
    HOST_EVENT_DELIVERY, HOST_EVENT_METRICS, HOST_EVENT_PLUGIN_FAULT, HOST_EVENT_REQUEST,
    HOST_EVENT_RUN_FINISHED, HOST_EVENT_RUN_STARTED, HOST_EVENT_SUPERSEDED, HOST_EVENT_WARNING,
    HOST_OK, HOST_REQUEST_ROLL_BACK, HOST_STOP_COMPLETED, HOST_STOP_FAILED, HOST_STOP_INTERRUPTED,
    HOST_STOP_REQUESTED, HOST_STOP_TERMINATED, HOST_UNSUPPORTED, HostEvent, HostObserver,
    HostRequestsOut, HostStatus, HostStr, HostValue,
};

use super::Failure;
use super::host::copied;
use super::metric::Results;
use super::plugin::Instance;
use crate::{DeliveryState, Event, Request, StopReason};

/// An observer of the plugin, called through its vtable.
///
/// ```standalone_crate
/// # use host_plugin_sdk::*;
/// # struct Eager;
/// # impl Observer for Eager {
/// #     type Config = NoConfig;
/// #     fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self) }
/// #     fn observe(&mut self, _: u64, _: &Event<'_>, requests: &mut Requests<'_>) -> Result<()> {
/// #         requests.ask(Request::Checkpoint, "something happened")
/// #     }
/// # }
/// # export_plugin! { description: "Requests a checkpoint after every event", observer: Eager }
/// use host_plugin_sdk::fake;
///
/// let mut observer = fake::Plugin::load(&PLUGIN).observer("{}")?;
/// let asked = observer.observe(7, &Event::Warning { message: "odd" })?;
/// assert_eq!(asked, [(Request::Checkpoint, "something happened".to_owned())]);
/// assert!(observer.export_state()?.is_empty()); // it has no state,
/// assert!(observer.import_state(b"x").is_err()); // so it imports none
/// let (vtable, _instance) = observer.raw();
/// assert!(vtable.observe.is_some());
/// # Ok::<_, fake::Failure>(())
/// ```
#[derive(Debug)]
pub struct Observer {
    vtable: &'static HostObserver,
    instance: Instance,
}

impl Observer {
    pub(crate) fn new(vtable: &'static HostObserver, instance: Instance) -> Self {
        Self { vtable, instance }
    }

    /// Passes an event to the observer and returns its requests with their reasons.
    ///
    /// Like the real host, rejects requests that have no reason and requests that would raise the learning
    /// rate.
    pub fn observe(
        &mut self,
        step: u64,
        event: &Event<'_>,
    ) -> Result<Vec<(Request, String)>, Failure> {
        let observe = self.vtable.observe.expect("observe");
        let mut asked: Vec<(Request, String)> = Vec::new();
        let out = HostRequestsOut {
            struct_size: size_of::<HostRequestsOut>() as u32,
            reserved: 0,
            ctx: (&raw mut asked).cast(),
            ask: Some(ask),
        };
        // SAFETY: the instance is live. The event and the result outlive the call.
        let status = event_view(step, event, |event| unsafe {
            observe(self.instance.pointer, event, &raw const out)
        });
        self.instance.host.ended(status)?;
        Ok(asked)
    }

    /// Returns the state as bytes. The result is empty if there is no state.
    ///
    /// # Panics
    /// Panics if the plugin does not call `put_bytes`.
    pub fn export_state(&mut self) -> Result<Vec<u8>, Failure> {
        let mut result = Results::default();
        let export = self.vtable.export_state.expect("export_state");
        // SAFETY: the instance is live, and the result outlives the call.
        let status = unsafe { export(self.instance.pointer, &result.out()) };
        self.instance.host.ended(status)?;
        Ok(result.bytes.expect("export_state did not call put_bytes"))
    }

    /// Replaces the state with a state that an instance exported.
    pub fn import_state(&mut self, state: &[u8]) -> Result<(), Failure> {
        let import = self.vtable.import_state.expect("import_state");
        // SAFETY: the instance is live, and the bytes outlive the call.
        let status = unsafe { import(self.instance.pointer, HostStr::from_bytes(state)) };
        self.instance.host.ended(status)
    }

    /// Returns the C interface, for tests that violate its rules.
    pub fn raw(&self) -> (&'static HostObserver, *mut c_void) {
        (self.vtable, self.instance.pointer)
    }
}

/// Passes an event to a function as the C struct.
///
/// ```
/// use host_plugin_sdk::{Event, abi, fake};
///
/// fake::event_view(7, &Event::Warning { message: "odd" }, |raw| {
///     assert_eq!((raw.kind, raw.step), (abi::HOST_EVENT_WARNING, 7));
/// });
/// ```
pub fn event_view<R>(step: u64, event: &Event<'_>, call: impl FnOnce(&HostEvent) -> R) -> R {
    let mut view = HostEvent::new(0, step);
    let mut views = Vec::new();
    match event {
        Event::RunStarted { generation } => {
            view.kind = HOST_EVENT_RUN_STARTED;
            view.generation = *generation;
        }
        Event::Superseded {
            from_step,
            generation,
        } => {
            view.kind = HOST_EVENT_SUPERSEDED;
            view.of_step = *from_step;
            view.generation = *generation;
        }
        Event::Metrics { values } => {
            views.extend(values.iter().map(|(name, value)| HostValue {
                struct_size: size_of::<HostValue>() as u32,
                flags: 0,
                name: HostStr::new(name),
                value: *value,
            }));
            view.kind = HOST_EVENT_METRICS;
            view.values = views.as_ptr();
            view.n_values = views.len();
        }
        Event::CheckpointWritten { name, bytes } => {
            view.kind = HOST_EVENT_CHECKPOINT_WRITTEN;
            view.name = HostStr::new(name);
            view.bytes = *bytes;
        }
        Event::CheckpointFailed { reason } => {
            view.kind = HOST_EVENT_CHECKPOINT_FAILED;
            view.text = HostStr::new(reason);
        }
        Event::Delivery {
            sink,
            checkpoint,
            state,
            detail,
        } => {
            view.kind = HOST_EVENT_DELIVERY;
            view.name = HostStr::new(sink);
            view.of_step = *checkpoint;
            view.code = match state {
                DeliveryState::Queued => HOST_DELIVERY_QUEUED,
                DeliveryState::Sending => HOST_DELIVERY_SENDING,
                DeliveryState::Delivered => HOST_DELIVERY_DELIVERED,
                DeliveryState::Failed => HOST_DELIVERY_FAILED,
                DeliveryState::Dropped => HOST_DELIVERY_DROPPED,
            };
            view.text = HostStr::new(detail);
        }
        Event::PluginFault {
            plugin,
            call,
            message,
        } => {
            view.kind = HOST_EVENT_PLUGIN_FAULT;
            view.name = HostStr::new(plugin);
            view.call = HostStr::new(call);
            view.text = HostStr::new(message);
        }
        Event::Request {
            by,
            request,
            reason,
        } => {
            view.kind = HOST_EVENT_REQUEST;
            view.name = HostStr::new(by);
            (view.code, view.factor) = request.code();
            view.text = HostStr::new(reason);
        }
        Event::Warning { message } => {
            view.kind = HOST_EVENT_WARNING;
            view.text = HostStr::new(message);
        }
        Event::RunFinished { reason, message } => {
            view.kind = HOST_EVENT_RUN_FINISHED;
            view.code = match reason {
                StopReason::Completed => HOST_STOP_COMPLETED,
                StopReason::Interrupted => HOST_STOP_INTERRUPTED,
                StopReason::Terminated => HOST_STOP_TERMINATED,
                StopReason::Requested => HOST_STOP_REQUESTED,
                StopReason::Failed => HOST_STOP_FAILED,
            };
            view.text = HostStr::new(message);
        }
    }
    call(&view)
}

unsafe extern "C" fn ask(
    ctx: *mut c_void,
    request: u32,
    factor: f64,
    reason: HostStr,
) -> HostStatus {
    // SAFETY: during the call, the plugin passes the `ctx` of `Observer::observe`, and a reason that is valid
    // until this function returns.
    let (asked, reason) = unsafe { (&mut *ctx.cast::<Vec<(Request, String)>>(), copied(reason)) };
    let known = Request::from_code(request, factor);
    let Some(request) = known.filter(|_| request <= HOST_REQUEST_ROLL_BACK) else {
        return HOST_UNSUPPORTED;
    };
    let raises = matches!(request, Request::ScaleLearningRate { factor } if !(factor > 0.0 && factor <= 1.0));
    if reason.is_empty() || raises {
        return HOST_ERROR;
    }
    asked.push((request, reason));
    HOST_OK
}
