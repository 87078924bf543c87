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

/// HTTP within the limits of one delivery.
pub(crate) struct Http<'a> {
    network: &'a Network,
    root_certs: RootCerts,
    /// One for each way out that was taken, by the proxy and whether it is asked for whole URLs.
    agents: Mutex<Vec<(Way, Agent)>>,
    limit: &'a Limit<'a>,
    origins: Mutex<BTreeSet<String>>,
}

/// A way out: the proxy as it is written, and whether the URL is plain HTTP.
type Way = (Option<String>, bool);

/// A server's answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    /// `https://host:port` of whom we asked.
    server: String,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// The longest answer; a multipart upload's has a URL for every part.
const ANSWER_BYTES: u64 = 64 << 20;

/// How often what is asked for may be elsewhere.
const REDIRECTS: u32 = 5;

/// What came of asking for something large.
pub(crate) enum Got {
    /// Its content, from this byte on.
    Body(u64, Body),
    /// The server does not give it.
    Refusal(Answer),
}

impl<'a> Http<'a> {
    /// Does work that asks servers. While it runs, a thread of its own watches for the cancellation
    /// and then cuts the connections, so that no wait for a server outlasts it.
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
            // Dropping the sender ends the thread, also when `work` panics.
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

    /// Sends a request and reads the answer. It is not followed where the server leads.
    ///
    /// # Errors
    /// There was no answer. Any status is one.
    pub(crate) fn send(&self, request: Request<SendBody<'_>>) -> Result<Answer> {
        self.limit.check()?;
        let url = request.uri().to_string();
        let server = server(&url);
        let response = self.agent(&url)?.run(request);
        response
            .and_then(|response| read(server.clone(), response))
            .map_err(|error| self.unreached(&server, &error))
    }

    /// The agent for a URL.
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
            // A redirect could take the token or the file elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(self.limit.remaining()))
            .timeout_connect(secs(30))
            .timeout_per_write(secs(60))
            // A server may check a file of many gigabytes before it answers.
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

    /// Remembers that a server wants the credentials of the LFS server whose origin it shares.
    pub(crate) fn wants_credentials(&self, server: &str) {
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.insert(server.to_owned());
    }

    /// Whether a server has said so.
    pub(crate) fn gets_credentials(&self, server: &str) -> bool {
        let origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.contains(server)
    }

    /// Asks for what is at a URL, from its byte `from` on if the server can, and follows where it is
    /// led. The header goes to the URL's own server and to no other.
    ///
    /// # Errors
    /// There was no answer.
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

    /// The error of a server that gave no answer. A signed URL is as good as a token, so errors name the
    /// server alone.
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

    /// Makes a request, and makes it again as often as the server asks for a wait first. Each wait is
    /// said aloud, and none outlasts the limit.
    ///
    /// # Errors
    /// There was no answer, or the server wants a longer wait than is left.
    pub(crate) fn patiently(&self, mut make: impl FnMut() -> Result<Answer>) -> Result<Answer> {
        loop {
            let answer = make()?;
            if !self.waits(&answer)? {
                return Ok(answer);
            }
        }
    }

    /// Waits if the server asks for it and there is time, and says whether it did.
    fn waits(&self, answer: &Answer) -> Result<bool> {
        let wait = patience::wanted(answer.status, answer.retry_after(), SystemTime::now());
        let Some(wait) = wait.filter(|wait| *wait < self.limit.remaining()) else {
            return Ok(false);
        };
        self.limit.warn(&format!(
            "{} asks for patience ({}): the next try is in {:.0} s",
            answer.server,
            answer.status,
            wait.as_secs_f64().ceil()
        ));
        self.limit.sleep(wait)?;
        Ok(true)
    }

    /// Makes a request, waits as often as the server asks for it, and makes it again where the server
    /// leads. `make` gets the URL and whether that is still on the server that was asked first: what is
    /// secret goes to no other.
    ///
    /// # Errors
    /// There was no answer, or it leads from HTTPS to plain HTTP, or in a circle.
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
        let words = format!(
            "{} leads from one address to the next without end",
            server(url)
        );
        Err(Error::Permanent(words))
    }

    /// Posts JSON of a media type, waits as long as the server asks for, and follows where it leads, but
    /// takes the header along to no other server.
    ///
    /// # Errors
    /// There was no answer, or it is at another server, which wants what the header says.
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
                "{from} leads to {to}, where its token is not sent: set repo to the address there"
            )));
        }
        Ok(answer)
    }

    pub(crate) fn limit(&self) -> &'a Limit<'a> {
        self.limit
    }
}

/// The whole of an answer.
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
    /// The answer, if its status says that all went well. `server` is whom we asked.
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

    /// What the server says, in a line.
    pub(crate) fn message(&self) -> String {
        message(&String::from_utf8_lossy(&self.body))
    }

    /// `https://host:port` of whom we asked.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// What the server says of a trouble of its own that may pass.
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

/// What a status other than success means.
pub(crate) fn refused(server: &str, status: u16, retry_after: Option<&str>, words: &str) -> Error {
    let why = match status {
        300..=399 => "the repository has moved",
        401 => "the token was not accepted",
        403 => "the token may not do this here",
        404 | 410 => "there is no such repository or no Git LFS, or the token may not see it",
        408 | 425 | 429 => "the server asks for patience",
        413 => "the file is too large for this server",
        500.. => "the server is in trouble",
        _ => "the request was refused",
    };
    let mut text = format!("{server}: {why} ({status})");
    if let Some(after) = retry_after {
        text += &format!(", try again after {after}");
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

/// A server gave an address or a header that cannot be used.
pub(crate) fn bad_request(url: &str, error: &ureq::http::Error) -> Error {
    let server = server(url);
    Error::Permanent(format!("{server} gave a bad request to make: {error}"))
}

/// Where an answer leads, if it does.
///
/// # Errors
/// It leads from HTTPS to plain HTTP, or to no HTTP at all.
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
        let words = format!("{} leads to what is not HTTP", server(from));
        return Some(Err(Error::Permanent(words)));
    } else {
        let path = from.split(['?', '#']).next().unwrap_or(from);
        let folder = path.rsplit_once('/').map_or(path, |(folder, _)| folder);
        format!("{folder}/{location}")
    };
    if scheme == "https" && to.starts_with("http://") {
        let words = format!(
            "{} leads from https to plain http, which is not followed: {}",
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

/// What a server says: the `message` of a JSON answer, else the beginning of its text.
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

/// A reader that ends with an error once the limit is over.
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
    fn what_may_pass_is_told_from_what_does_not() {
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
            "https://x: the server asks for patience (429), try again after 30: slow down"
        );
    }

    #[test]
    fn a_servers_words_are_found_and_shortened() {
        assert_eq!(
            message(r#"{"message": "no  such\nthing"}"#),
            "no such thing"
        );
        assert_eq!(message("<html>\n nope"), "<html> nope");
        assert_eq!(message(&"x".repeat(2000)).len(), 500);
        assert_eq!(server("https://a.b:1/c?signature=d"), "https://a.b:1");
    }
}
