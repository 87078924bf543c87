use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, SystemTime};

use std::sync::{Mutex, PoisonError};

use ureq::http::{HeaderMap, Request, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector, TcpConnector};
use ureq::{Agent, Body, ProxyProtocol, SendBody};

use crate::forward_proxy::{ForwardConnector, ToProxy};
use crate::limit::Limit;
use crate::network::Network;
use crate::proxy;
use crate::{Error, Result, patience};

/// An HTTP client for one delivery. Its requests stop when the delivery is cancelled or its deadline is
/// reached.
pub(crate) struct Http<'a> {
    network: &'a Network,
    root_certs: RootCerts,
    /// One agent for each route in use.
    agents: Mutex<Vec<(Way, Agent)>>,
    limit: &'a Limit<'a>,
    origins: Mutex<BTreeSet<String>>,
}

/// A route: the proxy as configured, and whether the URL is plain HTTP.
type Way = (Option<String>, bool);

/// A server's response with any status.
#[derive(Debug)]
pub(crate) struct Answer {
    /// `https://host:port` of the server.
    server: String,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// Size limit of a response body. It must be large, because the response for a multipart upload contains a
/// URL for each part.
const ANSWER_BYTES: u64 = 64 << 20;

/// Maximum number of redirects that are followed for one request.
const REDIRECTS: u32 = 5;

/// The response to a request for a large file.
pub(crate) enum Got {
    /// The content, starting at this byte offset.
    Body(u64, Body),
    /// The server does not return the file.
    Refusal(Answer),
}

impl<'a> Http<'a> {
    /// Calls `work` with a client. Meanwhile, a separate thread checks the limit. When the limit is reached,
    /// the thread closes the connections, so that `work` does not wait any longer for a server.
    pub(crate) fn during<R>(
        network: &'a Network,
        limit: &'a Limit<'a>,
        work: impl FnOnce(&Self) -> Result<R>,
    ) -> Result<R> {
        let http = Self {
            network,
            root_certs: network.root_certs()?,
            agents: Mutex::default(),
            limit,
            origins: Mutex::default(),
        };
        std::thread::scope(|scope| {
            // Dropping the sender ends the thread, even if `work` panics.
            let (_running, ended) = sync_channel::<()>(0);
            let http = &http;
            std::thread::Builder::new()
                .name("hub-git cancel".to_owned())
                .spawn_scoped(scope, move || {
                    while ended.recv_timeout(Duration::from_millis(20))
                        == Err(RecvTimeoutError::Timeout)
                    {
                        if limit.check().is_err() {
                            for (_, agent) in http.lock().drain(..) {
                                agent.shutdown();
                            }
                        }
                    }
                })
                .map_err(|error| Error::Temporary(format!("cannot start a thread: {error}")))?;
            work(http)
        })
    }

    /// Sends a request and reads the response. Does not follow redirects.
    ///
    /// # Errors
    /// Returns an error if there was no response. A response with any status is `Ok`.
    pub(crate) fn send(&self, request: Request<SendBody<'_>>) -> Result<Answer> {
        self.limit.check()?;
        let url = request.uri().to_string();
        let server = server(&url);
        let response = self.agent(&url)?.run(request);
        response
            .and_then(|response| read(server.clone(), response))
            .map_err(|error| self.unreached(&server, &error))
    }

