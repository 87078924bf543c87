use std::sync::Arc;

use host_core::{Ask, Asker, CarriedOut, Request, RequestQueue};
use host_proto::tracker::v1 as proto;
use proto::control_service_server::ControlService;
use tokio::sync::oneshot;
use tonic::{Response, Status};

use crate::source::{Runs, text};

/// Maximum lengths of a client's name and of a reason, in bytes.
const NAME_BYTES: usize = 64;
const REASON_BYTES: usize = 1024;

/// `ControlService` of `tracker.v1`, for the run that this process trains.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) runs: Arc<Runs>,
    /// Queue of requests to the training loop. `None` if this process trains no run.
    pub(crate) requests: Option<RequestQueue>,
}

impl Control {
    async fn ask(
        &self,
        run: &str,
        by: &str,
        reason: String,
        request: Request,
    ) -> Result<CarriedOut, Status> {
        if by.len() > NAME_BYTES || !by.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Status::invalid_argument(format!(
                "`by` must have at most {NAME_BYTES} printable ASCII characters, without spaces"
            )));
        }
        if reason.len() > REASON_BYTES || reason.chars().any(char::is_control) {
            return Err(Status::invalid_argument(format!(
                "`reason` must be a single line of at most {REASON_BYTES} bytes"
            )));
        }
        request
            .check()
            .map_err(|error| Status::invalid_argument(text(&error)))?;
        let run = self.runs.find(run).await?;
        let Some(requests) = &self.requests else {
            return Err(self.runs.trained_elsewhere(&run).await);
        };
        let ended = || Status::unavailable(format!("the training of run {run} has ended"));
        let (sender, answer) = oneshot::channel();
        let ask = Ask { request, reason };
        let by = RequestQueue::client(by);
        match requests.ask(by, ask, Box::new(Caller(sender))) {
            Ok(true) => answer.await.map_err(|_| ended()),
            Ok(false) => Err(Status::resource_exhausted(format!(
                "{} requests are already waiting for the training loop",
                RequestQueue::CAPACITY
            ))),
            Err(_) => Err(ended()),
        }
    }
}

/// A call that waits until its request is carried out. If the call is cancelled or its deadline passes, the
/// channel's receiver is dropped.
struct Caller(oneshot::Sender<CarriedOut>);

impl Asker for Caller {
    fn waits(&self) -> bool {
        !self.0.is_closed()
    }

    fn answer(self: Box<Self>, at: CarriedOut) {
        // If the call was cancelled in the meantime, no client waits for the response.
        let _ = self.0.send(at);
    }
}

/// The body of a method. It sends one request and returns when the request has been carried out.
macro_rules! method {
    ($self:ident, $request:ident, $response:ident, $make:expr) => {{
        let request = $request.into_inner();
        let wanted = $make(&request);
        let CarriedOut { seq, step } = $self
            .ask(&request.run, &request.by, request.reason, wanted)
            .await?;
        Ok(Response::new(proto::$response { step: step.0, seq }))
    }};
}

#[tonic::async_trait]
impl ControlService for Control {
    async fn stop_run(
        &self,
        request: tonic::Request<proto::StopRunRequest>,
    ) -> Result<Response<proto::StopRunResponse>, Status> {
        method!(self, request, StopRunResponse, |_: &_| Request::Stop)
    }

    async fn write_checkpoint(
        &self,
        request: tonic::Request<proto::WriteCheckpointRequest>,
    ) -> Result<Response<proto::WriteCheckpointResponse>, Status> {
        method!(self, request, WriteCheckpointResponse, |_: &_| {
            Request::Checkpoint
        })
    }

    async fn evaluate(
        &self,
        request: tonic::Request<proto::EvaluateRequest>,
    ) -> Result<Response<proto::EvaluateResponse>, Status> {
        method!(self, request, EvaluateResponse, |_: &_| Request::Evaluate)
    }

    async fn pause_run(
        &self,
        request: tonic::Request<proto::PauseRunRequest>,
    ) -> Result<Response<proto::PauseRunResponse>, Status> {
        method!(self, request, PauseRunResponse, |_: &_| Request::Pause)
    }

    async fn continue_run(
        &self,
        request: tonic::Request<proto::ContinueRunRequest>,
    ) -> Result<Response<proto::ContinueRunResponse>, Status> {
        method!(self, request, ContinueRunResponse, |_: &_| {
            Request::Continue
        })
    }

    async fn set_learning_rate(
        &self,
        request: tonic::Request<proto::SetLearningRateRequest>,
    ) -> Result<Response<proto::SetLearningRateResponse>, Status> {
        let make = |request: &proto::SetLearningRateRequest| Request::SetLearningRate {
            factor: request.factor,
        };
        method!(self, request, SetLearningRateResponse, make)
    }
}
