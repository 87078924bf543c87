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
/// It asks for each object by itself, just before it is sent or fetched: links are given for a short
/// time.
pub(crate) struct Client<'a> {
    http: &'a Http<'a>,
    server: &'a LfsServer,
}

/// What stands in git for a file that lies elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    /// Lower-case hexadecimal.
    pub(crate) sha256: String,
    pub(crate) size: u64,
}

/// Where a server wants a request to go.
#[derive(Debug, Deserialize)]
pub(crate) struct Action {
    pub(crate) href: String,
    #[serde(default)]
    pub(crate) header: BTreeMap<String, String>,
    /// What the LFS server itself is asked with, if the request goes to that same server and the action
    /// names no credentials: it may want them.
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
    /// Some servers say -1 of an object that they do not have.
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

/// How often links are asked for one object, if the object host refuses those it got.
const LINKS: u32 = 3;

/// How often a server is asked whether an object arrived: one of several may not know it yet.
const VERIFICATIONS: u32 = 3;

const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// The longest text that is looked at as a pointer, by the specification.
pub(crate) const POINTER_BYTES: u64 = 1024;

const POINTER_BEGINNING: &str = "version https://git-lfs.github.com/spec/v1\n";

/// The text that stands in git for an object.
pub(crate) fn pointer(sha256: &str, size: u64) -> String {
    format!("{POINTER_BEGINNING}oid sha256:{sha256}\nsize {size}\n")
}

impl Pointer {
    /// What a text stands for, if it is a pointer.
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
    /// A request to a URL that says all by itself.
    pub(crate) fn plain(href: &str) -> Self {
        Self {
            href: href.to_owned(),
            header: BTreeMap::new(),
            access: BTreeMap::new(),
        }
    }

    /// Whether the server may ask for credentials that were not sent yet.
    pub(crate) fn may_want_more(&self, http: &Http<'_>) -> bool {
        !self.access.is_empty() && !http.gets_credentials(&http::server(&self.href))
    }

    /// Makes the request with what the action says, and with the LFS server's credentials if they are
    /// asked for.
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

    /// Makes sure that the server has the files, for a branch.
    pub(crate) fn upload(&self, branch: &str, sources: &[Source<'_>]) -> Result<()> {
        let mut sent = HashSet::new();
        for source in sources {
            if sent.insert(&*source.sha256) {
                by_links(|| self.upload_by_links(branch, source))?;
            }
        }
        Ok(())
    }

    /// Brings an object's content into a file, which is empty.
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
                    "{server} says not where the object {sha256} is"
                ))),
            }
        })
    }

    /// Asks for links and sends the object to them.
    fn upload_by_links(&self, branch: &str, source: &Source<'_>) -> Result<Sent> {
        let (sha256, size) = (&*source.sha256, source.size);
        let (transfer, object) = self.batch("upload", Some(branch), sha256, size)?;
        let server = http::server(&self.server.url);
        if let Some(error) = object.error {
            return Err(http::refused(&server, error.code, None, &error.message));
        }
        // Without an upload action the server has it already.
        let Some(Actions {
            upload: Some(upload),
            verify,
            ..
        }) = object.actions
        else {
            let says = object.size.unwrap_or(-1);
            if object.size.is_some() && u64::try_from(says) != Ok(size) && !self.has(source)? {
                return Err(Error::Temporary(format!(
                    "{server} says that it has the object {sha256}, of {says} bytes instead of {size}, and does not give it"
                )));
            }
            return Ok(Sent::Whole);
        };
        let sent = match transfer.as_deref() {
            None | Some("basic") => upload::basic(self.http, &upload, source)?,
            // The Hub says `multipart` for the whole answer; an object without parts is plain.
            Some("multipart") if !upload.header.contains_key("chunk_size") => {
                upload::basic(self.http, &upload, source)?
            }
            Some("multipart") => upload::multipart(self.http, &upload, source)?,
            Some(other) => {
                let words =
                    format!("{server} wants the LFS transfer {other:?}, which was not offered");
                return Err(Error::Permanent(words));
            }
        };
        match verify {
            Some(verify) if sent == Sent::Whole => self.verify(&verify, source).map(|()| sent),
            _ => Ok(sent),
        }
    }

    /// Lets the server confirm an object. One that does not know it yet is asked again, and whether the
    /// object can be fetched counts in the end.
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
                "a file's arrival is not confirmed, which is asked again: {refused}"
            ));
            limit.sleep(Duration::from_millis(250 * (1 << attempt)))?;
            attempt += 1;
        }
    }

    /// Whether the server gives an object, with its size.
    fn has(&self, source: &Source<'_>) -> Result<bool> {
        let (_, object) = self.batch("download", None, &source.sha256, source.size)?;
        let download = object.actions.and_then(|actions| actions.download);
        match (object.error, download) {
            (None, Some(action)) => download::is_there(self.http, &action, source.size),
            _ => Ok(false),
        }
    }

    /// Asks where an object shall go, or where it is.
    fn batch(
        &self,
        operation: &str,
        branch: Option<&str>,
        sha256: &str,
        size: u64,
    ) -> Result<(Option<String>, Object)> {
        let href = format!("{}/objects/batch", self.server.url);
        // An object is fetched as it is: parts are the Hub's way to take a large one.
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
        let batch: Batch = serde_json::from_slice(&answer.body)
            .map_err(|error| Error::Temporary(format!("{server} speaks no Git LFS: {error}")))?;
        let object = batch
            .objects
            .into_iter()
            .find(|object| object.oid == sha256);
        let mut object = object.ok_or_else(|| {
            Error::Temporary(format!("{server} does not answer about the object"))
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

/// Moves an object by links, and asks for others if those are refused: they are given for a short time,
/// which a slow line can outlast.
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

/// Posts JSON of the LFS kind.
pub(crate) fn post(
    http: &Http<'_>,
    href: &str,
    header: &BTreeMap<String, String>,
    body: &serde_json::Value,
) -> Result<Answer> {
    http.post(href, MEDIA_TYPE, header, body)
}

/// The place of an object in a store of LFS objects.
pub(crate) fn object_path(store: &Path, sha256: &str) -> std::path::PathBuf {
    store.join(&sha256[..2]).join(&sha256[2..4]).join(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_as_the_specification_has_it() {
        let text = pointer(&"ab".repeat(32), 12);
        let read = test_hub::parse_pointer(text.as_bytes());
        assert_eq!(read, Some(("ab".repeat(32), 12)));
    }

    #[test]
    fn a_pointer_is_told_from_a_text() {
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
