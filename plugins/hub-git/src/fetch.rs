//! Downloads a checkpoint. The files of one commit are written to a folder that is kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use crate::download::Target;
use crate::http::Http;
use crate::lfs::{self, POINTER_BYTES, Pointer};
use crate::lfs_server::LfsServer;
use crate::limit::Limit;
use crate::preflight::check_free;
use crate::publisher::{MANIFEST, Publisher, TRAINER};
use crate::repository::{Blob, Repository, remove, says_how};
use crate::{Error, Result, git};

/// The checkpoint to download.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// A branch, a tag or a full commit id. If absent, the configured revision is downloaded. If no revision
    /// is configured either, the latest commit of the repository's default branch is downloaded.
    pub revision: Option<&'a str>,
    /// Whether to download the trainer state too.
    pub for_resume: bool,
    /// The sink's private folder.
    pub state_dir: &'a Path,
}

/// A checkpoint that was downloaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Brought {
    /// The checkpoint's folder. It is complete and is never changed later.
    pub path: PathBuf,
    /// The commit's id.
    pub commit: String,
    /// The repository, without credentials.
    pub remote: String,
}

/// A file to download.
struct Piece {
    blob: Blob,
    /// The LFS pointer, if git holds a pointer instead of the content.
    pointer: Option<Pointer>,
}

/// File name endings of models, configurations and tokenizers. The list includes unsupported tokenizer
/// formats: their files are small, and the host can name a downloaded file in its error.
const MODEL: [&str; 5] = [".json", ".txt", ".safetensors", ".model", ".bpe"];

/// File name endings of weights in unsupported formats.
const OTHER_WEIGHTS: [&str; 12] = [
    ".bin",
    ".h5",
    ".msgpack",
    ".gguf",
    ".pt",
    ".pth",
    ".ckpt",
    ".ckpt.index",
    ".onnx",
    ".ot",
    ".npz",
    ".pkl",
];

impl Publisher {
    /// Downloads a checkpoint into the sink's private folder. A commit that is already there is not
    /// downloaded again. If the revision is the id of such a commit, no request is sent. Processes that fetch
    /// into the same folder wait for each other.
    ///
    /// # Errors
    /// Returns an error if the remote does not have the checkpoint, or the download fails. No error contains
    /// the token.
    pub fn fetch(
        &self,
        wanted: &Wanted<'_>,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Brought> {
        self.within_limit(cancelled, |limit| self.bring(wanted, limit))
    }

    fn bring(&self, wanted: &Wanted<'_>, limit: &Limit<'_>) -> Result<Brought> {
        let brought = |commit: &str| Brought {
            path: folder_of(commit, wanted),
            commit: commit.to_owned(),
            remote: self.remote.configured_url().to_owned(),
        };
        let revision = wanted.revision.or(self.config.branch.as_deref());
        let revision = revision.or(self.remote.revision());
        let id = revision.filter(|revision| is_commit_id(revision));
        let _turn = Turn::take(wanted.state_dir, limit)?;
        if let Some(id) = id
            && folder_of(id, wanted).is_dir()
        {
            return Ok(brought(id));
        }
        let token = self.token.as_ref();
        // A separate repository is necessary. The repository in which commits are created does not contain
        // the delivered files.
        let place = wanted.state_dir.join("fetch");
        fs::create_dir_all(&place).map_err(|error| Error::io("make folder", &place, &error))?;
        let repository = Repository::open(&self.git, &self.remote, token, &place, limit)?;
        let commit = match id {
            Some(id) => id.to_owned(),
            None => repository.find(revision)?,
        };
        if !folder_of(&commit, wanted).is_dir() {
            repository.fetch(&commit, &|path| {
                says_how(path) || is_wanted(path, wanted.for_resume)
            })?;
            self.bring_files(&repository, &commit, wanted, limit)?;
        }
        drop(repository);
        remove(&place)?;
        Ok(brought(&commit))
    }

