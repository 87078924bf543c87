use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::LfsMode;
use crate::git;
use crate::http::Http;
use crate::journal::Delivery;
use crate::lfs_server::LfsServer;
use crate::limit::Limit;
use crate::publisher::{Publisher, PushedCheckpoint};
use crate::repository::{Entry, Pushed, Repository, Tip, says_how};
use crate::upload::{self, Source};
use crate::{Error, Result, attributes, lfs, model_card};

/// One delivery in progress.
pub(crate) struct Task<'a> {
    pub(crate) publisher: &'a Publisher,
    pub(crate) checkpoint: &'a PushedCheckpoint<'a>,
    pub(crate) branch: &'a str,
    pub(crate) sources: Vec<Source<'a>>,
    pub(crate) repository: Repository<'a>,
    pub(crate) limit: &'a Limit<'a>,
}

/// Maximum number of attempts to push a commit. Another client can move the branch before each attempt.
const ATTEMPTS: u32 = 30;

/// Maximum number of consecutive pushes that are rejected although the branch did not move.
const LOCKED_ATTEMPTS: u32 = 8;

/// A tree, and the LFS files that must be uploaded before a commit of the tree is pushed.
struct Tree {
    id: String,
    by_lfs: BTreeSet<String>,
}

impl Task<'_> {
    /// Pushes the checkpoint to the branch and returns the commit's id. `keep` saves the delivery to the
    /// journal. It is called before each push, because the result of the push may be lost.
    pub(crate) fn run(
        &self,
        delivery: &mut Delivery,
        keep: &mut dyn FnMut(&Delivery) -> Result<()>,
    ) -> Result<String> {
        let message = format!("step {}", self.checkpoint.step);
        let mut tip = self.repository.tip(self.branch)?;
        if let Some(pending) = delivery.pending.clone()
            && self.arrived(&pending, &tip)?
        {
            return Ok(pending);
        }
        let mut uploaded = HashSet::new();
        let mut words = String::new();
        let mut locked = 0;
        for attempt in 0..ATTEMPTS {
            if let Some(base) = tip.base() {
                self.repository.fetch(base, &says_how)?;
            }
            let tree = self.tree(tip.base())?;
            if let Some(there) = &tip.branch
                && self.repository.describe(there)? == (tree.id.clone(), message.clone())
            {
                // The branch already ends in a commit of this checkpoint, although the journal does not list
                // that commit.
                return Ok(there.clone());
            }
            self.upload(&tree.by_lfs, tip.base(), &mut uploaded)?;
            let author = self.publisher.config.author();
            let commit = self.repository.commit(
                &tree.id,
                tip.base(),
                &message,
                author,
                delivery.time_secs,
            )?;
            delivery.pending = Some(commit.clone());
            keep(delivery)?;
            match self.repository.push(self.branch, &commit, &tip) {
                Ok(Pushed::Landed) => return Ok(commit),
                Ok(Pushed::Moved(why)) => {
                    delivery.pending = None;
                    words = why;
                }
                Err(error @ Error::Temporary(_)) => {
                    // The push may have succeeded even though its response was lost.
                    let arrived = self.limit.check().is_ok()
                        && self
                            .repository
                            .tip(self.branch)
                            .is_ok_and(|now| now.branch.as_deref() == Some(commit.as_str()));
                    return if arrived { Ok(commit) } else { Err(error) };
                }
                Err(error) => return Err(error),
            }
            // Random delay, so that competing clients do not retry simultaneously.
            self.limit
                .sleep(Duration::from_millis(jitter(20 * u64::from(attempt + 1))))?;
            let before = std::mem::replace(&mut tip, self.repository.tip(self.branch)?);
            // If the branch did not move, a killed process on the server may have left a lock on it.
            locked = if tip == before { locked + 1 } else { 0 };
            if locked == LOCKED_ATTEMPTS {
                break;
            }
        }
        Err(Error::Temporary(format!(
            "cannot update the branch {}: {words}: {}",
            self.branch,
            self.publisher.remote.url()
        )))
    }

    /// Whether a commit that was pushed earlier is on the branch.
    fn arrived(&self, pending: &str, tip: &Tip) -> Result<bool> {
        match tip.branch.as_deref() {
            None => Ok(false),
            Some(branch) if branch == pending => Ok(true),
            Some(_) => self.repository.remote_has(self.branch, pending),
        }
    }

    /// Writes the tree of the commit: the files of the base, overlaid with the checkpoint.
    fn tree(&self, base: Option<&str>) -> Result<Tree> {
        let repository = &self.repository;
        repository.begin_tree(base)?;
        let mut entries = Vec::new();
        let by_lfs = self.by_lfs(base)?;
        for source in &self.sources {
            let blob = if by_lfs.contains(source.name) {
                repository.write(lfs::pointer(&source.sha256, source.size).as_bytes())?
            } else {
                source.check(self.limit)?;
                repository.write_outgoing(&source.path)?
            };
            entries.push(Entry {
                path: source.name.to_owned(),
                blob,
            });
        }
        let readme = repository.read(base, "README.md")?;
        let PushedCheckpoint {
            run, step, metrics, ..
        } = *self.checkpoint;
        if let Some(card) = model_card::update(readme.as_deref(), run, step, metrics) {
            let blob = repository.write(card.as_bytes())?;
            entries.push(Entry {
                path: "README.md".to_owned(),
                blob,
            });
        }
        repository.add(&entries)?;
        Ok(Tree {
            id: repository.end_tree()?,
            by_lfs,
        })
    }

    /// Returns the files to store with LFS. Extends the `.gitattributes` if the configuration allows it.
    fn by_lfs(&self, base: Option<&str>) -> Result<BTreeSet<String>> {
        let Publisher { config, remote, .. } = self.publisher;
        let extends = match config.lfs {
            LfsMode::Never => return Ok(BTreeSet::new()),
            LfsMode::Auto => remote.is_on_hub(),
            LfsMode::Always => true,
        };
        let names: Vec<&str> = self.sources.iter().map(|source| source.name).collect();
        let mut by_lfs = self.repository.lfs_paths(&names)?;
        if extends {
            let mut more = Vec::new();
            for source in &self.sources {
                if !by_lfs.contains(source.name)
                    && attributes::wants_lfs(source.name, source.size, &beginning(&source.path)?)
                {
                    more.push(source.name);
                }
            }
            if !more.is_empty() {
                let before = self
                    .repository
                    .read(base, ".gitattributes")?
                    .unwrap_or_default();
                let after = attributes::extend(&before, more.iter().copied());
                let blob = self.repository.write(after.as_bytes())?;
                self.repository.add(&[Entry {
                    path: ".gitattributes".to_owned(),
                    blob,
                }])?;
                by_lfs.extend(more.iter().map(|name| (*name).to_owned()));
            }
        }
        Ok(by_lfs)
    }

    /// Uploads the LFS files that have not been uploaded yet.
    fn upload(
        &self,
        names: &BTreeSet<String>,
        base: Option<&str>,
        uploaded: &mut HashSet<String>,
    ) -> Result<()> {
        let missing: Vec<Source<'_>> = self
            .sources
            .iter()
            .filter(|source| names.contains(source.name) && !uploaded.contains(source.name))
            .cloned()
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let lfs_config = self.repository.read(base, ".lfsconfig")?;
        match LfsServer::of(self.publisher, "upload", lfs_config.as_deref(), self.limit)? {
            None => {
                let repository = git::git_dir(Path::new(self.publisher.remote.url()));
                let store = repository.join("lfs/objects");
                for source in &missing {
                    upload::into_store(&store, source, self.limit)?;
                }
            }
            Some(server) => Http::during(self.publisher.git.network(), self.limit, |http| {
                lfs::Client::new(http, &server).upload(self.branch, &missing)
            })?,
        }
        uploaded.extend(missing.iter().map(|source| source.name.to_owned()));
        Ok(())
    }
}

/// Reads the first 8000 bytes of a file. Git uses the same number of bytes to detect binary files.
fn beginning(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(8000).read_to_end(&mut bytes))
        .map_err(|error| Error::io("read", path, &error))?;
    Ok(bytes)
}

/// Returns a number of milliseconds below `most`. The number differs between processes.
fn jitter(most: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (u64::from(now.subsec_nanos()) ^ u64::from(std::process::id())) % most.max(1)
}