    /// Returns the agent for a URL.
    fn agent(&self, url: &str) -> Result<Agent> {
        let proxy = self.network.proxy(url);
        let way = (proxy.map(str::to_owned), url.starts_with("http://"));
        let mut agents = self.lock();
        if let Some((_, agent)) = agents.iter().find(|(there, _)| *there == way) {
            return Ok(agent.clone());
        }
        let proxy = proxy.map(proxy::parsed).transpose()?;
        let new = self.new_agent(proxy, way.1);
        agents.push((way, new.clone()));
        Ok(new)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Way, Agent)>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_agent(&self, proxy: Option<ureq::Proxy>, is_plain: bool) -> Agent {
        let secs = |secs| Some(Duration::from_secs(secs));
        let tls = TlsConfig::builder().root_certs(self.root_certs.clone());
        let config = Agent::config_builder()
            .user_agent(concat!("hub-git/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .http_status_as_error(false)
            // The agent does not follow redirects, which could send the token or the file to another server.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(self.limit.remaining()))
            .timeout_connect(secs(30))
            .timeout_per_write(secs(60))
            // A server may check a file of many gigabytes before it responds.
            .timeout_recv_response(secs(600))
            .timeout_recv_body(secs(60));
        match proxy {
            Some(proxy) if is_plain && proxy.protocol() == ProxyProtocol::Http => {
                let config = config.proxy(None).max_idle_connections(0).build();
                let connector =
                    ().chain(TcpConnector::default())
                        .chain(ForwardConnector(proxy.clone()));
                Agent::with_parts(config, connector, ToProxy(proxy))
            }
            proxy => config.proxy(proxy).build().new_agent(),
        }
    }

    /// Records that requests to `server` need the LFS server's credentials. `server` must have the same
    /// origin as the LFS server.
    pub(crate) fn wants_credentials(&self, server: &str) {
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.insert(server.to_owned());
    }

    /// Whether `wants_credentials` was called for this server.
    pub(crate) fn gets_credentials(&self, server: &str) -> bool {
        let origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.contains(server)
    }

    /// Sends a GET request and follows redirects. The content begins at byte `from` if the server supports
    /// this, otherwise at byte 0. `header` is sent only to the server of `url`, not to a server that a
    /// redirect names.
    ///
    /// # Errors
    /// Returns an error if there was no response.
    pub(crate) fn get(
        &self,
        url: &str,
        header: &BTreeMap<String, String>,
        from: u64,
    ) -> Result<Got> {
        let mut at = url.to_owned();
        let mut led = 0;
        loop {
            self.limit.check()?;
            let mut request = Request::get(&at);
            if server(&at) == server(url) {
                for (name, value) in header {
                    request = request.header(name, value);
                }
            }
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let request = request
                .body(SendBody::none())
                .map_err(|error| bad_request(&at, &error))?;
            let server = server(&at);
            let unreached = |error| self.unreached(&server, &error);
            let response = self.agent(&at)?.run(request).map_err(unreached)?;
            let to = leads(response.status().as_u16(), response.headers(), &at);
            match (response.status().as_u16(), to) {
                (200, _) => return Ok(Got::Body(0, response.into_body())),
                (206, _) => return Ok(Got::Body(from, response.into_body())),
                (_, Some(to)) if led < REDIRECTS => {
                    at = to?;
                    led += 1;
                }
                _ => {
                    let answer = read(server.clone(), response).map_err(unreached)?;
                    if !self.waits(&answer)? {
                        return Ok(Got::Refusal(answer));
                    }
                }
            }
        }
    }

    /// Returns the error for a server that did not respond. A signed URL is as secret as a token, so errors
    /// contain only the name of the server.
    pub(crate) fn unreached(&self, server: &str, error: &ureq::Error) -> Error {
        if let Err(over) = self.limit.check() {
            return over;
        }
        let words = format!("cannot reach {server}: {error}");
        match error {
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::BadUri(_) => {
                Error::Permanent(words)
            }
            _ => Error::Temporary(words),
        }
    }

    /// Sends a request, and repeats it as long as the server asks to retry later. Each wait is reported as a
    /// warning. If a wait would exceed the limit, returns the response instead.
    ///
    /// # Errors
    /// Returns an error if there was no response, or the limit was reached.
    pub(crate) fn patiently(&self, mut make: impl FnMut() -> Result<Answer>) -> Result<Answer> {
        loop {
            let answer = make()?;
            if !self.waits(&answer)? {
                return Ok(answer);
            }
        }
    }

    /// Waits if the server asks to retry later and there is time left. Returns whether it waited.
    fn waits(&self, answer: &Answer) -> Result<bool> {
        let wait = patience::wanted(answer.status, answer.retry_after(), SystemTime::now());
        let Some(wait) = wait.filter(|wait| *wait < self.limit.remaining()) else {
            return Ok(false);
        };
        self.limit.warn(&format!(
            "{} is busy ({}): the next attempt is in {:.0} s",
            answer.server,
            answer.status,
            wait.as_secs_f64().ceil()
        ));
        self.limit.sleep(wait)?;
        Ok(true)
    }

    /// Sends a request, waits when the server asks for it, and follows redirects. `make` receives the URL and
    /// whether it is on the original server, because secrets must not be sent to another server.
    ///
    /// # Errors
    /// Returns an error if there was no response, if a redirect goes from HTTPS to plain HTTP, or if there
    /// are too many redirects.
    pub(crate) fn follow(
        &self,
        url: &str,
        mut make: impl FnMut(&str, bool) -> Result<Answer>,
    ) -> Result<(String, Answer)> {
        let mut at = url.to_owned();
        for _ in 0..=REDIRECTS {
            let is_home = server(&at) == server(url);
            let answer = self.patiently(|| make(&at, is_home))?;
            match leads(answer.status, &answer.headers, &at) {
                Some(to) => at = to?,
                None => return Ok((at, answer)),
            }
        }
        let words = format!("{} redirected the request too often", server(url));
        Err(Error::Permanent(words))
    }

    /// Posts JSON with a media type, waits when the server asks for it, and follows redirects. `header` is
    /// not sent to another server.
    ///
    /// # Errors
    /// Returns an error if there was no response, or if the request was redirected to another server that
    /// refuses it without the header.
    pub(crate) fn post(
        &self,
        url: &str,
        media_type: &str,
        header: &BTreeMap<String, String>,
        body: &serde_json::Value,
    ) -> Result<Answer> {
        let text = body.to_string();
        let (at, answer) = self.follow(url, |at, is_home| {
            let mut request = Request::post(at)
                .header("Accept", media_type)
                .header("Content-Type", media_type);
            for (name, value) in header.iter().filter(|_| is_home) {
                request = request.header(name, value);
            }
            let mut bytes = text.as_bytes();
            let request = request
                .header("Content-Length", text.len())
                .body(SendBody::from_reader(&mut bytes))
                .map_err(|error| bad_request(at, &error))?;
            self.send(request)
        })?;
        if server(&at) != server(url) && !header.is_empty() && matches!(answer.status, 401 | 403) {
            let (from, to) = (server(url), server(&at));
            return Err(Error::Permanent(format!(
                "{from} redirects to {to}, where its token is not sent: set repo to the repository's URL on that server"
            )));
        }
        Ok(answer)
    }

    pub(crate) fn limit(&self) -> &'a Limit<'a> {
        self.limit
    }
}

/// Reads a response to its end.
fn read(server: String, response: Response<Body>) -> Result<Answer, ureq::Error> {
    let (parts, body) = response.into_parts();
    let body = body.into_with_config().limit(ANSWER_BYTES).read_to_vec()?;
    Ok(Answer {
        server,
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
    })
}

impl Answer {
    /// Returns the response if its status is a success. Otherwise, returns an error in which the server is
    /// called `server`.
    pub(crate) fn success(self, server: &str) -> Result<Self> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        Err(refused(
            server,
            self.status,
            self.retry_after(),
            &self.message(),
        ))
    }

    /// Returns the server's message, as one line.
    pub(crate) fn message(&self) -> String {
        message(&String::from_utf8_lossy(&self.body))
    }

    /// `https://host:port` of the server.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Returns the error message if the server reports a temporary error.
    pub(crate) fn trouble(&self) -> Option<String> {
        match refused(&self.server, self.status, None, &self.message()) {
            Error::Temporary(words) => Some(words),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<&str> {
        self.headers
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
    }
}

/// Returns the error for a status other than success.
pub(crate) fn refused(server: &str, status: u16, retry_after: Option<&str>, words: &str) -> Error {
    let why = match status {
        300..=399 => "the repository has moved",
        401 => "the token was not accepted",
        403 => "the token lacks permission",
        404 | 410 => "no such repository, no Git LFS, or the token has no access",
        408 | 425 | 429 => "the server is busy",
        413 => "the file is too large for this server",
        500.. => "the server failed",
        _ => "the request was refused",
    };
    let mut text = format!("{server}: {why} ({status})");
    if let Some(after) = retry_after {
        text += &format!(", retry after {after}");
    }
    if !words.is_empty() {
        text += &format!(": {words}");
    }
    match status {
        403 if crate::refusal::is_closed(words) => Error::Temporary(text),
        408 | 425 | 429 | 500 | 502.. => Error::Temporary(text),
        _ => Error::Permanent(text),
    }
}

/// Returns the error for an unusable URL or header that a server returned.
pub(crate) fn bad_request(url: &str, error: &ureq::http::Error) -> Error {
    let server = server(url);
    Error::Permanent(format!(
        "{server} returned an invalid URL or header: {error}"
    ))
}

/// Returns the target if a response is a redirect.
///
/// # Errors
/// Returns an error if the redirect goes from HTTPS to plain HTTP, or to a URL that is not HTTP.
pub(crate) fn leads(status: u16, headers: &HeaderMap, from: &str) -> Option<Result<String>> {
    let location = headers
        .get("location")
        .and_then(|value| value.to_str().ok())?;
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let (scheme, rest) = from.split_once("://").unwrap_or(("https", from));
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let lower = location.to_ascii_lowercase();
    let to = if lower.starts_with("http://") || lower.starts_with("https://") {
        let (scheme, rest) = location.split_once("://").unwrap_or_default();
        format!("{}://{rest}", scheme.to_ascii_lowercase())
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.contains("://") {
        let words = format!("{} redirects to a URL that is not HTTP", server(from));
        return Some(Err(Error::Permanent(words)));
    } else {
        let path = from.split(['?', '#']).next().unwrap_or(from);
        let folder = path.rsplit_once('/').map_or(path, |(folder, _)| folder);
        format!("{folder}/{location}")
    };
    if scheme == "https" && to.starts_with("http://") {
        let words = format!(
            "{} redirects from https to plain http, which is not followed: {}",
            server(from),
            server(&to)
        );
        return Some(Err(Error::Permanent(words)));
    }
    Some(Ok(to))
}

/// `https://host:port` of a URL.
pub(crate) fn server(url: &str) -> String {
    crate::remote::origin(url)
        .map_or("the server", |origin| origin.trim_end_matches('/'))
        .to_owned()
}

/// Returns a server's message: the `message` of a JSON response, else the beginning of its text.
fn message(body: &str) -> String {
    let json: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let message = json.as_ref().and_then(|json| {
        ["message", "error"]
            .iter()
            .find_map(|key| json.get(key)?.as_str())
    });
    let text = message.unwrap_or(body);
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(500)
        .collect()
}

/// A reader that returns an error once the limit is reached.
pub(crate) struct Limited<'a, R> {
    pub(crate) inner: R,
    pub(crate) limit: &'a Limit<'a>,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.limit.check().map_err(io::Error::other)?;
        self.inner.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_statuses_are_distinguished_from_permanent_ones() {
        for (status, temporary) in [
            (401, false),
            (403, false),
            (404, false),
            (413, false),
            (422, false),
            (307, false),
            (408, true),
            (429, true),
            (500, true),
            (501, false),
            (503, true),
        ] {
            let error = refused("https://x", status, None, "");
            assert_eq!(matches!(error, Error::Temporary(_)), temporary, "{error}");
        }
        let closed = refused("https://x", 403, None, "GitLab is in read-only mode");
        assert!(matches!(closed, Error::Temporary(_)), "{closed}");
        let busy = refused("https://x", 429, Some("30"), "slow down");
        assert_eq!(
            busy.to_string(),
            "https://x: the server is busy (429), retry after 30: slow down"
        );
    }

    #[test]
    fn a_servers_message_is_found_and_shortened() {
        assert_eq!(
            message(r#"{"message": "no  such\nthing"}"#),
            "no such thing"
        );
        assert_eq!(message("<html>\n nope"), "<html> nope");
        assert_eq!(message(&"x".repeat(2000)).len(), 500);
        assert_eq!(server("https://a.b:1/c?signature=d"), "https://a.b:1");
    }
}
