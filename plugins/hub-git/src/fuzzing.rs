//! Entry points for the fuzzer (`tests/fuzz`): readers of what git and servers answer. Only fuzzing builds
//! have them.

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

/// Parses the stdout and stderr of git, as for each command whose output is parsed.
///
/// # Panics
/// If a recognized Git LFS pointer has no digest.
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
/// If an accepted address has more than one line.
pub fn read_address(text: &str) {
    if let Ok(remote) = Remote::parse(text, &|_| None) {
        let _ = (remote.hub_name(), remote.ssh_address(), remote.lfs_url());
        assert!(
            !remote.url().contains('\n'),
            "an address of two lines: {text:?}"
        );
    }
}

/// A file that is uploaded and downloaded.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// The file to upload.
    pub path: &'a Path,
    /// Its content's digest, in lower-case hexadecimal.
    pub sha256: &'a str,
    /// Its bytes.
    pub size: u64,
    /// The file to download into, which is empty.
    pub target: &'a Path,
}

/// The LFS server that [`move_object`] asks.
pub const LFS_SERVER: &str = "http://hub.test";
/// The secret that goes to it alone.
pub const SECRET: &str = "Basic c2VjcmV0";

/// Uploads an object to an LFS server and downloads it again. Every request goes to `proxy`. Both stop when
/// `is_over` returns true. Returns whether each succeeded.
///
/// # Panics
/// If the target file cannot be opened.
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
