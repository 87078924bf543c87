use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use ureq::SendBody;
use ureq::http::Request;

use crate::http::{self, Answer, Http, Limited};
use crate::lfs::{self, Action};
use crate::limit::Limit;
use crate::{Error, Result};

/// A file of a checkpoint, with its digest and size from the manifest.
#[derive(Clone, Debug)]
pub(crate) struct Source<'a> {
    /// The file's path in the checkpoint.
    pub(crate) name: &'a str,
    pub(crate) path: PathBuf,
    pub(crate) sha256: Cow<'a, str>,
    pub(crate) size: u64,
}

/// The result of one attempt to transfer an object, using the links that a batch request returned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The transfer is complete.
    Whole,
    /// The object host refused the links. Contains its message. The object host does not receive the token,
    /// so a refusal means that the links have expired. Another batch request returns new links.
    LinkRefused(String),
}

/// Maximum number of attempts to send one part of a file. If only one part is sent again, the parts that were
/// already sent remain valid. After another batch request, all parts would have to be sent again.
const PART_ATTEMPTS: u32 = 4;

/// Sends a file in one request.
pub(crate) fn basic(http: &Http<'_>, action: &Action, source: &Source<'_>) -> Result<Sent> {
    let mut file = source.open()?;
    let whole = 0..source.size;
    let (answer, hash) = put(http, action, &mut file, whole, &Sha256::new())?;
    if let Some(refused) = link_refused(&answer) {
        return Ok(refused);
    }
    accepted(http, answer, &action.href, source)?;
    source.verify(hash)?;
    Ok(Sent::Whole)
}

/// Sends a file in parts, each to its own URL, as the Hub requires for large files.
pub(crate) fn multipart(http: &Http<'_>, action: &Action, source: &Source<'_>) -> Result<Sent> {
    let server = object_host(&action.href);
    let odd = || {
        Error::Permanent(format!(
            "{server} returned parts that do not cover the file"
        ))
    };
    let size = action
        .header
        .get("chunk_size")
        .and_then(|text| text.parse::<u64>().ok());
    let size = size.filter(|&size| size > 0).ok_or_else(odd)?;
    let mut urls: Vec<(u64, &String)> = action
        .header
        .iter()
        .filter_map(|(name, url)| Some((name.parse().ok()?, url)))
        .collect();
    urls.sort_unstable();
    if u64::try_from(urls.len()) != Ok(source.size.div_ceil(size)) {
        return Err(odd());
    }

    let mut file = source.open()?;
    let mut hash = Sha256::new();
    let mut start = 0;
    let mut parts = Vec::new();
    for (number, url) in urls {
        let end = source.size.min(start + size);
        let (answer, after) = put_part(http, url, &mut file, start..end, &hash)?;
        if let Some(refused) = link_refused(&answer) {
            return Ok(refused);
        }
        let answer = accepted(http, answer, url, source)?;
        let etag = answer
            .headers
            .get("etag")
            .and_then(|etag| etag.to_str().ok());
        let etag = etag.ok_or_else(|| {
            Error::Temporary(format!(
                "{} returned no ETag for a part of the file",
                object_host(url)
            ))
        })?;
        parts.push(json!({"partNumber": number, "etag": etag}));
        (hash, start) = (after, end);
    }
    source.verify(hash)?;
    let body = json!({"oid": source.sha256, "parts": parts});
    let answer = lfs::post(http, &action.href, &Default::default(), &body)?;
    if let Some(refused) = link_refused(&answer) {
        return Ok(refused);
    }
    answer.success(&server)?;
    Ok(Sent::Whole)
}

/// Sends one part. Retries after a failure of the connection or the server.
fn put_part(
    http: &Http<'_>,
    url: &str,
    file: &mut File,
    range: Range<u64>,
    before: &Sha256,
) -> Result<(Answer, Sha256)> {
    let mut attempt = 1;
    loop {
        let sent = put(http, &Action::plain(url), file, range.clone(), before);
        let failed = match &sent {
            Ok((answer, _)) => answer.trouble(),
            Err(Error::Temporary(words)) => Some(words.clone()),
            Err(_) => None,
        };
        match failed {
            Some(words) if attempt < PART_ATTEMPTS => {
                http.limit().warn(&format!(
                    "uploading a part of a file failed, retrying: {words}"
                ));
                http.limit()
                    .sleep(Duration::from_millis(200 * (1 << attempt)))?;
                attempt += 1;
            }
            _ => return sent,
        }
    }
}

