use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::download::{self, Target};
use crate::http::{self, Answer, Http};
use crate::lfs_server::LfsServer;
use crate::upload::{self, Sent, Source};
use crate::{Error, Result};

/// A client of the Git LFS batch API.
///
/// It requests the links of each object separately, just before the transfer, because links expire soon.
pub(crate) struct Client<'a> {
    http: &'a Http<'a>,
    server: &'a LfsServer,
}

/// The content of an LFS pointer file, which git stores instead of the real file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    /// Lower-case hexadecimal.
    pub(crate) sha256: String,
    pub(crate) size: u64,
}

/// A request that the LFS server tells the client to send.
#[derive(Debug, Deserialize)]
pub(crate) struct Action {
    pub(crate) href: String,
    #[serde(default)]
    pub(crate) header: BTreeMap<String, String>,
    /// The LFS server's own credentials, which the server may require. Empty if the request goes to another
    /// server, or if the action contains credentials.
    #[serde(skip)]
    access: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Batch {
    #[serde(default)]
    transfer: Option<String>,
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    /// Some servers return -1 for an object that they do not have.
    #[serde(default)]
    size: Option<i64>,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
    download: Option<Action>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
    #[serde(default)]
    message: String,
}

/// Maximum number of requests for the links of one object. Links are requested again if the object host
/// refuses them.
const LINKS: u32 = 3;

/// Maximum number of requests to verify an object. The first can fail, because a replica may not have seen
/// the upload yet.
const VERIFICATIONS: u32 = 3;

const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// Size limit of a pointer file, from the specification.
pub(crate) const POINTER_BYTES: u64 = 1024;

const POINTER_BEGINNING: &str = "version https://git-lfs.github.com/spec/v1\n";

/// Returns the pointer file of an object.
pub(crate) fn pointer(sha256: &str, size: u64) -> String {
    format!("{POINTER_BEGINNING}oid sha256:{sha256}\nsize {size}\n")
}

impl Pointer {
    /// Parses a pointer file. Returns `None` if the text is not a pointer.
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let rest = text.strip_prefix(POINTER_BEGINNING)?;
        let field = |name: &str| rest.lines().find_map(|line| line.strip_prefix(name));
        let sha256 = field("oid sha256:")?;
        let is_digest = sha256.len() == 64
            && sha256
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_digest.then_some(Self {
            sha256: sha256.to_owned(),
            size: field("size ")?.parse().ok()?,
        })
    }
}

impl Action {
    /// Creates a request to a signed URL, without a header.
    pub(crate) fn plain(href: &str) -> Self {
        Self {
            href: href.to_owned(),
            header: BTreeMap::new(),
            access: BTreeMap::new(),
        }
    }

    /// Whether the server may require credentials that were not sent yet.
    pub(crate) fn may_want_more(&self, http: &Http<'_>) -> bool {
        !self.access.is_empty() && !http.gets_credentials(&http::server(&self.href))
    }

    /// Sends the request with the action's header. If `is_refused` returns true for the response, repeats the
    /// request with the LFS server's credentials.
    pub(crate) fn with_access<R>(
        &self,
        http: &Http<'_>,
        mut make: impl FnMut(&BTreeMap<String, String>) -> Result<R>,
        is_refused: impl Fn(&R) -> bool,
    ) -> Result<R> {
        if self.access.is_empty() {
            return make(&self.header);
        }
        let server = http::server(&self.href);
        if !http.gets_credentials(&server) {
            let answer = make(&self.header)?;
            if !is_refused(&answer) {
                return Ok(answer);
            }
            http.wants_credentials(&server);
        }
        let mut header = self.header.clone();
        header.extend(self.access.clone());
        make(&header)
    }
}

impl<'a> Client<'a> {
    pub(crate) fn new(http: &'a Http<'a>, server: &'a LfsServer) -> Self {
        Self { http, server }
    }

