//! The messages between the host and a plugin's child process.
//!
//! A call is one MessagePack message, and its reply is another. Raw bytes (tensors, states) follow the
//! message, since encoding them would be wasteful. Before the reply, the child may send log messages. The
//! greeting checks that both sides have the same version of the host, so the protocol needs no version
//! numbers.

use std::borrow::Cow;
use std::path::Path;

use host_core::{
    Ask, Dtype, Error, ErrorKind, EventBody, Fetched, Manifest, MetricValue, Need, ParamGroup,
    ParamInfo, Receipt, SinkError, Step,
};
use host_plugin_abi::{HOST_ABI_MAJOR, HOST_ABI_MINOR};
use serde::{Deserialize, Serialize};

use crate::PluginKind;
use crate::secrets::Secret;

/// The child's first message.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The program's version.
    pub(super) host: String,
    /// The plugin ABI's major and minor version.
    pub(super) abi: (u32, u32),
}

impl Hello {
    pub(super) fn of_this_host() -> Self {
        Self {
            host: env!("CARGO_PKG_VERSION").to_owned(),
            abi: (HOST_ABI_MAJOR, HOST_ABI_MINOR),
        }
    }
}

/// The host's response, which describes the instance that the child must create. The library's bytes are in a
/// file that the child inherits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Open<'a> {
    /// The digest of the bytes that the host inspected. The child rejects other bytes.
    pub(super) sha256: Cow<'a, str>,
    /// The path of the library, used only in messages.
    pub(super) path: Cow<'a, Path>,
    /// The settings as JSON text.
    pub(super) config: Cow<'a, str>,
    /// The kind of the instance.
    pub(super) kind: PluginKind,
    /// The least severe level that is logged, as its number in the ABI.
    pub(super) log_level: i32,
    /// The secrets that the plugin may read. The child's initial environment contains no secrets, since
    /// `/proc` shows it to every process of the user.
    pub(super) secrets: Vec<Secret>,
}

/// A call of a trait's function. The instance's kind must have this function. If it does not, the host has a
/// bug.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Call<'a> {
    Group {
        params: Cow<'a, [ParamInfo]>,
        weight_decay: f64,
    },
    Reset,
    /// The tensors' elements follow the message. Each tensor is contiguous and starts at a multiple of
    /// [`ALIGNMENT`](super::channel::ALIGNMENT).
    Update {
        step: u64,
        tensors: Vec<TensorHead<'a>>,
    },
    ExportState,
    /// The state follows the message.
    MergeState,
    Compute,
    /// A cancellable call of a sink.
    Sink {
        /// The number of this call, counted from the start of the instance. A cancellation contains it.
        number: u64,
        call: SinkCall<'a>,
    },
    Observe {
        step: Step,
        event: Cow<'a, EventBody>,
    },
    /// The state follows the message.
    ImportState,
    /// Destroys the instance and ends the process. Has no reply.
    End,
}

/// A call of a sink.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum SinkCall<'a> {
    Publish {
        run: Cow<'a, str>,
        step: Step,
        path: Cow<'a, Path>,
        manifest: Cow<'a, Manifest>,
        metrics: Cow<'a, [MetricValue]>,
        state_dir: Cow<'a, Path>,
    },
    Preflight {
        run: Cow<'a, str>,
        state_dir: Cow<'a, Path>,
        checkpoint_bytes: u64,
        model_bytes: u64,
    },
    Fetch {
        revision: Option<Cow<'a, str>>,
        for_resume: bool,
        state_dir: Cow<'a, Path>,
    },
}

/// A tensor without its elements.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TensorHead<'a> {
    pub(super) need: Need,
    pub(super) dtype: Dtype,
    pub(super) shape: Cow<'a, [i64]>,
}

/// The child's messages after its greeting.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    /// A log line of the plugin. It can arrive at any time.
    Log {
        /// The ABI's number.
        level: i32,
        target: String,
        message: String,
    },
    /// The plugin is loaded, and the child is about to call its `create`.
    Creating,
    /// The reply to a call, or to [`Open`].
    Reply {
        reply: Reply,
        /// Why the instance can never work again, although its process is still running. `None` if the
        /// instance can still work.
        lost: Option<String>,
    },
}