    fn bring_files(
        &self,
        repository: &Repository<'_>,
        commit: &str,
        wanted: &Wanted<'_>,
        limit: &Limit<'_>,
    ) -> Result<()> {
        let pieces = self.pieces(repository, commit, wanted)?;
        check_free(wanted.state_dir, pieces.iter().map(Piece::size).sum())?;
        let partial = wanted.state_dir.join("partial");
        remove(&partial)?;
        let failed = |path: &Path, error: &std::io::Error| Error::io("write", path, error);
        let from_server = pieces.iter().any(|piece| piece.pointer.is_some());
        let server = match from_server {
            true => {
                let lfs_config = repository.read(Some(commit), ".lfsconfig")?;
                LfsServer::of(self, "download", lfs_config.as_deref(), limit)?
            }
            false => None,
        };
        for piece in &pieces {
            let path = partial.join(&piece.blob.path);
            let parent = path.parent().unwrap_or(&partial);
            fs::create_dir_all(parent).map_err(|error| failed(parent, &error))?;
            let file = File::create(&path).map_err(|error| failed(&path, &error))?;
            match (&piece.pointer, &server) {
                (None, _) => repository.write_to(&piece.blob, &file)?,
                (Some(pointer), Some(server)) => Http::during(self.git.network(), limit, |http| {
                    let mut target = Target::new(&file, &path);
                    lfs::Client::new(http, server).download(pointer, &mut target)
                })?,
                (Some(pointer), None) => {
                    self.copy_object(pointer, &mut Target::new(&file, &path), limit)?;
                }
            }
            file.sync_all().map_err(|error| failed(&path, &error))?;
        }
        let folder = folder_of(commit, wanted);
        fs::rename(&partial, &folder).map_err(|error| failed(&folder, &error))
    }

