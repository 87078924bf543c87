//! The folder of the setting `dir`, known again by a marker in it: a disk that went away may leave its mount
//! point behind, and what is put there then is nowhere that anybody looks.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use host_plugin_sdk::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::dir::{Dir, Identity, failed};
use crate::id;

/// The marker, with an id that was drawn for the folder. All runs that deliver there share it.
const MARKER: &str = ".local-disk";
/// In the sink's state folder: what was claimed at the start.
const CLAIM: &str = "claim.json";
/// There as well: the run's id, which its folder in `dir` holds too.
const RUN_ID: &str = "run-id";
const MOST_CLAIM_BYTES: u64 = 1 << 20;

/// Where a run's checkpoints go.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) dir: Dir,
    state: Dir,
    /// The run's.
    pub(crate) id: String,
    claim: Claim,
}

/// What the sink has claimed for a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claim {
    /// The sink's state folder at that time: a run that was copied has it elsewhere.
    state_dir: PathBuf,
    /// The setting.
    dir: PathBuf,
    /// What the marker says.
    marker: String,
    /// The run's folder in it, once it has one.
    folder: Option<String>,
}

impl Target {
    /// The folder at `dir`, which must be the one that the run began with, if it did. One that has not begun
    /// takes what `expected` says, if that is known.
    pub(crate) fn open(dir: &Path, state_dir: &Path, expected: Option<Identity>) -> Result<Self> {
        let state = Dir::open(state_dir).map_err(|e| Error::io("open", state_dir, &e))?;
        let here = fs::canonicalize(state_dir).map_err(|e| Error::io("find", state_dir, &e))?;
        let claim = read_claim(&state, state_dir)?;
        let (id, claim) = match claim {
            Some(claim) if claim.is_of_the_original(&here, &state) => {
                // This run is a copy: what was claimed is the original's.
                (new_id(&state, state_dir)?, None)
            }
            claim => (run_id(&state, state_dir)?, claim),
        };
        let target = open(dir)?;
        let claimed = claim.filter(|claim| claim.dir == dir);
        let is_recorded = claimed
            .as_ref()
            .is_some_and(|claim| claim.state_dir == here);
        let claim = match claimed {
            Some(claim) if marker(&target)?.as_ref() == Some(&claim.marker) => Claim {
                state_dir: here,
                ..claim
            },
            Some(_) => return Err(other(dir, state_dir)),
            None => {
                let found = target.identity().map_err(|e| failed("ask", dir, &e))?;
                if expected.is_some_and(|expected| expected != found) {
                    return Err(other(dir, state_dir));
                }
                Claim {
                    state_dir: here,
                    dir: dir.to_owned(),
                    marker: mark(&target)?,
                    folder: None,
                }
            }
        };
        let target = Self {
            dir: target,
            state,
            id,
            claim,
        };
        if !is_recorded {
            target.save()?;
        }
        Ok(target)
    }

    /// Whether the run has claimed a folder at `dir`, so that none may be made in its place.
    pub(crate) fn is_claimed(dir: &Path, state_dir: &Path) -> bool {
        let claim = Dir::open(state_dir).ok();
        let claim = claim.and_then(|state| read_claim(&state, state_dir).ok().flatten());
        claim.is_some_and(|claim| claim.dir == dir)
    }

    /// The name of the run's folder, if it has one.
    pub(crate) fn folder(&self) -> Option<&str> {
        self.claim.folder.as_deref()
    }

    /// Takes note of the run's folder.
    pub(crate) fn claim_folder(&mut self, name: &str) -> Result<()> {
        if self.claim.folder.as_deref() == Some(name) {
            return Ok(());
        }
        self.claim.folder = Some(name.to_owned());
        self.save()
    }

    /// The failure of a folder that is not what was claimed.
    pub(crate) fn is_another(&self, path: &Path) -> Error {
        other(path, self.state.path())
    }

    fn save(&self) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.claim)? + "\n";
        let written = self.state.write(CLAIM, json.as_bytes());
        written.map_err(|e| Error::io("write", &self.state.path().join(CLAIM), &e))
    }
}

impl Claim {
    /// Whether the run that made the claim is another, which stands where it stood, and has lent its id.
    fn is_of_the_original(&self, here: &Path, state: &Dir) -> bool {
        if self.state_dir == here {
            return false;
        }
        let Ok(original) = Dir::open(&self.state_dir) else {
            // It was moved.
            return false;
        };
        let is_same_folder = || Some(original.identity().ok()? == state.identity().ok()?);
        let id = |dir: &Dir| dir.read(RUN_ID, id::LENGTH as u64).ok();
        is_same_folder() == Some(false) && id(&original).is_some_and(|own| Some(own) == id(state))
    }
}

fn open(dir: &Path) -> Result<Dir> {
    Dir::open(dir).map_err(|error| match error.kind() {
        // It was there when the run began: an unmounted disk, perhaps.
        ErrorKind::NotFound => Error::temporary(format!("the folder is gone: {}", dir.display())),
        _ => failed("open", dir, &error),
    })
}

fn other(path: &Path, state_dir: &Path) -> Error {
    Error::temporary(format!(
        "this is not the folder that the run's checkpoints went to: an unmounted disk? (to continue here, remove {}): {}",
        state_dir.join(CLAIM).display(),
        path.display()
    ))
}

fn read_claim(state: &Dir, state_dir: &Path) -> Result<Option<Claim>> {
    let path = state_dir.join(CLAIM);
    match state.read(CLAIM, MOST_CLAIM_BYTES) {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|error| Error::new(format!("cannot read: {error}: {}", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path, &error)),
    }
}

/// What the marker of a folder says; none if there is no such marker.
fn marker(target: &Dir) -> Result<Option<String>> {
    match target.read(MARKER, id::LENGTH as u64) {
        Ok(bytes) => Ok(id::parse(&bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &target.path().join(MARKER), &error)),
    }
}

/// The id of a folder that is new to the run. Of several that mark it at once, one does.
fn mark(target: &Dir) -> Result<String> {
    let _lock = target
        .lock()
        .map_err(|e| failed("lock", target.path(), &e))?;
    if let Some(id) = marker(target)? {
        return Ok(id);
    }
    let id = id::new();
    let written = target.write(MARKER, id.as_bytes());
    written.map_err(|e| failed("write", &target.path().join(MARKER), &e))?;
    Ok(id)
}

/// The id that this run's sink drew when it first looked.
fn run_id(state: &Dir, state_dir: &Path) -> Result<String> {
    let found = state.read(RUN_ID, id::LENGTH as u64).ok();
    match found.and_then(|bytes| id::parse(&bytes)) {
        Some(id) => Ok(id),
        None => new_id(state, state_dir),
    }
}

fn new_id(state: &Dir, state_dir: &Path) -> Result<String> {
    let id = id::new();
    let written = state.write(RUN_ID, id.as_bytes());
    written.map_err(|e| Error::io("write", &state_dir.join(RUN_ID), &e))?;
    Ok(id)
}
