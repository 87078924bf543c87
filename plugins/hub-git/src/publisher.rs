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
    /// For the LFS server that a branch names, if that is another server.
    pub(crate) lfs_token: Option<Token>,
    pub(crate) git: Git,
    warn: Warn,
    /// Whether the repository is known to exist.
    exists: AtomicBool,
}

/// Who hears what the sink says while it works.
struct Warn(Box<dyn Fn(&str) + Send + Sync>);

/// A checkpoint to push.
#[derive(Clone, Copy, Debug)]
pub struct PushedCheckpoint<'a> {
    /// Its optimizer step.
    pub step: u64,
    /// The run's name.
    pub run: &'a str,
    /// Its folder, which nobody changes.
    pub dir: &'a Path,
    /// Its files, by path within the folder.
    pub files: &'a BTreeMap<String, FileEntry>,
    /// The evaluation's values.
    pub metrics: &'a BTreeMap<String, f64>,
    /// A folder of the sink's own.
    pub state_dir: &'a Path,
}

/// Where a checkpoint arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The commit's id.
    pub commit: String,
    /// The branch it is on.
    pub branch: String,
    /// The repository, without credentials.
    pub remote: String,
    /// SHA-256 of the checkpoint's `manifest.json`, which names every file by its own digest; none if
    /// the checkpoint has no such file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
}

/// The trainer's own state within a checkpoint.
pub(crate) const TRAINER: &str = "trainer/";

/// What a checkpoint says of its own files.
pub(crate) const MANIFEST: &str = "manifest.json";

impl Publisher {
    /// A publisher. `env` looks an environment variable up; `git` is the program.
    ///
    /// # Errors
    /// The configuration makes no sense, the token that it names is not there, or no git.
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

    /// Where warnings go, such as that a server asked for a wait. None holds the token.
    #[must_use]
    pub fn on_warning(mut self, warn: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.warn = Warn(Box::new(warn));
        self
    }

    /// Delivers a checkpoint; the same again changes nothing and gives the same receipt.
    ///
    /// # Errors
    /// It did not arrive. No error holds the token.
    pub fn publish(
        &self,
        checkpoint: &PushedCheckpoint<'_>,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Receipt> {
        self.within_limit(cancelled, |limit| self.deliver(checkpoint, limit))
    }

    /// Does work for which there is a limit; neither its warnings nor its error hold the token.
    pub(crate) fn within_limit<R>(
        &self,
        cancelled: &(dyn Fn() -> bool + Sync),
        work: impl FnOnce(&Limit<'_>) -> Result<R>,
    ) -> Result<R> {
        let warn = |words: &str| (self.warn.0)(&self.scrub(words));
        let limit = Limit::new(self.config.timeout_secs, cancelled).warning(&warn);
        work(&limit).map_err(|error| error.map(|words| self.scrub(&words)))
    }

    /// Makes the repository if that is asked for and it is not known to be there. The Hub takes nothing
    /// without a token.
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

    /// The text without the tokens.
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

    /// What of the checkpoint is pushed.
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
                let words =
                    format!("the manifest describes {name:?} in a way that git cannot have");
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

    /// Names a delivery: equal for the same files of the same step to the same branch.
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

/// The manifest, which names all other files and so not itself. Whoever resumes from what was pushed
/// proves the checkpoint by it.
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
