use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;

use host_plugin_abi::{
    HOST_OK, HOST_REQUEST_CHECKPOINT, HOST_REQUEST_CONTINUE, HOST_REQUEST_EVALUATE,
    HOST_REQUEST_PAUSE, HOST_REQUEST_ROLL_BACK, HOST_REQUEST_SCALE_LEARNING_RATE,
    HOST_REQUEST_SET_LEARNING_RATE, HOST_REQUEST_SKIP_STEP, HOST_REQUEST_STOP, HOST_UNSUPPORTED,
    HostApi, HostEvent, HostObserver, HostOut, HostRequestsOut, HostStatus, HostStr,
};
use serde::de::DeserializeOwned;

use crate::export::Package;
use crate::out::Out;
use crate::{Error, Event, Host, Result, instance, sized};

/// Receives the events of a run in order and can send requests.
///
/// Training waits for each call, so calls must be short. A panic is caught. All later calls then fail, and
/// the host destroys the observer.
///
/// ```standalone_crate
/// use host_plugin_sdk::{Error, Event, Host, Observer, Request, Requests, Result, export_plugin, fake};
///
/// #[derive(serde::Deserialize)]
/// struct Config {
///     at_least: f64,
/// }
///
/// /// Stops once the evaluation's loss is low enough.
/// struct Enough(Config);
///
/// impl Observer for Enough {
///     type Config = Config;
///
///     fn create(config: Config, _host: Host) -> Result<Self> {
///         Ok(Self(config))
///     }
///     fn observe(&mut self, _step: u64, event: &Event<'_>, requests: &mut Requests<'_>) -> Result<()> {
///         match event.metric("loss/eval") {
///             Some(loss) if loss <= self.0.at_least => {
///                 requests.ask(Request::Stop, &format!("loss/eval is {loss}"))
///             }
///             _ => Ok(()),
///         }
///     }
/// }
///
/// # // A real plugin names a schema: config: "config.schema.json".
/// export_plugin! {
///     description: "Stops once the loss is low enough",
///     observer: Enough,
///     events: ["metrics"],
/// }
///
/// let plugin = fake::Plugin::load(&PLUGIN);
/// let mut observer = plugin.observer(r#"{"at_least": 1.0}"#).expect("created");
/// let loss = |loss| Event::Metrics { values: vec![("loss/eval", loss)] };
/// assert_eq!(observer.observe(100, &loss(1.5)).expect("observed"), []);
/// let asked = observer.observe(200, &loss(0.5)).expect("observed");
/// assert_eq!(asked, [(Request::Stop, "loss/eval is 0.5".to_owned())]);
/// ```
///
/// An observer that keeps state between events exports it for the checkpoint, so that a resumed run
/// continues exactly where it stopped:
///
/// ```standalone_crate
/// # use host_plugin_sdk::{Error, Event, Host, NoConfig, Observer, Requests, Result, export_plugin, fake};
/// struct Evaluations(u32);
///
/// impl Observer for Evaluations {
/// #   type Config = NoConfig;
/// #   fn create(_: NoConfig, _: Host) -> Result<Self> { Ok(Self(0)) }
///     fn observe(&mut self, _step: u64, event: &Event<'_>, _: &mut Requests<'_>) -> Result<()> {
///         self.0 += u32::from(event.metric("loss/eval").is_some());
///         Ok(())
///     }
///     fn export_state(&self) -> Vec<u8> {
///         self.0.to_le_bytes().to_vec()
///     }
///     fn import_state(&mut self, state: &[u8]) -> Result<()> {
///         let state = state.try_into().map_err(|_| Error::new("a state has 4 bytes"))?;
///         self.0 = u32::from_le_bytes(state);
///         Ok(())
///     }
/// }
/// # export_plugin! { description: "Counts evaluations", observer: Evaluations }
/// # let plugin = fake::Plugin::load(&PLUGIN);
/// # let (mut one, mut two) = (plugin.observer("{}").unwrap(), plugin.observer("{}").unwrap());
/// # one.observe(1, &Event::Metrics { values: vec![("loss/eval", 1.0)] }).unwrap();
/// # two.import_state(&one.export_state().unwrap()).unwrap();
/// # assert_eq!(two.export_state().unwrap(), 1u32.to_le_bytes());
/// ```
pub trait Observer: Sized + Send + 'static {
    /// The configuration, deserialized from JSON that the host has checked against the schema.
    type Config: DeserializeOwned;

    /// Creates an observer that has seen no event.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Receives an event. The key `events` of [`export_plugin!`](crate::export_plugin) lists the kinds of
    /// events to receive. `step` is the number of optimizer steps that were finished at the time of the
    /// event.
    fn observe(&mut self, step: u64, event: &Event<'_>, requests: &mut Requests<'_>) -> Result<()>;

    /// Returns the state as bytes, which the checkpoint stores. The bytes must contain a version of their
    /// layout. Equal states must have equal bytes. If there is no state, returns no bytes.
    fn export_state(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Replaces the state with an exported state. Another version of the plugin may have exported it. If the
    /// method cannot read the bytes, it must return an error and leave the state unchanged.
    fn import_state(&mut self, state: &[u8]) -> Result<()> {
        Err(Error::unsupported(format!(
            "this observer has no state, but was passed a state of {} bytes",
            state.len()
        )))
    }
}

