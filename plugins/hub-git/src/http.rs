use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, Request, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

use crate::limit::Limit;
use crate::{Error, Result, patience};

/// HTTP within the limits of one delivery.
pub(crate) struct Http<'a> {
    agent: Agent,
    limit: &'a Limit<'a>,
}

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
        limit: &'a Limit<'a>,
        work: impl FnOnce(&Self) -> Result<R>,
    ) -> Result<R> {
        let http = Self {
            agent: agent(limit),
            limit,
        };
        let agent = http.agent.clone();
        std::thread::scope(|scope| {
            // Dropping the sender ends the thread, also when `work` panics.
            let (_running, ended) = sync_channel::<()>(0);
            std::thread::Builder::new()
                .name("hub-git cancel".to_owned())
                .spawn_scoped(scope, move || {
                    while ended.recv_timeout(Duration::from_millis(20))
                        == Err(RecvTimeoutError::Timeout)
                    {
                        if limit.check().is_err() {
                            return agent.shutdown();
                        }
                    }
                })
                .map_err(|error| Error::Temporary(format!("cannot start a thread: {error}")))?;
            work(&http)
        })
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// There was no answer. Any status is one.
    pub(crate) fn send(&self, request: Request<SendBody<'_>>) -> Result<Answer> {
        self.limit.check()?;
        let server = server(&request.uri().to_string());
        let response = self.agent.run(request);
        response
            .and_then(|response| read(server.clone(), response))
            .map_err(|error| self.unreached(&server, &error))
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
            let response = self.agent.run(request).map_err(unreached)?;
            let location = response.headers().get("location");
            let location = location.and_then(|value| value.to_str().ok());
            match (response.status().as_u16(), location) {
                (200, _) => return Ok(Got::Body(0, response.into_body())),
                (206, _) => return Ok(Got::Body(from, response.into_body())),
                (301 | 302 | 303 | 307 | 308, Some(to))
                    if led < REDIRECTS && crate::remote::origin(to).is_some() =>
                {
                    at = to.to_owned();
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

    /// Posts JSON of a media type, and waits as long as the server asks for.
    pub(crate) fn post(
        &self,
        url: &str,
        media_type: &str,
        header: &BTreeMap<String, String>,
        body: &serde_json::Value,
    ) -> Result<Answer> {
        let text = body.to_string();
        self.patiently(|| {
            let mut request = Request::post(url)
                .header("Accept", media_type)
                .header("Content-Type", media_type);
            for (name, value) in header {
                request = request.header(name, value);
            }
            let mut bytes = text.as_bytes();
            let request = request
                .header("Content-Length", text.len())
                .body(SendBody::from_reader(&mut bytes))
                .map_err(|error| bad_request(url, &error))?;
            self.send(request)
        })
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
        408 | 425 | 429 | 500 | 502.. => Error::Temporary(text),
        _ => Error::Permanent(text),
    }
}

/// A server gave an address or a header that cannot be used.
pub(crate) fn bad_request(url: &str, error: &ureq::http::Error) -> Error {
    let server = server(url);
    Error::Permanent(format!("{server} gave a bad request to make: {error}"))
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

/// The certificate authorities that the environment names, as git and curl take them; else those that
/// browsers trust.
fn root_certs() -> RootCerts {
    let named = ["GIT_SSL_CAINFO", "SSL_CERT_FILE"]
        .into_iter()
        .find_map(std::env::var_os);
    let Some(pem) = named.and_then(|path| std::fs::read(path).ok()) else {
        return RootCerts::WebPki;
    };
    let certificates = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    RootCerts::Specific(Arc::new(certificates.collect()))
}

fn agent(limit: &Limit<'_>) -> Agent {
    let secs = |secs| Some(Duration::from_secs(secs));
    Agent::config_builder()
        .user_agent(concat!("hub-git/", env!("CARGO_PKG_VERSION")))
        .tls_config(TlsConfig::builder().root_certs(root_certs()).build())
        .http_status_as_error(false)
        // A redirect could take the token or the file elsewhere.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_global(Some(limit.remaining()))
        .timeout_connect(secs(30))
        .timeout_per_write(secs(60))
        // A server may check a file of many gigabytes before it answers.
        .timeout_recv_response(secs(600))
        .timeout_recv_body(secs(60))
        .build()
        .new_agent()
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
