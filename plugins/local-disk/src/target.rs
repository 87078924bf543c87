//! The folder of the setting `dir`, identified by a marker file in it. When a disk is unmounted, its mount
//! point may remain as an empty folder. Checkpoints written there would be hidden when the disk is mounted
//! again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use host_plugin_sdk::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::dir::{Dir, Identity, failed};
use crate::id;

/// The marker file, which contains a random id of the folder. All runs that deliver to the folder share the
/// marker.
const MARKER: &str = ".local-disk";
/// The file in the sink's state folder that contains the [`Claim`].
const CLAIM: &str = "claim.json";
/// The file in the sink's state folder that contains the run's id. The run's folder in `dir` contains the
/// same id.
const RUN_ID: &str = "run-id";
const MOST_CLAIM_BYTES: u64 = 1 << 20;

/// The folder that a run's checkpoints are delivered to.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) dir: Dir,
    state: Dir,
    /// The run's id.
    pub(crate) id: String,
    claim: Claim,
}

/// The folder that the sink has claimed for a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claim {
    /// The path that the sink's state folder had when the claim was saved. In a copy of the run, the state
    /// folder has a different path.
    state_dir: PathBuf,
    /// The setting `dir`.
    dir: PathBuf,
    /// The id in the marker file.
    marker: String,
    /// The name of the run's folder in `dir`, once it exists.
    folder: Option<String>,
}

impl Target {
    /// Opens the folder at `dir`. If the run has already claimed a folder at this path, returns an error
    /// unless this is still the same folder. Otherwise, claims the folder; returns an error if `expected` is
    /// set and identifies another folder.
    pub(crate) fn open(dir: &Path, state_dir: &Path, expected: Option<Identity>) -> Result<Self> {
        let state = Dir::open(state_dir).map_err(|e| Error::io("open", state_dir, &e))?;
        let here = fs::canonicalize(state_dir).map_err(|e| Error::io("resolve", state_dir, &e))?;
        let claim = read_claim(&state, state_dir)?;
        let (id, claim) = match claim {
            Some(claim) if claim.is_of_the_original(&here, &state) => {
                // This run is a copy, and the claim belongs to the original run.
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
                let found = target.identity().map_err(|e| failed("check", dir, &e))?;
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

    /// Whether the run has claimed a folder at `dir`. If it has, the caller must not create a new folder
    /// there.
    pub(crate) fn is_claimed(dir: &Path, state_dir: &Path) -> bool {
        let claim = Dir::open(state_dir).ok();
        let claim = claim.and_then(|state| read_claim(&state, state_dir).ok().flatten());
        claim.is_some_and(|claim| claim.dir == dir)
    }

    /// Returns the name of the run's folder, if the run has one.
    pub(crate) fn folder(&self) -> Option<&str> {
        self.claim.folder.as_deref()
    }

    /// Records the run's folder.
    pub(crate) fn claim_folder(&mut self, name: &str) -> Result<()> {
        if self.claim.folder.as_deref() == Some(name) {
            return Ok(());
        }
        self.claim.folder = Some(name.to_owned());
        self.save()
    }

    /// Returns the error for a folder that is not the claimed one.
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
    /// Returns true if this run is a copy, and the claim belongs to the original run. This is the case if the
    /// original run's state folder still exists and contains the same id.
    fn is_of_the_original(&self, here: &Path, state: &Dir) -> bool {
        if self.state_dir == here {
            return false;
        }
        let Ok(original) = Dir::open(&self.state_dir) else {
            // The run was moved, not copied.
            return false;
        };
        let is_same_folder = || Some(original.identity().ok()? == state.identity().ok()?);
        let id = |dir: &Dir| dir.read(RUN_ID, id::LENGTH as u64).ok();
        is_same_folder() == Some(false) && id(&original).is_some_and(|own| Some(own) == id(state))
    }
}

fn open(dir: &Path) -> Result<Dir> {
    Dir::open(dir).map_err(|error| match error.kind() {
        // The folder existed when the sink was created. Perhaps its disk has been unmounted.
        ErrorKind::NotFound => {
            Error::temporary(format!("the folder is missing: {}", dir.display()))
        }
        _ => failed("open", dir, &error),
    })
}

fn other(path: &Path, state_dir: &Path) -> Error {
    Error::temporary(format!(
        "the folder with the run's earlier checkpoints was not found at this path: \
         mount the disk with that folder, or remove {} to continue without it: {}",
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

/// Reads the id in a folder's marker. Returns `None` if there is no valid marker.
fn marker(target: &Dir) -> Result<Option<String>> {
    match target.read(MARKER, id::LENGTH as u64) {
        Ok(bytes) => Ok(id::parse(&bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &target.path().join(MARKER), &error)),
    }
}

/// Returns the id of a folder, and marks the folder if it has no marker. A lock ensures that concurrent calls
/// create only one marker.
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

/// Returns the run's id. Creates it on the first call.
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
