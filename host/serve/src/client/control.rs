use std::time::Duration;

use host_core::{Ask, CarriedOut, Error, ErrorKind, Request, Result, Step};
use host_proto::tracker::v1 as proto;
use proto::control_service_client::ControlServiceClient;
use tonic::Code;

use super::Client;

/// How long a request waits for the training loop. Steps can take long, and evaluations even longer.
const PATIENCE: Duration = Duration::from_secs(600);

/// Calls a method of the service. All requests have the fields `run`, `by` and `reason`; some have
/// additional fields.
macro_rules! call {
    ($service:ident, $method:ident, $request:ident { $run:ident, $by:ident, $reason:ident $(, $field:ident)* }) => {
        $service
            .$method(proto::$request { $run, $by, $reason $(, $field)* })
            .await
            .map(|response| {
                let response = response.into_inner();
                (response.step, response.seq)
            })
    };
}

impl Client {
    /// Sends a request to the training loop of a run, as the client `by`, and waits until the request is
    /// carried out. An empty `run` means the run that the server trains.
    ///
    /// # Errors
    /// Returns an error if the token does not permit control, the request is invalid, the server does not
    /// train the run, training ended first, or the server does not respond.
    pub fn ask(&self, run: &str, by: &str, ask: Ask) -> Result<CarriedOut> {
        let mut service = ControlServiceClient::new(self.wire.clone());
        let (run, by, reason) = (run.to_owned(), by.to_owned(), ask.reason);
        let call = async {
            match ask.request {
                Request::Stop => call!(service, stop_run, StopRunRequest { run, by, reason }),
                Request::Checkpoint => {
                    call!(
                        service,
                        write_checkpoint,
                        WriteCheckpointRequest { run, by, reason }
                    )
                }
                Request::Evaluate => call!(service, evaluate, EvaluateRequest { run, by, reason }),
                Request::Pause => call!(service, pause_run, PauseRunRequest { run, by, reason }),
                Request::Continue => {
                    call!(
                        service,
                        continue_run,
                        ContinueRunRequest { run, by, reason }
                    )
                }
                Request::SetLearningRate { factor } => call!(
                    service,
                    set_learning_rate,
                    SetLearningRateRequest {
                        run,
                        by,
                        reason,
                        factor
                    }
                ),
                Request::SkipStep | Request::ScaleLearningRate { .. } | Request::RollBack => Err(
                    tonic::Status::invalid_argument("only an observer can make this request"),
                ),
            }
        };
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, call).await });
        match answer {
            Ok(Ok((step, seq))) => Ok(CarriedOut {
                seq,
                step: Step(step),
            }),
            Ok(Err(status)) if status.code() == Code::Unavailable => Err(Error::new(
                ErrorKind::System,
                format!("{}: {}", status.message(), self.addr),
            )
            .hint("check with `host runs show` whether the request was carried out")),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(Error::new(
                ErrorKind::System,
                format!(
                    "the training loop did not reach a step boundary in time: {}",
                    self.addr
                ),
            )
            .hint("send the request again; this one is dropped")),
        }
    }
}