/// Copies a file into the LFS object store of a repository on this machine. git-lfs uses the same store for
/// the objects of a `file:` remote.
pub(crate) fn into_store(store: &Path, source: &Source<'_>, limit: &Limit<'_>) -> Result<()> {
    let to = lfs::object_path(store, &source.sha256);
    if std::fs::metadata(&to).is_ok_and(|file| file.len() == source.size) {
        return Ok(());
    }
    let failed = |error: io::Error| match limit.check() {
        Err(over) => over,
        Ok(()) => Error::io("write LFS object", &to, &error),
    };
    let folder = to.parent().unwrap_or(store);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let part = to.with_extension(format!("part{}", std::process::id()));
    let mut hash = Sha256::new();
    let copied = (|| {
        let mut from = Hashing {
            inner: Limited {
                inner: source.open()?,
                limit,
            },
            hash: &mut hash,
        };
        let mut file = File::create(&part).map_err(failed)?;
        io::copy(&mut from, &mut file).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        source.verify(hash)?;
        std::fs::rename(&part, &to).map_err(failed)?;
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    })();
    if copied.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    copied
}

impl Source<'_> {
    /// Verifies the file's size and digest.
    pub(crate) fn check(&self, limit: &Limit<'_>) -> Result<()> {
        let mut hash = Sha256::new();
        let mut file = Hashing {
            inner: Limited {
                inner: self.open()?,
                limit,
            },
            hash: &mut hash,
        };
        if let Err(error) = io::copy(&mut file, &mut io::sink()) {
            limit.check()?;
            return Err(Error::io("read", &self.path, &error));
        }
        self.verify(hash)
    }

    fn open(&self) -> Result<File> {
        let file = File::open(&self.path).map_err(|error| Error::io("open", &self.path, &error))?;
        let size = file
            .metadata()
            .map_err(|error| Error::io("open", &self.path, &error))?
            .len();
        if size == self.size {
            Ok(file)
        } else {
            Err(self.changed())
        }
    }

    fn verify(&self, hash: Sha256) -> Result<()> {
        if hex(hash) == self.sha256 {
            Ok(())
        } else {
            Err(self.changed())
        }
    }

    fn changed(&self) -> Error {
        let path = self.path.display();
        Error::Permanent(format!("the file does not match the manifest: {path}"))
    }
}

/// Sends a range of a file. `before` is the digest state before the range. Returns the response, and the
/// digest state after the range.
fn put(
    http: &Http<'_>,
    action: &Action,
    file: &mut File,
    range: Range<u64>,
    before: &Sha256,
) -> Result<(Answer, Sha256)> {
    let bytes = range.end - range.start;
    let mut hash = before.clone();
    let mut send = |url: &str, header: &BTreeMap<String, String>, is_home: bool| {
        // Each attempt starts at the beginning of the range.
        hash = before.clone();
        file.seek(SeekFrom::Start(range.start))
            .map_err(|error| Error::Temporary(format!("cannot read the checkpoint: {error}")))?;
        let mut request = Request::put(url);
        if !header
            .keys()
            .any(|name| name.eq_ignore_ascii_case("content-type"))
        {
            request = request.header("Content-Type", "application/octet-stream");
        }
        for (name, value) in header {
            let name = name.to_ascii_lowercase();
            // These headers are left out because the length is set below. After a redirect to another server,
            // only the content type is sent, because other headers may be secret.
            if !["content-length", "transfer-encoding"].contains(&&*name)
                && (is_home || name == "content-type")
            {
                request = request.header(name, value);
            }
        }
        if is_home && action.may_want_more(http) {
            // With this header, the server can refuse the request before gigabytes are sent.
            request = request.header("Expect", "100-continue");
        }
        let limited = Limited {
            inner: (&mut *file).take(bytes),
            limit: http.limit(),
        };
        let mut body = Hashing {
            inner: limited,
            hash: &mut hash,
        };
        let request = request
            .header("Content-Length", bytes)
            .body(SendBody::from_reader(&mut body))
            .map_err(|error| http::bad_request(url, &error))?;
        http.send(request)
    };
    let answer = action.with_access(
        http,
        |header| {
            let sent = http.follow(&action.href, |url, is_home| send(url, header, is_home));
            sent.map(|(_, answer)| answer)
        },
        |answer| answer.status == 401,
    )?;
    Ok((answer, hash))
}

/// Returns the response if the object host accepted the data.
fn accepted(http: &Http<'_>, answer: Answer, url: &str, source: &Source<'_>) -> Result<Answer> {
    answer.success(&object_host(url)).or_else(|refused| {
        if matches!(refused, Error::Permanent(_)) {
            // The server may have refused the data because the file has changed. In that case, a digest error
            // is clearer than the server's message.
            source.check(http.limit())?;
        }
        Err(refused)
    })
}

pub(crate) fn link_refused(answer: &Answer) -> Option<Sent> {
    matches!(answer.status, 401 | 403).then(|| {
        let words = format!(
            "{} rejected the link for this transfer ({}): {}",
            answer.server(),
            answer.status,
            answer.message()
        );
        Sent::LinkRefused(words)
    })
}

/// Returns a digest in hexadecimal.
pub(crate) fn hex(hash: Sha256) -> String {
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn object_host(url: &str) -> String {
    http::server(url)
}

struct Hashing<'a, R> {
    inner: R,
    hash: &'a mut Sha256,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
