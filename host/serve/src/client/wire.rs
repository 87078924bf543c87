use std::net::IpAddr;
use std::time::Duration;

use host_core::{Error, ErrorKind, Result};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::tls::Trust;

/// Timeout of a connection attempt.
const CONNECT: Duration = Duration::from_secs(30);
/// Interval of keepalive pings, and timeout for the response. A dead server is detected after twice this
/// time.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A server's address and credentials.
#[derive(Clone)]
pub struct Remote {
    /// `HOST:PORT`, or `https://HOST:PORT` for TLS.
    pub addr: String,
    /// The token for reading or for control.
    pub token: Option<String>,
    /// How to verify the server with TLS.
    pub trust: Option<Trust>,
}

impl Remote {
    /// Returns a server without TLS and without a token.
    pub fn at(addr: &str) -> Self {
        Self {
            addr: addr.to_owned(),
            token: None,
            trust: None,
        }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("addr", &self.addr)
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

/// A connection that sends its token with each call.
pub(super) type Wire = InterceptedService<Channel, Bearer>;

/// The value of the `authorization` header.
#[derive(Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer(…)")
    }
}

pub(super) async fn connect(remote: &Remote) -> Result<Wire> {
    let addr = &remote.addr;
    let (has_tls, place) = match addr.split_once("://") {
        Some(("https", place)) => (true, place),
        Some(("http", place)) => (false, place),
        Some((scheme, _)) => {
            return Err(no_address(addr, &format!("unsupported scheme {scheme}")));
        }
        None => (remote.trust.is_some(), addr.as_str()),
    };
    // The scheme is `http` even with TLS: the connector below handles TLS, and tonic itself knows only plain
    // connections.
    let uri: Uri = format!("http://{place}")
        .parse()
        .map_err(|e| no_address(addr, &e))?;
    let host = uri.host().unwrap_or_default();
    let host = host.trim_matches(['[', ']']).to_owned();
    let Some(port) = uri.port_u16() else {
        return Err(no_address(addr, &"the port is missing"));
    };
    if !has_tls && remote.token.is_some() && !is_this_machine(&host) {
        let message = format!("the token would be sent without encryption to {addr}");
        return Err(Error::new(ErrorKind::Config, message).hint(
            "pass https://HOST:PORT with --tls-fingerprint as printed by the server, or --tls-ca FILE",
        ));
    }
    let endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    let channel = match (has_tls, &remote.trust) {
        (false, _) => endpoint.connect().await,
        (true, None) => {
            return Err(Error::new(
                ErrorKind::Config,
                format!("cannot verify the server at {addr}"),
            )
            .hint("pass --tls-fingerprint as printed by the server, or --tls-ca FILE"));
        }
        (true, Some(trust)) => {
            let tls = trust.connector()?;
            let name = ServerName::try_from(host.clone()).map_err(|e| no_address(addr, &e))?;
            let connector = tower::service_fn(move |_: Uri| {
                let (tls, name, host) = (tls.clone(), name.clone(), host.clone());
                async move {
                    let stream = TcpStream::connect((host.as_str(), port)).await?;
                    stream.set_nodelay(true)?;
                    tls.connect(name, stream).await.map(TokioIo::new)
                }
            });
            endpoint.connect_with_connector(connector).await
        }
    };
    let channel = channel.map_err(|e| {
        Error::new(
            ErrorKind::System,
            format!("cannot connect to {addr}: {}", innermost(&e)),
        )
        .hint("check that the run is live; start `host serve` for runs that have ended")
    })?;
    let bearer = remote
        .token
        .as_ref()
        .map(|token| format!("Bearer {token}").parse());
    let mut bearer: Option<MetadataValue<Ascii>> = bearer.transpose().map_err(|_| {
        Error::new(
            ErrorKind::Config,
            "the token has characters that are not allowed in a header",
        )
        .hint("use a token of printable ASCII characters")
    })?;
    if let Some(bearer) = &mut bearer {
        bearer.set_sensitive(true);
    }
    Ok(InterceptedService::new(channel, Bearer(bearer)))
}

fn is_this_machine(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn no_address(addr: &str, why: &dyn std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("invalid address {addr:?}: {why}"),
    )
    .hint("pass HOST:PORT as printed by `host run`")
}

/// Returns the message of an error's root cause. The message of tonic's error is only "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_without_encryption_only_to_this_machine() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let refusal = |addr: &str| {
            let remote = Remote {
                token: Some("secret".to_owned()),
                ..Remote::at(addr)
            };
            let error = runtime.block_on(connect(&remote)).expect_err("refused");
            assert!(!format!("{error:?}").contains("secret"));
            error
        };
        for elsewhere in ["gpu1:6006", "http://192.0.2.1:1", "[2001:db8::1]:1"] {
            let error = refusal(elsewhere);
            assert!(error.message().contains("without encryption"), "{error}");
            assert!(
                error
                    .hint_text()
                    .expect("a hint")
                    .contains("--tls-fingerprint")
            );
        }
        // Sending a token to this machine without encryption is allowed, so these connections fail only
        // because no server listens there.
        for here in ["127.0.0.1:1", "[::1]:1", "localhost:1"] {
            let error = refusal(here);
            assert!(error.message().contains("cannot connect"), "{error}");
        }
    }
}