/// A request to the training loop, which carries it out at the next step boundary.
///
/// ```
/// use host_plugin_sdk::Request;
///
/// /// Tries milder requests first.
/// fn against_a_spike(times_before: u32) -> Request {
///     match times_before {
///         0 => Request::SkipStep,
///         1 => Request::ScaleLearningRate { factor: 0.5 },
///         2 => Request::RollBack,
///         _ => Request::Stop,
///     }
/// }
/// assert_eq!(against_a_spike(1), Request::ScaleLearningRate { factor: 0.5 });
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Request {
    /// Ends training, with a checkpoint.
    Stop,
    /// Writes a checkpoint, regardless of the configured interval.
    Checkpoint,
    /// Does not apply the update of the next step. The step still counts and uses its batches.
    SkipStep,
    /// Multiplies the learning rate by this factor from now on. Earlier factors still apply.
    ScaleLearningRate {
        /// In (0, 1], so the request cannot raise the learning rate.
        factor: f64,
    },
    /// Restores the weights and the optimizer from the last complete checkpoint. Training continues with
    /// the batches after those already seen.
    RollBack,
    /// Evaluates the model. Only clients can send this request and the following ones. Observers receive
    /// events about these requests, but the host rejects the requests if observers send them.
    Evaluate,
    /// Pauses the loop at the step boundary.
    Pause,
    /// Ends a pause.
    Continue,
    /// From now on, sets the learning rate to the schedule's learning rate times this factor. Earlier factors
    /// no longer apply.
    SetLearningRate {
        /// Above 0; can be above 1.
        factor: f64,
    },
}

impl Request {
    pub(crate) fn code(self) -> (u32, f64) {
        match self {
            Self::Stop => (HOST_REQUEST_STOP, 0.0),
            Self::Checkpoint => (HOST_REQUEST_CHECKPOINT, 0.0),
            Self::SkipStep => (HOST_REQUEST_SKIP_STEP, 0.0),
            Self::ScaleLearningRate { factor } => (HOST_REQUEST_SCALE_LEARNING_RATE, factor),
            Self::RollBack => (HOST_REQUEST_ROLL_BACK, 0.0),
            Self::Evaluate => (HOST_REQUEST_EVALUATE, 0.0),
            Self::Pause => (HOST_REQUEST_PAUSE, 0.0),
            Self::Continue => (HOST_REQUEST_CONTINUE, 0.0),
            Self::SetLearningRate { factor } => (HOST_REQUEST_SET_LEARNING_RATE, factor),
        }
    }

    pub(crate) fn from_code(code: u32, factor: f64) -> Option<Self> {
        match code {
            HOST_REQUEST_STOP => Some(Self::Stop),
            HOST_REQUEST_CHECKPOINT => Some(Self::Checkpoint),
            HOST_REQUEST_SKIP_STEP => Some(Self::SkipStep),
            HOST_REQUEST_SCALE_LEARNING_RATE => Some(Self::ScaleLearningRate { factor }),
            HOST_REQUEST_ROLL_BACK => Some(Self::RollBack),
            HOST_REQUEST_EVALUATE => Some(Self::Evaluate),
            HOST_REQUEST_PAUSE => Some(Self::Pause),
            HOST_REQUEST_CONTINUE => Some(Self::Continue),
            HOST_REQUEST_SET_LEARNING_RATE => Some(Self::SetLearningRate { factor }),
            _ => None,
        }
    }
}

