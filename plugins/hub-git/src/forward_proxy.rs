//! Sends plain HTTP requests through an HTTP proxy. For the proxy, the request line must contain the full
//! URL. This module is necessary because ureq only supports proxies that open a tunnel, and HTTP proxies open
//! a tunnel only for HTTPS.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ureq::Proxy;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// Resolves every host to the proxy's address.
#[derive(Debug)]
pub(crate) struct ToProxy(pub(crate) Proxy);

/// Rewrites the request line for a proxy. Each connection carries one request, because the agent keeps no
/// idle connections.
#[derive(Debug)]
pub(crate) struct ForwardConnector(pub(crate) Proxy);

/// A connection to a proxy.
#[derive(Debug)]
struct ToForward {
    inner: Box<dyn Transport>,
    /// `http://host:port`, which is inserted before the path.
    target: String,
    /// The header line with the proxy's credentials; may be empty.
    authorization: String,
    has_begun: bool,
}

impl Resolver for ToProxy {
    fn resolve(
        &self,
        _uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        DefaultResolver::default().resolve(self.0.uri(), config, timeout)
    }
}

impl<In: Transport> Connector<In> for ForwardConnector {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(inner) = chained else {
            return Ok(None);
        };
        let host = details.uri.authority().map_or("", |authority| {
            let text = authority.as_str();
            text.rsplit_once('@').map_or(text, |(_, host)| host)
        });
        let authorization = match (self.0.username(), self.0.password()) {
            (None, None) => String::new(),
            (user, password) => {
                let pair = format!(
                    "{}:{}",
                    user.unwrap_or_default(),
                    password.unwrap_or_default()
                );
                let pair = BASE64_STANDARD.encode(pair);
                format!("Proxy-Authorization: Basic {pair}\r\n")
            }
        };
        Ok(Some(Box::new(ToForward {
            inner: inner.boxed(),
            target: format!("http://{host}"),
            authorization,
            has_begun: false,
        })))
    }
}

impl ToForward {
    /// Returns the beginning of a request, rewritten for a proxy.
    fn rewritten(&self, head: &[u8]) -> Vec<u8> {
        let path = head
            .iter()
            .position(|byte| *byte == b' ')
            .map_or(0, |at| at + 1);
        let line = head.windows(2).position(|two| two == b"\r\n");
        let line = line.map_or(head.len(), |at| at + 2);
        let parts = [
            &head[..path],
            self.target.as_bytes(),
            &head[path..line],
            self.authorization.as_bytes(),
            &head[line..],
        ];
        parts.concat()
    }
}

impl Transport for ToForward {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if std::mem::replace(&mut self.has_begun, true) {
            return self.inner.transmit_output(amount, timeout);
        }
        let head = self.inner.buffers().output()[..amount].to_vec();
        let mut rest = &*self.rewritten(&head);
        while !rest.is_empty() {
            let output = self.inner.buffers().output();
            let (now, later) = rest.split_at(rest.len().min(output.len()));
            output[..now.len()].copy_from_slice(now);
            rest = later;
            self.inner.transmit_output(now.len(), timeout)?;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}
