use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::BoxFuture;
use host_proto::tensorboard::data::tensor_board_data_provider_server as tensorboard;
use host_proto::tracker::v1::{control_service_server, tracker_service_server};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::service::Routes;
use tower::{Layer, Service, ServiceExt as _};

use crate::access::{Access, Scope, Shown};
use crate::answer::Answer;
use crate::budget::Budget;
use crate::call::{Call, Calls};
use crate::guesses::Guesses;
use crate::limits::Limits;
use crate::request_body::RequestBody;

/// Maximum size of a request, which contains only names and numbers.
pub(crate) const REQUEST_BYTES: usize = 64 << 10;
/// Maximum size of TensorBoard's requests, which name every run and metric that TensorBoard shows.
pub(crate) const TENSORBOARD_REQUEST_BYTES: usize = 1 << 20;
/// Bytes of the server's budget that a call uses in addition to its headers, request and response.
const CALL_BYTES: usize = 8 << 10;

/// Callback for warnings. It may block, because it is called on a thread for blocking calls.
pub(crate) type Warn = Arc<dyn Fn(String) + Send + Sync>;

/// The layer in front of all services. It checks permissions and limits the cost of calls.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Rules>);

struct Rules {
    access: Arc<Access>,
    /// The scope that calls of `ControlService` need.
    control: Scope,
    limits: Limits,
    budget: Arc<Budget>,
    guesses: Guesses,
    warn: Option<Warn>,
}

/// The services behind the gate.
#[derive(Clone)]
pub(crate) struct Guarded {
    rules: Arc<Rules>,
    routes: Routes,
}

/// Marks a response as a stream, whose messages are produced over time. Stored in the response's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams;

impl Streams {
    pub(crate) fn mark<T>(mut response: tonic::Response<T>) -> tonic::Response<T> {
        response.extensions_mut().insert(Self);
        response
    }
}

impl Gate {
    pub(crate) fn new(
        access: Arc<Access>,
        control: Scope,
        limits: Limits,
        budget: Arc<Budget>,
        warn: Option<Warn>,
    ) -> Self {
        Self(Arc::new(Rules {
            access,
            control,
            limits,
            budget,
            guesses: Guesses::default(),
            warn,
        }))
    }
}

impl Layer<Routes> for Gate {
    type Service = Guarded;

    fn layer(&self, routes: Routes) -> Guarded {
        let rules = Arc::clone(&self.0);
        Guarded { rules, routes }
    }
}

impl Service<Request<Body>> for Guarded {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // `Routes` is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { rules, routes } = self.clone();
        Box::pin(async move {
            let answered = rules.answer(routes, request).await;
            Ok(answered.unwrap_or_else(Status::into_http))
        })
    }
}

impl Rules {
    async fn answer(
        &self,
        routes: Routes,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let calls = request.extensions().get::<Arc<Calls>>().cloned();
        let calls = calls.ok_or_else(|| Status::internal("a call without a connection"))?;
        let call = Calls::begin(&calls)?;
        let (scope, most) = self.service(request.uri().path());
        let is_needed = calls.must_prove() || self.access.is_needed(scope);
        let shown = is_needed.then(|| self.access.look(request.headers()));
        let controls = matches!(shown, Some(Shown::Controls { .. }));
        let charge = |bytes| self.budget.charge(&calls, bytes, controls);
        let fixed = charge(CALL_BYTES + header_bytes(request.headers()))?;
        let held = Arc::new(Mutex::new(charge(0)?));
        if let Some(shown) = shown {
            self.admit(&calls, scope, shown).await?;
        }
        request.extensions_mut().insert::<Call>(call.clone());
        let request = request.map(|body| {
            let held = Arc::clone(&held);
            Body::new(RequestBody::new(body, most, self.limits.request, held))
        });
        let Ok(response) = routes.oneshot(request).await;
        // By now the request has been decoded and handled.
        drop(held);

        let is_stream = response.extensions().get::<Streams>().is_some();
        let (parts, body) = response.into_parts();
        // The body of a stream already holds a clone of the call. It drops the clone when the server ends the
        // stream of an unresponsive client.
        let call = (!is_stream).then_some(call);
        let mut answer = Answer::new(body, fixed, calls, is_stream, call);
        if !is_stream {
            poll_fn(|context| Poll::Ready(answer.make(context))).await?;
        }
        Ok(Response::from_parts(parts, Body::new(answer)))
    }

    /// Returns a service's scope and its maximum request size.
    fn service(&self, path: &str) -> (Scope, usize) {
        let service = path.split('/').nth(1).unwrap_or_default();
        match service {
            tracker_service_server::SERVICE_NAME => (Scope::Read, REQUEST_BYTES),
            control_service_server::SERVICE_NAME => (self.control, REQUEST_BYTES),
            tensorboard::SERVICE_NAME => (Scope::Read, TENSORBOARD_REQUEST_BYTES),
            // Health and reflection. The latter only describes the services.
            _ => (Scope::Public, REQUEST_BYTES),
        }
    }

    /// Checks a call's token. After several wrong tokens from a peer, each further check for this peer is
    /// delayed.
    ///
    /// # Errors
    /// Returns an error in three cases: the token does not permit the call; the delay would be too long; or
    /// the connection was accepted on the condition that it sends the control token, but neither this call
    /// nor an earlier call sent it.
    async fn admit(&self, calls: &Calls, scope: Scope, shown: Shown) -> Result<(), Status> {
        let peer = calls.peer();
        match shown {
            Shown::Nothing | Shown::Reads { is_long: true } | Shown::Controls { is_long: true } => {
            }
            Shown::Unknown | Shown::Reads { .. } | Shown::Controls { .. } => {
                let wait = self.guesses.turn(peer, Instant::now())?;
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
            }
        }
        if shown == Shown::Unknown
            && let Some(warning) = self.guesses.wrong(peer, Instant::now())
            && let Some(warn) = &self.warn
        {
            let warn = Arc::clone(warn);
            tokio::task::spawn_blocking(move || warn(warning));
        }
        if calls.must_prove() {
            if !matches!(shown, Shown::Controls { .. }) {
                return Err(Status::resource_exhausted("too many connections"));
            }
            calls.prove();
        }
        self.access.check(scope, shown)
    }
}

fn header_bytes(headers: &HeaderMap) -> usize {
    let headers = headers.iter();
    headers
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}