/// Receives the requests of [`Observer::observe`].
///
/// ```
/// use host_plugin_sdk::{Request, Requests, Result};
///
/// /// Rolls back, or stops training if the host does not support a rollback.
/// fn give_up(loss: f64, requests: &mut Requests<'_>) -> Result<()> {
///     let reason = format!("the loss is {loss}");
///     requests
///         .ask(Request::RollBack, &reason)
///         .or_else(|_| requests.ask(Request::Stop, &reason))
/// }
/// ```
pub struct Requests<'a> {
    out: HostRequestsOut,
    call: PhantomData<&'a HostRequestsOut>,
}

impl Requests<'_> {
    /// Sends a request. The reason is recorded for users and must not be empty. Returns an
    /// [unsupported](Error::unsupported) error if the host does not support the request. The observer can
    /// then send another request.
    pub fn ask(&mut self, request: Request, reason: &str) -> Result<()> {
        let ask = self
            .out
            .ask
            .ok_or_else(|| Error::new("the host has no function `ask`"))?;
        let (code, factor) = request.code();
        // SAFETY: the caller of `new` guaranteed that the function and `ctx` are valid. The host copies the
        // reason.
        match unsafe { ask(self.out.ctx, code, factor, HostStr::new(reason)) } {
            HOST_OK => Ok(()),
            HOST_UNSUPPORTED => Err(Error::unsupported(format!(
                "the host does not support {request:?} from an observer"
            ))),
            _ => Err(Error::new(format!(
                "the host rejected {request:?}: {reason:?}"
            ))),
        }
    }

    /// # Safety
    /// `out` is null, or valid for `'a`.
    unsafe fn new(out: *const HostRequestsOut) -> Result<Self> {
        Ok(Self {
            // SAFETY: guaranteed by the caller.
            out: unsafe { sized::read(out) }?,
            call: PhantomData,
        })
    }
}

impl fmt::Debug for Requests<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").finish_non_exhaustive()
    }
}

#[doc(hidden)]
pub const fn vtable<T: Observer, P: Package>() -> HostObserver {
    HostObserver {
        struct_size: size_of::<HostObserver>() as u32,
        flags: 0,
        create: Some(create::<T, P>),
        destroy: Some(instance::destroy::<T>),
        observe: Some(observe::<T>),
        export_state: Some(export_state::<T>),
        import_state: Some(import_state::<T>),
    }
}

unsafe extern "C" fn create<T: Observer, P: Package>(
    api: *const HostApi,
    config_json: HostStr,
    instance: *mut *mut c_void,
) -> HostStatus {
    // SAFETY: the host guarantees what `instance::create` requires.
    unsafe { instance::create(P::ID, api, config_json, instance, T::create) }
}

unsafe extern "C" fn observe<T: Observer>(
    instance: *mut c_void,
    event: *const HostEvent,
    out: *const HostRequestsOut,
) -> HostStatus {
    // SAFETY: the host passes an instance from `create` that is not destroyed. The event and `out` are valid
    // until this function returns.
    unsafe {
        instance::call(instance, |observer: &mut T, _| {
            let mut requests = Requests::new(out)?;
            match Event::read(event)? {
                (step, Some(event)) => observer.observe(step, &event, &mut requests),
                // A newer host can send kinds of events that this SDK does not support.
                (_, None) => Ok(()),
            }
        })
    }
}

unsafe extern "C" fn export_state<T: Observer>(
    instance: *mut c_void,
    out: *const HostOut,
) -> HostStatus {
    // SAFETY: as in `observe`.
    unsafe {
        instance::call(instance, |observer: &mut T, _| {
            Out::new(out)?.put_bytes(&observer.export_state())
        })
    }
}

unsafe extern "C" fn import_state<T: Observer>(
    instance: *mut c_void,
    state: HostStr,
) -> HostStatus {
    // SAFETY: as in `observe`. The state's bytes are valid until this function returns.
    unsafe {
        instance::call(instance, |observer: &mut T, _| {
            observer.import_state(state.as_bytes())
        })
    }
}
