use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use host_plugin_sdk::FileEntry;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::git::Git;
use crate::journal::{Delivery, Journal};
use crate::limit::Limit;
use crate::network::Network;
use crate::remote::{Kind, Remote};
use crate::repository::Repository;
use crate::task::Task;
use crate::token::Token;
use crate::upload::{Source, hex};
use crate::{Config, Error, Result, creation};

/// Pushes checkpoints to one remote.
#[derive(Debug)]
pub struct Publisher {
    pub(crate) config: Config,
    pub(crate) remote: Remote,
    pub(crate) token: Option<Token>,
    /// The token for a separate LFS server. It is used only if the branch's `.lfsconfig` names a server other
    /// than the remote's own.
    pub(crate) lfs_token: Option<Token>,
    pub(crate) git: Git,
    warn: Warn,
    /// Whether the repository is known to exist.
    exists: AtomicBool,
}

/// The receiver of the sink's warnings.
struct Warn(Box<dyn Fn(&str) + Send + Sync>);

/// A checkpoint to push.
#[derive(Clone, Copy, Debug)]
pub struct PushedCheckpoint<'a> {
    /// The checkpoint's optimizer step.
    pub step: u64,
    /// The run's name.
    pub run: &'a str,
    /// The checkpoint's folder. Its content does not change.
    pub dir: &'a Path,
    /// The checkpoint's files, by path within the folder.
    pub files: &'a BTreeMap<String, FileEntry>,
    /// The values of the evaluation.
    pub metrics: &'a BTreeMap<String, f64>,
    /// The sink's private folder.
    pub state_dir: &'a Path,
}

/// Where a checkpoint arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The commit's id.
    pub commit: String,
    /// The branch that contains the commit.
    pub branch: String,
    /// The repository, without credentials.
    pub remote: String,
    /// SHA-256 of the checkpoint's `manifest.json`, which contains the digest of each file. `None` if the
    /// checkpoint has no such file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
}

/// The path prefix of the trainer state in a checkpoint.
pub(crate) const TRAINER: &str = "trainer/";

/// The list of a checkpoint's files.
pub(crate) const MANIFEST: &str = "manifest.json";

