use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream::{BoxStream, unfold};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthService;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::call::Call;
use crate::gate::Streams;

/// `grpc.health.v1`. Each service is healthy until the server stops.
#[derive(Debug)]
pub(crate) struct Health {
    /// Names of the known services.
    pub(crate) services: Vec<&'static str>,
    pub(crate) stopping: watch::Receiver<bool>,
    /// Permits for streams. Streams of health and streams of events share these permits.
    pub(crate) places: Arc<Semaphore>,
}

type Piece = Result<HealthCheckResponse, Status>;

impl Health {
    /// Whether a service exists. The empty name stands for the whole server.
    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

#[tonic::async_trait]
impl HealthService for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if !self.knows(service) {
            return Err(Status::not_found(format!("unknown service: {service:?}")));
        }
        let stopping = *self.stopping.borrow();
        Ok(Response::new(response(status(stopping))))
    }

    type WatchStream = BoxStream<'static, Piece>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place =
            place.map_err(|_| Status::resource_exhausted("too many streams; try again later"))?;
        let known = self.knows(&request.get_ref().service);
        let call = request.extensions().get::<Call>().cloned();
        let pieces = pieces(known, self.stopping.clone(), (call, place));
        Ok(Streams::mark(Response::new(Box::pin(pieces))))
    }
}

/// Returns a stream of the service's status. The stream sends the current status immediately, and an update
/// when the server stops. The protocol allows a service to be added later, so the stream of an unknown
/// service also stays open.
fn pieces(
    known: bool,
    stopping: watch::Receiver<bool>,
    holds: (Option<Call>, OwnedSemaphorePermit),
) -> impl Stream<Item = Piece> {
    unfold(
        (None, stopping, holds),
        move |(told, mut stopping, holds)| async move {
            let now = match told {
                None => *stopping.borrow(),
                Some(true) => return None,
                Some(false) => {
                    // An error means that the `Serving` was dropped, so the server stops.
                    let _ = stopping.wait_for(|stopping| *stopping).await;
                    true
                }
            };
            let status = match known {
                true => status(now),
                false if told.is_none() => ServingStatus::ServiceUnknown,
                false => return None,
            };
            Some((Ok(response(status)), (Some(now), stopping, holds)))
        },
    )
}

fn status(stopping: bool) -> ServingStatus {
    match stopping {
        true => ServingStatus::NotServing,
        false => ServingStatus::Serving,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}
