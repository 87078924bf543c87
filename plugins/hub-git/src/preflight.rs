//! Checks before the first step: the remote exists, the token can write to it, and there is enough disk
//! space.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::config::LfsMode;
use crate::http::{self, Http};
use crate::lfs_server::LfsServer;
use crate::limit::Limit;
use crate::network::Network;
use crate::publisher::{Publisher, now_secs};
use crate::remote::Kind;
use crate::repository::{Repository, Tip, Tried, says_how};
use crate::{Error, Result, git, lfs};

/// The run for which the sink is checked. It has not started yet.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The run's name.
    pub run: &'a str,
    /// The sink's private folder.
    pub state_dir: &'a Path,
    /// Approximate size of a checkpoint.
    pub checkpoint_bytes: u64,
    /// Approximate total size of a checkpoint's model, configuration and tokenizer.
    pub model_bytes: u64,
}

/// Files that every checkpoint contains.
const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// Number of bytes that the trees, commits and small files of a long run add to the local repository.
const GROWTH: u64 = 16 << 20;

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    code: u16,
    #[serde(default)]
    message: String,
}

impl Publisher {
    /// Checks that checkpoints can be delivered. Sends no checkpoint, so it cannot detect every problem.
    /// Returns the result as one line of text.
    ///
    /// # Errors
    /// Returns an error if a checkpoint cannot be delivered. The error contains the remote's message, but
    /// never the token.
    pub fn preflight(
        &self,
        question: &Question<'_>,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<String> {
        self.within_limit(cancelled, |limit| self.look(question, limit))
    }

    fn look(&self, question: &Question<'_>, limit: &Limit<'_>) -> Result<String> {
        self.ensure_repository(limit)?;
        self.check_room(question)?;
        let branch = self.config.branch.as_deref().unwrap_or(question.run);
        let token = self.token.as_ref();
        let state_dir = question.state_dir;
        let repository = Repository::open(&self.git, &self.remote, token, state_dir, limit)?;
        let mut tip = repository.tip(branch)?;
        if let Some(base) = tip.base() {
            repository.fetch(base, &says_how)?;
        }
        repository.begin_tree(tip.base())?;
        let by_attributes = !repository.lfs_paths(&FILES)?.is_empty();
        // The LFS server is checked first, because its response explains why a token cannot write. Git
        // returns only a status.
        if self.sends_by_lfs() || by_attributes && self.config.lfs != LfsMode::Never {
            let lfs_config = repository.read(tip.base(), ".lfsconfig")?;
            if let Some(server) = LfsServer::of(self, "upload", lfs_config.as_deref(), limit)? {
                ask_to_upload(self.git.network(), &server, branch, limit)?;
            }
        }
        if self.push_nothing(&repository, branch, &tip)? == Tried::WantsSha256 {
            repository.begin_with_sha256()?;
            repository.begin_tree(None)?;
            tip = Tip::default();
            self.push_nothing(&repository, branch, &tip)?;
        }
        Ok(match tip.branch {
            Some(commit) => {
                let short: String = commit.chars().take(7).collect();
                format!(
                    "branch {branch} continues from {short}: {}",
                    self.remote.url()
                )
            }
            None => format!("branch {branch} will be created: {}", self.remote.url()),
        })
    }

    /// Tests whether the remote accepts a push. The commit for this test changes no file.
    fn push_nothing(&self, repository: &Repository<'_>, branch: &str, tip: &Tip) -> Result<Tried> {
        let tree = repository.end_tree()?;
        let author = self.config.author();
        let commit = repository.commit(&tree, tip.base(), "step 0", author, now_secs())?;
        repository.try_push(branch, &commit, tip)
    }

    fn sends_by_lfs(&self) -> bool {
        match self.config.lfs {
            LfsMode::Never => false,
            LfsMode::Auto => self.remote.is_on_hub(),
            LfsMode::Always => true,
        }
    }

    /// Checks the free disk space. A file that is pushed as a plain blob is first written to the sink's
    /// folder. If the remote is on this machine, it also needs space for each file, with or without LFS.
    fn check_room(&self, question: &Question<'_>) -> Result<()> {
        let bytes = match self.config.trainer {
            true => question.checkpoint_bytes,
            false => question.model_bytes,
        };
        let blobs = if self.sends_by_lfs() { 0 } else { bytes };
        check_free(question.state_dir, blobs + GROWTH)?;
        if self.remote.kind() == Kind::Local {
            let store = git::git_dir(Path::new(self.remote.url())).join("objects");
            // If the folder does not exist, git reports the error.
            if store.is_dir() {
                check_free(&store, bytes + GROWTH)?;
                rustix::fs::access(&store, rustix::fs::Access::WRITE_OK)
                    .map_err(|error| Error::Permanent(not_writable(&store, error)))?;
            }
        }
        Ok(())
    }
}

/// Requests an upload link for a random object. Uploads nothing.
fn ask_to_upload(
    network: &Network,
    server: &LfsServer,
    branch: &str,
    limit: &Limit<'_>,
) -> Result<()> {
    let body = json!({
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "ref": {"name": format!("refs/heads/{branch}")},
        "objects": [{"oid": unheard_of(), "size": 1024}],
        "hash_algo": "sha256",
    });
    let href = format!("{}/objects/batch", server.url);
    let name = http::server(&server.url);
    let answer = Http::during(network, limit, |http| {
        let answer = lfs::post(http, &href, &server.header, &body)?;
        answer.success(&name).map_err(|error| server.explain(error))
    })?;
    let batch: Batch = serde_json::from_slice(&answer.body).map_err(|error| {
        Error::Temporary(format!(
            "{name} returned an invalid Git LFS response: {error}"
        ))
    })?;
    match batch.objects.into_iter().find_map(|object| object.error) {
        Some(Refused { code, message }) => Err(http::refused(&name, code, None, &message)),
        None => Ok(()),
    }
}

/// Returns the id of an object that no server has.
fn unheard_of() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let text = format!("preflight {} {}", std::process::id(), now.as_nanos());
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn check_free(dir: &Path, needed: u64) -> Result<()> {
    let disk = rustix::fs::statvfs(dir)
        .map_err(|error| Error::io("check the free space", dir, &error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= needed {
        return Ok(());
    }
    Err(Error::Temporary(format!(
        "not enough disk space: {:.1} MB are free, {:.1} MB are needed: {}",
        free as f64 / 1e6,
        needed as f64 / 1e6,
        dir.display()
    )))
}

fn not_writable(path: &Path, error: rustix::io::Errno) -> String {
    let error = std::io::Error::from(error);
    format!(
        "cannot write to the repository: {error}: {}",
        path.display()
    )
}