impl Publisher {
    /// Creates a publisher. `env` returns the value of an environment variable. `git` is the git program to
    /// run.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid, if a token that it names is not set, or if git is
    /// not usable.
    pub fn new(
        mut config: Config,
        env: &dyn Fn(&str) -> Option<String>,
        git: &str,
    ) -> Result<Self> {
        let remote = Remote::parse(&config.repo, env)?;
        config.settle_branch(remote.revision())?;
        let token = Token::find(&config, &remote, env)?;
        let lfs_token = config.lfs_token_env.as_deref();
        let lfs_token = lfs_token.map(|name| Token::named(name, env)).transpose()?;
        let mut hidden = vec!["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
        hidden.extend(config.token_env.as_deref());
        hidden.extend(config.lfs_token_env.as_deref());
        let git = Git::find(git, &hidden, &Limit::new(60, &|| false))?;
        let network = Network::find(&git, &config, &remote, env)?;
        let git = git.with_network(network);
        if let Some(branch) = &config.branch {
            git.check_branch(branch)?;
        }
        creation::check(&config, &remote)?;
        Ok(Self {
            config,
            remote,
            token,
            lfs_token,
            git,
            warn: Warn(Box::new(|_| {})),
            exists: AtomicBool::new(false),
        })
    }

    /// Sets the receiver of warnings, for example about a busy server. No warning contains the token.
    #[must_use]
    pub fn on_warning(mut self, warn: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.warn = Warn(Box::new(warn));
        self
    }

    /// Delivers a checkpoint. Delivering it again changes nothing and returns the same receipt.
    ///
    /// # Errors
    /// Returns an error if the delivery fails. No error contains the token.
    pub fn publish(
        &self,
        checkpoint: &PushedCheckpoint<'_>,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Receipt> {
        self.within_limit(cancelled, |limit| self.deliver(checkpoint, limit))
    }

    /// Runs `work` with the time limit. Removes the tokens from its warnings and from its error.
    pub(crate) fn within_limit<R>(
        &self,
        cancelled: &(dyn Fn() -> bool + Sync),
        work: impl FnOnce(&Limit<'_>) -> Result<R>,
    ) -> Result<R> {
        let warn = |words: &str| (self.warn.0)(&self.scrub(words));
        let limit = Limit::new(self.config.timeout_secs, cancelled).warning(&warn);
        work(&limit).map_err(|error| error.map(|words| self.scrub(&words)))
    }

    /// Creates the repository if `create` is set and the repository does not exist. Returns an error if the
    /// remote is on the Hub and there is no token.
    pub(crate) fn ensure_repository(&self, limit: &Limit<'_>) -> Result<()> {
        if self.remote.kind() == Kind::Hub && self.token.is_none() {
            return Err(Token::missing(&self.config, &self.remote));
        }
        if !self.exists.load(Ordering::Relaxed) {
            creation::ensure(self, limit)?;
            self.exists.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes the tokens from a text.
    fn scrub(&self, text: &str) -> String {
        let tokens = self.token.iter().chain(&self.lfs_token);
        tokens.fold(text.to_owned(), |text, token| token.scrub(&text))
    }

    fn deliver(&self, checkpoint: &PushedCheckpoint<'_>, limit: &Limit<'_>) -> Result<Receipt> {
        let branch = self.config.branch.as_deref().unwrap_or(checkpoint.run);
        let sources = self.sources(checkpoint)?;
        let key = self.key(checkpoint, branch, &sources);
        let mut journal = Journal::open(checkpoint.state_dir)?;
        let mut delivery = match journal.get(&key) {
            Some(delivery) => delivery.clone(),
            None => Delivery {
                step: checkpoint.step,
                branch: branch.to_owned(),
                time_secs: now_secs(),
                pending: None,
                commit: None,
            },
        };
        if let Some(commit) = &delivery.commit {
            return Ok(self.receipt(checkpoint, branch, commit));
        }
        self.ensure_repository(limit)?;
        let token = self.token.as_ref();
        let state_dir = checkpoint.state_dir;
        let repository = Repository::open(&self.git, &self.remote, token, state_dir, limit)?;
        let task = Task {
            publisher: self,
            checkpoint,
            branch,
            sources,
            repository,
            limit,
        };
        let commit = task.run(&mut delivery, &mut |delivery| {
            journal.set(&key, delivery.clone())
        })?;
        delivery.pending = None;
        delivery.commit = Some(commit.clone());
        journal.set(&key, delivery)?;
        task.repository.forget_outgoing()?;
        Ok(self.receipt(checkpoint, branch, &commit))
    }

    /// Returns the checkpoint's files that must be pushed.
    fn sources<'s>(&self, checkpoint: &PushedCheckpoint<'s>) -> Result<Vec<Source<'s>>> {
        let chosen = |name: &str| self.config.trainer || !name.starts_with(TRAINER);
        let mut sources = Vec::new();
        for (name, entry) in checkpoint.files.iter().filter(|(name, _)| chosen(name)) {
            let is_sha256 = entry.sha256.len() == 64
                && entry
                    .sha256
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if !is_sha256 || name.chars().any(char::is_control) {
                let words = format!("the manifest has an invalid digest or file name: {name:?}");
                return Err(Error::Permanent(words));
            }
            sources.push(Source {
                name,
                path: checkpoint.dir.join(name),
                sha256: Cow::Borrowed(&entry.sha256),
                size: entry.size,
            });
        }
        if self.config.trainer {
            sources.extend(manifest(checkpoint)?);
        }
        Ok(sources)
    }

    /// Returns the id of a delivery. Deliveries of the same files and step to the same branch of the same
    /// remote have the same id.
    fn key(
        &self,
        checkpoint: &PushedCheckpoint<'_>,
        branch: &str,
        sources: &[Source<'_>],
    ) -> String {
        let mut hash = Sha256::new();
        let step = checkpoint.step.to_string();
        let mut add = |text: &str| {
            hash.update(text.as_bytes());
            hash.update([0]);
        };
        [self.remote.configured_url(), branch, &step]
            .into_iter()
            .for_each(&mut add);
        for source in sources {
            add(source.name);
            add(&source.sha256);
        }
        hash.finalize()
            .iter()
            .take(12)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn receipt(&self, checkpoint: &PushedCheckpoint<'_>, branch: &str, commit: &str) -> Receipt {
        let manifest = std::fs::read(checkpoint.dir.join(MANIFEST));
        Receipt {
            commit: commit.to_owned(),
            branch: branch.to_owned(),
            remote: self.remote.configured_url().to_owned(),
            manifest_sha256: manifest.ok().map(|bytes| sha256(&bytes)),
        }
    }
}

/// Returns the manifest as one more file to push. The manifest does not list itself, so `files` does not
/// contain it. A resume from the pushed files verifies them against the manifest.
fn manifest<'a>(checkpoint: &PushedCheckpoint<'a>) -> Result<Option<Source<'a>>> {
    let path = checkpoint.dir.join(MANIFEST);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path, &error)),
    };
    Ok(Some(Source {
        name: MANIFEST,
        path,
        sha256: Cow::Owned(sha256(&bytes)),
        size: bytes.len() as u64,
    }))
}

fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

impl fmt::Debug for Warn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Warn")
    }
}

pub(crate) fn now_secs() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
