//! What the host and the child process of a plugin say to each other.
//!
//! A call and its answer are one message each, in MessagePack, with the bytes that are not worth
//! encoding (tensors, states) behind it. Between them the child may log. Each side is the same
//! program, so there is one version of this, and the greeting proves it.

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

/// What the child says first.
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

/// What the host answers: which instance the child is to make. The library's bytes are in a file
/// that the child inherits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Open<'a> {
    /// Of the bytes that the host looked at; the child takes no others.
    pub(super) sha256: Cow<'a, str>,
    /// The library's own file, to be named only.
    pub(super) path: Cow<'a, Path>,
    /// The settings as JSON text.
    pub(super) config: Cow<'a, str>,
    /// What the instance is.
    pub(super) kind: PluginKind,
    /// The ABI's number of the least important level that is logged.
    pub(super) log_level: i32,
    /// What the plugin may read of the secrets. The child is started without any, since `/proc` shows
    /// every process of this user what another was started with.
    pub(super) secrets: Vec<Secret>,
}

/// A call of a port. One that is not of the instance's kind is a mistake of the host.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Call<'a> {
    Group {
        params: Cow<'a, [ParamInfo]>,
        weight_decay: f64,
    },
    Reset,
    /// The tensors' elements stand behind the message, each in order and without gaps, and begin at
    /// multiples of [`ALIGNMENT`](super::channel::ALIGNMENT).
    Update {
        step: u64,
        tensors: Vec<TensorHead<'a>>,
    },
    ExportState,
    /// The state stands behind the message.
    MergeState,
    Compute,
    /// A sink's call, which can be cancelled.
    Sink {
        /// Counts these calls; a cancellation names it.
        number: u64,
        call: SinkCall<'a>,
    },
    Observe {
        step: Step,
        event: Cow<'a, EventBody>,
    },
    /// The state stands behind the message.
    ImportState,
    /// The instance is destroyed and the process ends. There is no answer but that.
    End,
}

/// What is asked of a sink.
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

/// What a child says after its greeting.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    /// The plugin logs; it may do so at any time.
    Log {
        /// The ABI's number.
        level: i32,
        target: String,
        message: String,
    },
    /// The plugin's `create` is called; what came before was its loading.
    Creating,
    /// The answer to a call, or to [`Open`].
    Reply {
        reply: Reply,
        /// Why the instance will never work again, if so, though its process is there.
        lost: Option<String>,
    },
}

/// How a call went.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Done,
    /// A state, which stands behind the message.
    State,
    Groups(Vec<ParamGroup>, Vec<String>),
    Values(Vec<(String, f64)>),
    Receipt(Receipt),
    /// What a preflight found.
    Ready(Option<String>),
    /// What was brought back.
    Fetched(Fetched),
    Asks(Vec<Ask>),
    Failed(Fault),
    Undelivered(SinkError),
}

/// An [`Error`] on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Fault {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl Call<'_> {
    /// The name of the port's function.
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

    /// Events have their kind inside, which not every format of messages can read again.
    #[test]
    fn every_event_and_request_arrives_as_it_was() {
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