    /// Lists the files to download from a commit.
    fn pieces(
        &self,
        repository: &Repository<'_>,
        commit: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<Piece>> {
        let paths = repository.paths(commit)?;
        let in_torch = !paths
            .iter()
            .any(|path| !path.contains('/') && path.ends_with(".safetensors"));
        let is_part = |path: &str| is_wanted(path, wanted.for_resume) || in_torch && is_torch(path);
        if in_torch {
            repository.fetch(commit, &is_part)?;
        }
        let blobs = repository.files(commit, &is_part)?;
        let others = other_weights(paths.iter().map(String::as_str));
        let has = |name: &str| blobs.iter().any(|blob| blob.path == name);
        let lacks = |what: &str, more: &str| {
            let (url, short) = (self.remote.url(), &commit[..commit.len().min(12)]);
            Err(Error::Permanent(format!(
                "commit {short} has no {what}{more}: {url}"
            )))
        };
        if !has("config.json") {
            let more = match wanted.revision {
                Some(_) => String::new(),
                None => repository.other_branches()?,
            };
            return lacks("config.json, so it does not contain a model", &more);
        }
        if in_torch
            && !blobs.iter().any(|blob| is_torch(&blob.path))
            && let Some(other) = others
        {
            let more = format!(
                ", and {other} is not supported: convert it with from_pretrained and save_pretrained of transformers"
            );
            return lacks("model.safetensors", &more);
        }
        if wanted.for_resume && !has(MANIFEST) {
            let more = "; only checkpoints that were pushed with trainer = true contain it";
            return lacks("state to resume from", more);
        }
        let piece = |blob: Blob| {
            let pointer = match blob.size {
                0..=POINTER_BYTES => Pointer::read(&repository.content(&blob)?),
                _ => None,
            };
            Ok(Piece { blob, pointer })
        };
        blobs.into_iter().map(piece).collect()
    }

    /// Copies an object from the LFS store of a repository on this machine.
    fn copy_object(
        &self,
        pointer: &Pointer,
        target: &mut Target<'_>,
        limit: &Limit<'_>,
    ) -> Result<()> {
        let repository = git::git_dir(Path::new(self.remote.url()));
        let from = lfs::object_path(&repository.join("lfs/objects"), &pointer.sha256);
        let mut file = File::open(&from).map_err(|error| Error::io("open", &from, &error))?;
        target.copy(&mut file, pointer.size, limit)?;
        if target.is(pointer) {
            return Ok(());
        }
        let from = from.display();
        Err(Error::Permanent(format!(
            "the object's content does not match its name: {from}"
        )))
    }
}

impl Piece {
    fn size(&self) -> u64 {
        match &self.pointer {
            Some(pointer) => pointer.size,
            None => self.blob.size,
        }
    }
}

/// A lock on the folder for fetching, released when dropped or when the process ends.
struct Turn(#[expect(dead_code, reason = "keeps the file lock")] File);

impl Turn {
    fn take(state_dir: &Path, limit: &Limit<'_>) -> Result<Self> {
        let path = state_dir.join("lock");
        let failed = |error: std::io::Error| Error::io("lock", &path, &error);
        let file = File::create(&path).map_err(failed)?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::WOULDBLOCK) => limit.sleep(Duration::from_millis(50))?,
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

/// Returns the folder of a commit's files.
fn folder_of(commit: &str, wanted: &Wanted<'_>) -> PathBuf {
    let what = if wanted.for_resume { "resume" } else { "model" };
    wanted.state_dir.join(format!("{commit}-{what}"))
}

/// Whether a text is a full commit id (SHA-1 or SHA-256).
fn is_commit_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a file contains weights in the format that transformers wrote before it changed to safetensors.
fn is_torch(path: &str) -> bool {
    path.starts_with("pytorch_model") && path.ends_with(".bin") && !path.contains('/')
}

/// Returns the name of a file that contains weights in an unsupported format. Considers only the repository's
/// top-level folder. If it has several such files, returns the first one by name.
fn other_weights<'a>(paths: impl Iterator<Item = &'a str>) -> Option<String> {
    let is_one = |path: &&str| {
        !path.contains('/')
            && !matches!(*path, "training_args.bin" | "optimizer.pt" | "scheduler.pt")
            && OTHER_WEIGHTS.iter().any(|ending| path.ends_with(ending))
    };
    paths.filter(is_one).min().map(str::to_owned)
}

/// Whether a file of the repository belongs to the checkpoint. The remote chooses the path, so a path that
/// could leave the checkpoint's folder is rejected.
fn is_wanted(path: &str, for_resume: bool) -> bool {
    let is_name = |part: &str| !matches!(part, "" | "." | ".." | ".git");
    if !path.split('/').all(is_name) {
        return false;
    }
    match path.split_once('/') {
        _ if path == MANIFEST => for_resume,
        Some(_) => for_resume && path.starts_with(TRAINER),
        None => MODEL.iter().any(|ending| path.ends_with(ending)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_checkpoint_are_downloaded() {
        for (path, of_a_model, for_resume) in [
            ("config.json", true, true),
            ("model-00001-of-00002.safetensors", true, true),
            ("model.safetensors.index.json", true, true),
            ("merges.txt", true, true),
            ("tokenizer.model", true, true),
            ("vocab.bpe", true, true),
            ("manifest.json", false, true),
            ("trainer/optimizer.safetensors", false, true),
            ("trainer/../../x.json", false, false),
            ("../x.json", false, false),
            ("onnx/config.json", false, false),
            ("README.md", false, false),
            ("pytorch_model.bin", false, false),
        ] {
            assert_eq!(is_wanted(path, false), of_a_model, "{path}");
            assert_eq!(is_wanted(path, true), for_resume, "{path}");
        }
    }

    #[test]
    fn weights_in_unsupported_formats_are_found() {
        let found = |paths: &[&str]| other_weights(paths.iter().copied());
        for weights in [
            "model.bin",
            "tf_model.h5",
            "flax_model.msgpack",
            "model.Q4.gguf",
            "consolidated.00.pth",
            "model.ckpt.index",
        ] {
            assert_eq!(found(&["config.json", weights]).as_deref(), Some(weights));
        }
        assert!(is_torch("pytorch_model.bin") && is_torch("pytorch_model-00001-of-00002.bin"));
        assert!(!is_torch("a/pytorch_model.bin") && !is_torch("pytorch_model.bin.index.json"));
        assert_eq!(
            found(&["config.json", "onnx/model.onnx", "training_args.bin"]),
            None
        );
    }

    #[test]
    fn a_full_commit_id_is_distinguished_from_a_branch() {
        assert!(is_commit_id(&"0a".repeat(20)) && is_commit_id(&"0a".repeat(32)));
        assert!(!is_commit_id("0a0a") && !is_commit_id(&"0g".repeat(20)) && !is_commit_id("main"));
    }
}
