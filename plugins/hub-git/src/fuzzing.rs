//! Entry points for the fuzzer (`tests/fuzz`). They parse the output of git and servers. Only fuzzing builds
//! contain them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use crate::Error;
use crate::download::Target;
use crate::http::Http;
use crate::lfs::{Client, Pointer};
use crate::lfs_server::LfsServer;
use crate::limit::Limit;
use crate::network::Network;
use crate::refusal;
use crate::remote::Remote;
use crate::repository::{Blob, Tip};
use crate::upload::Source;

/// Parses stdout and stderr of git with each parser of git output.
///
/// # Panics
/// Panics if the digest of a recognized Git LFS pointer is not 64 characters long.
pub fn read_git(stdout: &str, stderr: &str) {
    let remote = Remote::parse("https://hub.test/ann/gpt-2", &|_| None).expect("a remote");
    let _ = refusal::judge_push(stdout, stderr, "refs/heads/run-1", &remote);
    let _ = refusal::judge(stderr, "reach", &remote);
    let _ = refusal::trouble(stderr);
    let _ = Tip::of(stdout, "runs/run-1");
    for line in stdout.lines() {
        let _ = Blob::of(line);
    }
    if let Some(pointer) = Pointer::read(stdout.as_bytes()) {
        assert_eq!(pointer.sha256.len(), 64);
    }
}

/// Parses a repository's address.
///
/// # Panics
/// Panics if an accepted address has more than one line.
pub fn read_address(text: &str) {
    if let Ok(remote) = Remote::parse(text, &|_| None) {
        let _ = (remote.hub_name(), remote.ssh_address(), remote.lfs_url());
        assert!(
            !remote.url().contains('\n'),
            "an address of two lines: {text:?}"
        );
    }
}

/// A file to upload and download.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// The file to upload.
    pub path: &'a Path,
    /// SHA-256 of its content, in lower-case hexadecimal.
    pub sha256: &'a str,
    /// Its size in bytes.
    pub size: u64,
    /// The empty file to download into.
    pub target: &'a Path,
}

/// The LFS server that [`move_object`] uses.
pub const LFS_SERVER: &str = "http://hub.test";
/// The secret that is sent only to [`LFS_SERVER`].
pub const SECRET: &str = "Basic c2VjcmV0";

/// Uploads an object to an LFS server and downloads it again. Every request goes through `proxy`. Both
/// transfers stop when `is_over` returns true. Returns whether the upload and the download succeeded.
///
/// # Panics
/// Panics if the target file cannot be opened.
pub fn move_object(
    proxy: &str,
    object: &Object<'_>,
    is_over: &(dyn Fn() -> bool + Sync),
    on_wait: &(dyn Fn() + Sync),
) -> (bool, bool) {
    let network = Network::through(proxy);
    let warn = |_: &str| on_wait();
    let limit = Limit::new(60, is_over).warning(&warn);
    let server = LfsServer::over_http_with(
        format!("{LFS_SERVER}/ann/gpt-2.git/info/lfs"),
        BTreeMap::from([("Authorization".to_owned(), SECRET.to_owned())]),
    );
    let source = Source {
        name: "model.safetensors",
        path: object.path.to_owned(),
        sha256: Cow::Borrowed(object.sha256),
        size: object.size,
    };
    let pointer = Pointer {
        sha256: object.sha256.to_owned(),
        size: object.size,
    };
    let uploaded = Http::during(&network, &limit, |http| {
        Client::new(http, &server).upload("run-1", &[source])
    });
    let file = File::options()
        .write(true)
        .open(object.target)
        .expect("a file to download into");
    let downloaded = Http::during(&network, &limit, |http| {
        let mut target = Target::new(&file, object.target);
        Client::new(http, &server).download(&pointer, &mut target)
    });
    let is_ok = |outcome: Result<(), Error>| outcome.is_ok();
    (is_ok(uploaded), is_ok(downloaded))
}