    /// Uploads the files of a push to `branch`, except those that the server already has.
    pub(crate) fn upload(&self, branch: &str, sources: &[Source<'_>]) -> Result<()> {
        let mut sent = HashSet::new();
        for source in sources {
            if sent.insert(&*source.sha256) {
                by_links(|| self.upload_by_links(branch, source))?;
            }
        }
        Ok(())
    }

    /// Downloads an object into an empty file.
    pub(crate) fn download(&self, pointer: &Pointer, target: &mut Target) -> Result<()> {
        by_links(|| {
            let Pointer { sha256, size } = pointer;
            let (_, object) = self.batch("download", None, sha256, *size)?;
            let server = http::server(&self.server.url);
            if let Some(error) = object.error {
                return Err(http::refused(&server, error.code, None, &error.message));
            }
            match object.actions.and_then(|actions| actions.download) {
                Some(action) => target.fill(self.http, &action, pointer),
                None => Err(Error::Permanent(format!(
                    "{server} returned no download link for the object {sha256}"
                ))),
            }
        })
    }

    /// Requests the links for an object, and uploads the object to them.
    fn upload_by_links(&self, branch: &str, source: &Source<'_>) -> Result<Sent> {
        let (sha256, size) = (&*source.sha256, source.size);
        let (transfer, object) = self.batch("upload", Some(branch), sha256, size)?;
        let server = http::server(&self.server.url);
        if let Some(error) = object.error {
            return Err(http::refused(&server, error.code, None, &error.message));
        }
        // If the response has no upload action, the server already has the object.
        let Some(Actions {
            upload: Some(upload),
            verify,
            ..
        }) = object.actions
        else {
            let says = object.size.unwrap_or(-1);
            if object.size.is_some() && u64::try_from(says) != Ok(size) && !self.has(source)? {
                return Err(Error::Temporary(format!(
                    "{server} claims to have the object {sha256}, with {says} bytes instead of {size}, \
                     but a download request does not return it"
                )));
            }
            return Ok(Sent::Whole);
        };
        let sent = match transfer.as_deref() {
            None | Some("basic") => upload::basic(self.http, &upload, source)?,
            // The Hub can choose `multipart` for the whole response and still return no parts for an object.
            // Such an object uses the basic transfer.
            Some("multipart") if !upload.header.contains_key("chunk_size") => {
                upload::basic(self.http, &upload, source)?
            }
            Some("multipart") => upload::multipart(self.http, &upload, source)?,
            Some(other) => {
                let words =
                    format!("{server} chose the LFS transfer {other:?}, which was not offered");
                return Err(Error::Permanent(words));
            }
        };
        match verify {
            Some(verify) if sent == Sent::Whole => self.verify(&verify, source).map(|()| sent),
            _ => Ok(sent),
        }
    }

    /// Asks the server to verify an object. Retries if the server refuses. If the server also refuses the
    /// last attempt, this function still succeeds if the object can be downloaded.
    fn verify(&self, verify: &Action, source: &Source<'_>) -> Result<()> {
        let body = json!({"oid": source.sha256, "size": source.size});
        let server = http::server(&verify.href);
        let mut attempt = 1;
        loop {
            let answer = verify.with_access(
                self.http,
                |header| self.post(&verify.href, header, &body),
                |answer| answer.status == 401,
            )?;
            let Err(refused) = answer.success(&server) else {
                return Ok(());
            };
            if attempt == VERIFICATIONS {
                return match self.has(source) {
                    Ok(true) => Ok(()),
                    _ => Err(refused),
                };
            }
            let limit = self.http.limit();
            limit.warn(&format!(
                "an uploaded file is not verified yet, retrying: {refused}"
            ));
            limit.sleep(Duration::from_millis(250 * (1 << attempt)))?;
            attempt += 1;
        }
    }

    /// Whether the object can be downloaded from the server and has the right size.
    fn has(&self, source: &Source<'_>) -> Result<bool> {
        let (_, object) = self.batch("download", None, &source.sha256, source.size)?;
        let download = object.actions.and_then(|actions| actions.download);
        match (object.error, download) {
            (None, Some(action)) => download::is_there(self.http, &action, source.size),
            _ => Ok(false),
        }
    }

    /// Requests the links to upload or download an object.
    fn batch(
        &self,
        operation: &str,
        branch: Option<&str>,
        sha256: &str,
        size: u64,
    ) -> Result<(Option<String>, Object)> {
        let href = format!("{}/objects/batch", self.server.url);
        // The Hub uses multipart transfers only for uploads.
        let transfers: &[&str] = match operation {
            "upload" => &["basic", "multipart"],
            _ => &["basic"],
        };
        let mut body = json!({
            "operation": operation,
            "transfers": transfers,
            "objects": [{"oid": sha256, "size": size}],
            "hash_algo": "sha256",
        });
        if let Some(branch) = branch {
            body["ref"] = json!({"name": format!("refs/heads/{branch}")});
        }
        let server = http::server(&self.server.url);
        let answer = self.post(&href, &self.server.header, &body)?;
        let answer = answer
            .success(&server)
            .map_err(|error| self.server.explain(error))?;
        let batch: Batch = serde_json::from_slice(&answer.body).map_err(|error| {
            Error::Temporary(format!(
                "{server} returned an invalid Git LFS response: {error}"
            ))
        })?;
        let object = batch
            .objects
            .into_iter()
            .find(|object| object.oid == sha256);
        let mut object = object.ok_or_else(|| {
            Error::Temporary(format!("{server} did not return the requested object"))
        })?;
        let actions = object.actions.iter_mut().flat_map(|actions| {
            [
                &mut actions.upload,
                &mut actions.verify,
                &mut actions.download,
            ]
        });
        for action in actions.flatten() {
            let names_credentials = |name: &String| name.eq_ignore_ascii_case("authorization");
            if http::server(&action.href) == server && !action.header.keys().any(names_credentials)
            {
                action.access.clone_from(&self.server.header);
            }
        }
        Ok((batch.transfer, object))
    }

    fn post(
        &self,
        href: &str,
        header: &BTreeMap<String, String>,
        body: &serde_json::Value,
    ) -> Result<Answer> {
        post(self.http, href, header, body)
    }
}

/// Calls `moved`, which requests links and transfers an object with them. Calls it again if the object host
/// refuses the links, because links can expire before a slow transfer is complete.
fn by_links(mut moved: impl FnMut() -> Result<Sent>) -> Result<()> {
    let mut links = 1;
    loop {
        match moved()? {
            Sent::Whole => return Ok(()),
            Sent::LinkRefused(_) if links < LINKS => links += 1,
            Sent::LinkRefused(words) => return Err(Error::Temporary(words)),
        }
    }
}

/// Posts JSON with the media type of LFS.
pub(crate) fn post(
    http: &Http<'_>,
    href: &str,
    header: &BTreeMap<String, String>,
    body: &serde_json::Value,
) -> Result<Answer> {
    http.post(href, MEDIA_TYPE, header, body)
}

/// Returns the path of an object in an LFS object store.
pub(crate) fn object_path(store: &Path, sha256: &str) -> std::path::PathBuf {
    store.join(&sha256[..2]).join(&sha256[2..4]).join(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_follows_the_specification() {
        let text = pointer(&"ab".repeat(32), 12);
        let read = test_hub::parse_pointer(text.as_bytes());
        assert_eq!(read, Some(("ab".repeat(32), 12)));
    }

    #[test]
    fn other_texts_are_not_read_as_pointers() {
        let text = pointer(&"ab".repeat(32), 12);
        let (sha256, size) = ("ab".repeat(32), 12);
        let read = |text: &str| Pointer::read(text.as_bytes());
        assert_eq!(read(&text), Some(Pointer { sha256, size }));
        for other in [
            "{}",
            &text.replace("abab", "ABab"),
            &text.replace("abab", ""),
            &text.replace("size 12", ""),
            &text.replace("v1", "v2"),
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
