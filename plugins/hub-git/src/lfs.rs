use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use crate::http::{self, Answer, Http};
use crate::lfs_server::LfsServer;
use crate::upload::{self, Sent, Source};
use crate::{Error, Result};

/// A client of the Git LFS batch API, for uploads.
///
/// It asks for each object by itself, just before it is sent: links are given for a short time.
pub(crate) struct Client<'a> {
    http: &'a Http<'a>,
    server: &'a LfsServer,
    /// `refs/heads/run`
    branch_ref: String,
}

/// Where a server wants a request to go.
#[derive(Debug, Deserialize)]
pub(crate) struct Action {
    pub(crate) href: String,
    #[serde(default)]
    pub(crate) header: BTreeMap<String, String>,
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
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
    #[serde(default)]
    message: String,
}

/// How often links are asked for one object, if the object host refuses those it got.
const LINKS: u32 = 3;

const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// The text that stands in git for an object.
pub(crate) fn pointer(sha256: &str, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

impl<'a> Client<'a> {
    pub(crate) fn new(http: &'a Http<'a>, server: &'a LfsServer, branch: &str) -> Self {
        Self {
            http,
            server,
            branch_ref: format!("refs/heads/{branch}"),
        }
    }

    /// Makes sure that the server has the files.
    pub(crate) fn upload(&self, sources: &[Source<'_>]) -> Result<()> {
        let mut sent = HashSet::new();
        for source in sources {
            if sent.insert(source.sha256) {
                self.upload_one(source)?;
            }
        }
        Ok(())
    }

    fn upload_one(&self, source: &Source<'_>) -> Result<()> {
        let mut links = 1;
        loop {
            match self.upload_by_links(source)? {
                Sent::Whole => return Ok(()),
                // They are given for a short time, which a slow line can outlast.
                Sent::LinkRefused(_) if links < LINKS => links += 1,
                Sent::LinkRefused(words) => return Err(Error::Temporary(words)),
            }
        }
    }

    /// Asks for links and sends the object to them.
    fn upload_by_links(&self, source: &Source<'_>) -> Result<Sent> {
        let (transfer, object) = self.batch(source)?;
        let server = http::server(&self.server.url);
        if let Some(error) = object.error {
            return Err(http::refused(&server, error.code, None, &error.message));
        }
        // Without an upload action the server has it already.
        let Some(Actions {
            upload: Some(upload),
            verify,
        }) = object.actions
        else {
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
            Some(verify) if sent == Sent::Whole => {
                let body = json!({"oid": source.sha256, "size": source.size});
                self.post(&verify.href, &verify.header, &body)?
                    .success(&http::server(&verify.href))?;
                Ok(Sent::Whole)
            }
            _ => Ok(sent),
        }
    }

    /// Asks where an object shall go.
    fn batch(&self, source: &Source<'_>) -> Result<(Option<String>, Object)> {
        let href = format!("{}/objects/batch", self.server.url);
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "ref": {"name": self.branch_ref},
            "objects": [{"oid": source.sha256, "size": source.size}],
            "hash_algo": "sha256",
        });
        let server = http::server(&self.server.url);
        let answer = self
            .post(&href, &self.server.header, &body)?
            .success(&server)?;
        let batch: Batch = serde_json::from_slice(&answer.body)
            .map_err(|error| Error::Temporary(format!("{server} speaks no Git LFS: {error}")))?;
        let object = batch
            .objects
            .into_iter()
            .find(|object| object.oid == source.sha256);
        let object = object.ok_or_else(|| {
            Error::Temporary(format!("{server} does not answer about the object"))
        })?;
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
}
