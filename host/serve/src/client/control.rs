use std::time::Duration;

use host_core::{Ask, CarriedOut, Error, ErrorKind, Request, Result, Step};
use host_proto::tracker::v1 as proto;
use proto::control_service_client::ControlServiceClient;
use tonic::Code;

use super::Client;

/// How long a request waits for the loop, unless it is told otherwise: a step may be long, and an
/// evaluation longer.
const PATIENCE: Duration = Duration::from_secs(600);

/// One call of the service with the fields that all its requests have.
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
    /// Asks the loop of a run for something, as `by`, and waits until it is carried out. An empty `run`
    /// is the only one that the server trains.
    ///
    /// # Errors
    /// If the token does not let it, the request cannot be, the server does not train the run, the
    /// training ended before, or there is no answer.
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
                    tonic::Status::invalid_argument("only an observer may ask for that"),
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
            .hint("the run's events say whether it was carried out: `host runs show`")),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(Error::new(
                ErrorKind::System,
                format!(
                    "the loop did not come to a step boundary in time: {}",
                    self.addr
                ),
            )
            .hint("it is not carried out any more; ask again")),
        }
    }
}
