use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::http::{Request, Response};

/// The LFS server of a bare repository. Stores the objects in the same place as git-lfs would.
pub(crate) struct Lfs<'a> {
    pub(crate) repo: &'a Path,
    /// `/user/model`, as in URLs.
    pub(crate) name: &'a str,
    /// The base URL for objects. As on the Hub, it normally differs from the git server's URL.
    pub(crate) object_host: String,
    /// Objects larger than this many bytes are sent in parts of this size.
    pub(crate) part_bytes: Option<u64>,
    /// Number of multipart uploads started so far.
    pub(crate) uploads: &'a AtomicU64,
}

/// The path of objects below the git server's URL, if the git server itself stores them.
pub(crate) const AT_HOME: &str = "/objects-at-home";

/// The signature in an object's URL.
const SIGNATURE: &str = "signature=5f2b";

impl Lfs<'_> {
    /// Answers `POST objects/batch`.
    pub(crate) fn batch(&self, request: &mut Request, may_write: bool) -> io::Result<Response> {
        let body: Value = serde_json::from_slice(&request.body()?)?;
        let upload = body["operation"] == "upload";
        if upload && !may_write {
            return Ok(crate::may_not_write());
        }
        let multipart = body["transfers"]
            .as_array()
            .is_some_and(|names| names.iter().any(|name| name == "multipart"));
        let objects = body["objects"].as_array().cloned().unwrap_or_default();
        let in_parts = |size: u64| multipart && self.part_bytes.is_some_and(|part| size > part);
        let transfer = if upload
            && objects
                .iter()
                .any(|o| in_parts(o["size"].as_u64().unwrap_or(0)))
        {
            "multipart"
        } else {
            "basic"
        };
        let answers: Vec<Value> = objects
            .iter()
            .map(|object| {
                let oid = object["oid"].as_str().unwrap_or_default();
                let size = object["size"].as_u64().unwrap_or(0);
                let there = fs::metadata(self.object(oid)).is_ok_and(|file| file.len() == size);
                let href = format!("{}{}/{oid}?{SIGNATURE}", self.object_host, self.name);
                let in_parts = in_parts(size);
                let actions = match (upload, there) {
                    (true, true) => return json!({"oid": oid, "size": size}),
                    (true, false) if in_parts => {
                        // As in S3, parts belong to the upload that they were requested for.
                        let upload = self.uploads.fetch_add(1, Ordering::SeqCst);
                        let href = format!("{href}&upload={upload}");
                        json!({"upload": {"href": href, "header": self.parts(&href, size)}})
                    }
                    (true, false) => json!({"upload": {"href": href}, "verify": {"href": href}}),
                    (false, true) => json!({"download": {"href": href}}),
                    (false, false) => {
                        let error = json!({"code": 404, "message": "no such object"});
                        return json!({"oid": oid, "size": size, "error": error});
                    }
                };
                json!({"oid": oid, "size": size, "actions": actions})
            })
            .collect();
        let answer = json!({"transfer": transfer, "objects": answers, "hash_algo": "sha256"});
        Ok(Response::json(200, &answer))
    }

    /// Answers a request to the object host.
    pub(crate) fn object_request(&self, request: &mut Request) -> io::Result<Response> {
        if request.header("authorization").is_some() {
            return Ok(Response::text(400, "credentials are not accepted here"));
        }
        self.stored(request)
    }

    /// Answers a request for an object, without checking credentials.
    pub(crate) fn stored(&self, request: &mut Request) -> io::Result<Response> {
        if !request.query.starts_with(SIGNATURE) {
            return Ok(Response::text(403, "the URL is not signed"));
        }
        let oid = request
            .path
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let asked = |name: &str| {
            let mut fields = request.query.split('&');
            fields.find_map(|field| Some(field.strip_prefix(name)?.to_owned()))
        };
        let (part, upload) = (asked("part="), asked("upload=").unwrap_or_default());
        match (request.method.as_str(), part) {
            ("PUT", None) => self.receive(&oid, request),
            ("PUT", Some(part)) => {
                let mut bytes = tempfile::NamedTempFile::new_in(self.store()?)?;
                request.copy_body(&mut bytes)?;
                bytes.persist(self.part(&oid, &upload, &part))?;
                let etag = format!("\"etag-{part}\"");
                Ok(Response::text(200, "").with_header("ETag", &etag))
            }
            ("POST", _) => {
                let body: Value = serde_json::from_slice(&request.body()?)?;
                match body["parts"].as_array() {
                    Some(parts) => self.complete(&oid, &upload, parts),
                    None if self.object(&oid).is_file() => Ok(Response::text(200, "")),
                    None => Ok(Response::text(404, "no such object")),
                }
            }
            ("GET", _) => Ok(match fs::read(self.object(&oid)) {
                Ok(mut body) => {
                    let range = request.header("range");
                    let from = range.and_then(|range| {
                        let from = range.strip_prefix("bytes=")?.strip_suffix('-')?;
                        from.parse().ok().filter(|from| *from < body.len())
                    });
                    let body = body.split_off(from.unwrap_or(0));
                    let status = if from.is_some() { 206 } else { 200 };
                    Response {
                        body,
                        ..Response::text(status, "")
                    }
                }
                Err(_) => Response::text(404, "no such object"),
            }),
            _ => Ok(Response::text(405, "")),
        }
    }

    fn receive(&self, oid: &str, request: &mut Request) -> io::Result<Response> {
        if request.header("content-length").is_none() {
            return Ok(Response::text(411, "a length is required"));
        }
        let mut file = tempfile::NamedTempFile::new_in(self.store()?)?;
        let mut hashed = Hashed {
            file: file.as_file_mut(),
            hash: Sha256::new(),
        };
        request.copy_body(&mut hashed)?;
        self.keep(oid, hashed.hash, file)
    }

    /// Assembles the parts.
    fn complete(&self, oid: &str, upload: &str, parts: &[Value]) -> io::Result<Response> {
        let mut file = tempfile::NamedTempFile::new_in(self.store()?)?;
        let mut hashed = Hashed {
            file: file.as_file_mut(),
            hash: Sha256::new(),
        };
        for (index, part) in parts.iter().enumerate() {
            let number = index + 1;
            if part["partNumber"] != number || part["etag"] != format!("\"etag-{number:05}\"") {
                return Ok(Response::text(
                    400,
                    "the parts are out of order or have no ETag",
                ));
            }
            let Ok(mut part) = File::open(self.part(oid, upload, &format!("{number:05}"))) else {
                return Ok(Response::text(400, "a part was never sent"));
            };
            io::copy(&mut part, &mut hashed)?;
        }
        self.keep(oid, hashed.hash, file)
    }

    fn keep(&self, oid: &str, hash: Sha256, file: tempfile::NamedTempFile) -> io::Result<Response> {
        let sha256: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if sha256 != oid {
            return Ok(Response::text(422, "the content does not match its sha256"));
        }
        let path = self.object(oid);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        file.persist(path)?;
        Ok(Response::text(200, ""))
    }

    /// Returns the header of a multipart upload: the size of a part, and a URL for each part.
    fn parts(&self, href: &str, size: u64) -> Value {
        let bytes = self.part_bytes.unwrap_or(u64::MAX);
        let mut header = json!({"chunk_size": bytes.to_string()});
        for number in 1..=size.div_ceil(bytes) {
            let number = format!("{number:05}");
            header[&number] = Value::String(format!("{href}&part={number}"));
        }
        header
    }

    fn object(&self, oid: &str) -> PathBuf {
        object_path(self.repo, oid)
    }

    fn part(&self, oid: &str, upload: &str, number: &str) -> PathBuf {
        let name = format!("{oid}.{upload}.{number}");
        self.repo.join("lfs").join(name)
    }

    fn store(&self) -> io::Result<PathBuf> {
        let store = self.repo.join("lfs");
        fs::create_dir_all(&store)?;
        Ok(store)
    }
}

/// Returns the path of a repository's object.
pub(crate) fn object_path(repo: &Path, oid: &str) -> PathBuf {
    let (first, second) = (oid.get(..2).unwrap_or("-"), oid.get(2..4).unwrap_or("-"));
    repo.join("lfs/objects").join(first).join(second).join(oid)
}

struct Hashed<'a> {
    file: &'a mut File,
    hash: Sha256,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Parses a pointer file: `(sha256, size)`, or `None` if the text is not a pointer.
pub fn parse_pointer(text: &[u8]) -> Option<(String, u64)> {
    let mut head = String::new();
    text.take(300).read_to_string(&mut head).ok()?;
    head.strip_prefix("version https://git-lfs.github.com/spec/v1\n")?;
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let size = field("size ")?.parse().ok()?;
    Some((field("oid sha256:")?.to_owned(), size))
}