/// The result of a call.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Done,
    /// A state, which follows the message.
    State,
    Groups(Vec<ParamGroup>, Vec<String>),
    Values(Vec<(String, f64)>),
    Receipt(Receipt),
    /// The text that a sink's `preflight` returned.
    Ready(Option<String>),
    /// What a sink's `fetch` returned.
    Fetched(Fetched),
    Asks(Vec<Ask>),
    Failed(Fault),
    Undelivered(SinkError),
}

/// An [`Error`] as sent over the channel.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Fault {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl Call<'_> {
    /// Returns the name of the function that is called.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Group { .. } => "group",
            Self::Reset => "reset",
            Self::Update { .. } => "update",
            Self::ExportState => "export_state",
            Self::MergeState => "merge_state",
            Self::Compute => "compute",
            Self::Sink { call, .. } => call.name(),
            Self::Observe { .. } => "observe",
            Self::ImportState => "import_state",
            Self::End => "destroy",
        }
    }
}

impl SinkCall<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Publish { .. } => "publish",
            Self::Preflight { .. } => "preflight",
            Self::Fetch { .. } => "fetch",
        }
    }
}

impl Reply {
    /// Whether the plugin failed.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Undelivered(_))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind(),
            message: error.message().to_owned(),
            hint: error.hint_text().map(str::to_owned),
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let error = Error::new(fault.kind, fault.message);
        match fault.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use host_core::{DeliveryState, Request, StopReason};

    use super::*;

    /// A serialized event contains its kind as a field. Some message formats cannot decode such an event.
    #[test]
    fn every_event_and_request_arrives_unchanged() {
        let text = || "text".to_owned();
        let requests = [
            Request::Stop,
            Request::Checkpoint,
            Request::SkipStep,
            Request::ScaleLearningRate { factor: 0.5 },
            Request::RollBack,
            Request::Evaluate,
            Request::Pause,
            Request::Continue,
            Request::SetLearningRate { factor: 3.0 },
        ];
        let asked = requests.map(|request| EventBody::Request {
            by: text(),
            request,
            reason: text(),
        });
        let others = [
            EventBody::RunStarted { generation: 3 },
            EventBody::Superseded {
                from_step: Step(9),
                generation: 3,
            },
            EventBody::Metrics {
                values: vec![
                    MetricValue::new("a", f64::INFINITY),
                    MetricValue::new("b", -0.0),
                ],
            },
            EventBody::CheckpointWritten {
                name: text(),
                bytes: u64::MAX,
                stall_secs: 0.5,
                write_secs: 1.5,
            },
            EventBody::CheckpointFailed { reason: text() },
            EventBody::Delivery {
                sink: text(),
                checkpoint: Step(1),
                state: DeliveryState::Failed,
                detail: text(),
                retry_time_us: None,
            },
            EventBody::PluginFault {
                plugin: text(),
                call: text(),
                message: text(),
            },
            EventBody::Warning { message: text() },
            EventBody::RunFinished {
                reason: StopReason::Interrupted,
                message: String::new(),
            },
        ];
        for sent in asked.into_iter().chain(others) {
            let call = Call::Observe {
                step: Step(7),
                event: Cow::Borrowed(&sent),
            };
            let bytes = rmp_serde::to_vec(&call).expect("encoded");
            let Call::Observe { step, event } = rmp_serde::from_slice(&bytes).expect("decoded")
            else {
                panic!("another call");
            };
            assert_eq!((step, &*event), (Step(7), &sent));
        }
        let asks = requests.map(|request| Ask {
            request,
            reason: text(),
        });
        let bytes = rmp_serde::to_vec(&Reply::Asks(asks.to_vec())).expect("encoded");
        let Reply::Asks(arrived) = rmp_serde::from_slice(&bytes).expect("decoded") else {
            panic!("another reply");
        };
        assert_eq!(arrived, asks);
    }

    #[test]
    fn an_error_arrives_with_its_kind_and_hint() {
        let sent = Error::new(ErrorKind::Config, "what").hint("how");
        let bytes = rmp_serde::to_vec(&Fault::from(sent)).expect("encoded");
        let arrived = Error::from(rmp_serde::from_slice::<Fault>(&bytes).expect("decoded"));
        assert_eq!(
            (arrived.kind(), arrived.message(), arrived.hint_text()),
            (ErrorKind::Config, "what", Some("how"))
        );
    }
}
