//! The folder with all files of a run.

use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result, RunName, Step, nearest};
use host_store::{Reader, RunStatus};

use crate::runs::how_to_name_at;

/// A folder with one of these files is a checkpoint.
const MANIFEST: &str = "manifest.json";
const WEIGHTS: &str = "model.safetensors";

/// The folder `RUNS/NAME`.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    name: RunName,
    /// Absolute.
    path: PathBuf,
}

impl RunDir {
    /// Creates the folder of a new run. If no name is given, derives a name from the model and the time. If
    /// the derived name is taken, appends a number to it.
    ///
    /// # Errors
    /// Returns an error if the given name is taken, or the folder cannot be created.
    pub(crate) fn create(runs: &Path, name: Option<&RunName>, model: &str) -> Result<Self> {
        std::fs::create_dir_all(runs)
            .map_err(|e| Error::io("create the runs' folder", runs, &e))?;
        let make = |name: RunName| {
            let path = runs.join(name.as_str());
            match std::fs::create_dir(&path) {
                Ok(()) => {
                    // Syncs the new entry: if a power failure removed it, the run's checkpoints would be
                    // lost.
                    std::fs::File::open(runs)
                        .and_then(|folder| folder.sync_all())
                        .map_err(|e| Error::io("sync the runs' folder", runs, &e))?;
                    Ok(Some(Self { name, path }))
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
                Err(e) => Err(Error::io("create the run's folder", &path, &e)),
            }
        };
        if let Some(name) = name {
            return make(name.clone())?.ok_or_else(|| taken(runs, name));
        }
        let base = generated_name(model, &jiff::ZonedDateTime::now());
        for number in 1.. {
            let name = match number {
                1 => base.clone(),
                number => format!("{base}-{number}"),
            };
            if let Some(made) = make(name.parse()?)? {
                return Ok(made);
            }
        }
        unreachable!("an unused run name always exists")
    }

    /// Checks early whether the name is free for [`RunDir::create`].
    ///
    /// # Errors
    /// Returns an error if the name is taken.
    pub(crate) fn check_free(runs: &Path, name: &RunName) -> Result<()> {
        match runs.join(name.as_str()).exists() {
            true => Err(taken(runs, name)),
            false => Ok(()),
        }
    }

    /// Returns the folder of the run with this name, if it exists. Removes an empty folder, which a process that was
    /// killed at its start can leave behind.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be read.
    pub(crate) fn existing(runs: &Path, name: &RunName) -> Result<Option<Self>> {
        let folder = runs.join(name.as_str());
        if folder.join("run.toml").is_file() {
            return Self::find(runs, name.as_str()).map(Some);
        }
        // Fails if the folder is not empty. It is then an error that its name is taken.
        let _ = std::fs::remove_dir(folder);
        Ok(None)
    }

    /// Finds a run by its name or path.
    ///
    /// # Errors
    /// Returns an error if there is no such run.
    pub(crate) fn find(runs: &Path, run: &str) -> Result<Self> {
        let by_name = run
            .parse::<RunName>()
            .ok()
            .map(|name| runs.join(name.as_str()));
        let by_path = Some(PathBuf::from(run));
        let found = [by_name, by_path]
            .into_iter()
            .flatten()
            .find(|path| path.join("run.toml").is_file());
        let Some(found) = found else {
            let error = Error::new(
                ErrorKind::Config,
                format!("there is no run {run} in the folder {}", runs.display()),
            );
            let known = names(runs);
            return Err(match nearest(run, known.iter().map(String::as_str)) {
                Some(name) => error.hint(format!("did you mean {name}?")),
                None => error.hint(
                    "list the runs with `host runs list`, or give their folder with --runs-dir",
                ),
            });
        };
        let path = found
            .canonicalize()
            .map_err(|e| Error::io("find the run's folder", &found, &e))?;
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        Ok(Self {
            name: name.parse()?,
            path,
        })
    }

    /// Returns the run's name.
    pub(crate) fn name(&self) -> &RunName {
        &self.name
    }

    /// Returns the absolute path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the absolute path of the folder that contains this run's folder and the folders of other runs.
    pub(crate) fn runs_dir(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Returns the path of `run.toml`.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.path.join("run.toml")
    }

    /// Returns the path of the file with a live run's address. The file is removed when the run ends, but not
    /// if the run's process is killed.
    pub(crate) fn address_file(&self) -> PathBuf {
        self.path.join(host_serve::ADDRESS_FILE)
    }

    /// Returns the address of the run's own process, or `None` if the run is not live.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub(crate) fn live_address(&self) -> Result<Option<String>> {
        // Checks the store as well, because a killed process leaves its address file behind.
        let status = Reader::open(&self.path)?.run()?.status;
        let address = std::fs::read_to_string(self.address_file()).ok();
        let address = address.filter(|_| status == RunStatus::Running);
        Ok(address.map(|address| address.trim().to_owned()))
    }

    /// Returns the path of the file with a live run's control token. The file is not written if the user gave
    /// a token. Otherwise, it is removed when the run ends, but not if the run's process is killed.
    pub(crate) fn control_token_file(&self) -> PathBuf {
        self.path.join("control.token")
    }

    /// Returns the path of the run's self-signed certificate, which may not exist.
    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.path.join("tls-cert.pem")
    }

    /// Returns the path of the certificate's private key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.path.join("tls-key.pem")
    }

    /// Returns the files to remove when the run ends.
    pub(crate) fn transient_files(&self) -> [PathBuf; 2] {
        [self.address_file(), self.control_token_file()]
    }

    /// Returns the folder of the checkpoints.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Returns the state folder of a sink.
    pub(crate) fn sink_state(&self, label: &str) -> PathBuf {
        self.path.join("sinks").join(label)
    }

    /// Returns the complete checkpoint with the highest step.
    pub(crate) fn newest_checkpoint(&self) -> Option<(Step, PathBuf)> {
        let mut found = self.checkpoint_folders();
        found.retain(|(_, path)| path.join(MANIFEST).is_file());
        found.pop()
    }

    /// Returns all checkpoints, complete or damaged, in the order of their steps. A folder with only a user's
    /// files is not a checkpoint.
    pub(crate) fn checkpoint_folders(&self) -> Vec<(Step, PathBuf)> {
        let entries = self.checkpoints().read_dir().into_iter().flatten();
        let mut found: Vec<(Step, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let step = Step::of_checkpoint(entry.file_name().to_str()?)?;
                let has = |name: &str| entry.path().join(name).symlink_metadata().is_ok();
                (has(MANIFEST) || has(WEIGHTS)).then(|| (step, entry.path()))
            })
            .collect();
        found.sort_unstable();
        found
    }

    /// Returns the highest generation for which a checkpoint was set aside. Returns 0 if none was set aside.
    pub(crate) fn generation_set_aside(&self) -> u32 {
        let entries = self.checkpoints().read_dir().into_iter().flatten();
        let generation = |entry: std::io::Result<std::fs::DirEntry>| -> Option<u32> {
            let name = entry.ok()?.file_name();
            name.to_str()?.rsplit_once(SET_ASIDE)?.1.parse().ok()
        };
        entries.filter_map(generation).max().unwrap_or(0)
    }

    /// Renames the checkpoints whose step is higher than `step`, because the run goes back to `step` and
    /// begins `generation`. Checkpoints that the run writes from now on will not have any of the new names.
    /// Returns the new names.
    ///
    /// # Errors
    /// Returns an error if a folder cannot be renamed or synced.
    pub(crate) fn set_aside_after(&self, step: Step, generation: u32) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (_, path) in self.checkpoint_folders().into_iter().filter(|c| c.0 > step) {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = format!("{}{SET_ASIDE}{generation}", name.unwrap_or_default());
            std::fs::rename(&path, path.with_file_name(&name))
                .map_err(|e| Error::io("set the checkpoint aside", &path, &e))?;
            names.push(name);
        }
        let folder = self.checkpoints();
        if !names.is_empty() {
            // The names must be on the disk before an event records that the run went back.
            std::fs::File::open(&folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|e| Error::io("set checkpoints aside", &folder, &e))?;
        }
        Ok(names)
    }
}

/// Separates a checkpoint's name from the generation for which it was set aside.
const SET_ASIDE: &str = ".superseded-";

fn taken(runs: &Path, name: &RunName) -> Error {
    let path = runs.join(name.as_str());
    let message = format!("a run named {name} already exists: {}", path.display());
    Error::new(ErrorKind::Config, message).hint(format!(
        "resume it with `host resume {}`, or choose another --name",
        how_to_name_at(name, &path)
    ))
}

/// Returns the sorted names of the runs in a folder.
pub(crate) fn names(runs: &Path) -> Vec<String> {
    let Ok(entries) = runs.read_dir() else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("run.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Returns a name such as `codeparrot-20261124-0155`.
fn generated_name(model: &str, now: &jiff::ZonedDateTime) -> String {
    let path = Path::new(model);
    // For `gpt2/config.json`, the folder's name is more descriptive than the file's.
    let telling = match path.file_name().and_then(|name| name.to_str()) {
        Some("config.json") => path.parent().and_then(Path::file_name),
        _ => path.file_stem(),
    };
    let telling = telling.and_then(|name| name.to_str()).unwrap_or_default();
    let word: String = telling
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(60)
        .collect();
    let word = match word.trim_matches('-') {
        "" => "run",
        word => word,
    };
    format!("{word}-{}", now.strftime("%Y%m%d-%H%M"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_name_contains_the_model_and_the_time() {
        let now: jiff::ZonedDateTime = "2026-11-24T01:55:30[UTC]".parse().expect("a time");
        let names = ["codeparrot", "/m/gpt2/config.json", "./my model", "/"]
            .map(|model| generated_name(model, &now));
        assert_eq!(
            names,
            [
                "codeparrot-20261124-0155",
                "gpt2-20261124-0155",
                "my-model-20261124-0155",
                "run-20261124-0155"
            ]
        );
    }

    #[test]
    fn a_given_name_must_be_free_and_a_generated_name_is_unique() {
        let runs = tempfile::tempdir().expect("a folder");
        let name: RunName = "a".parse().expect("a name");
        let first = RunDir::create(runs.path(), Some(&name), "tiny").expect("free");
        assert_eq!(first.path(), runs.path().join("a"));
        assert!(RunDir::check_free(runs.path(), &name).is_err());
        let taken = RunDir::create(runs.path(), Some(&name), "tiny").expect_err("taken");
        let way = format!("host resume {}", first.path().display());
        assert!(taken.hint_text().expect("a hint").contains(&way));
        let made = |_| RunDir::create(runs.path(), None, "tiny").expect("made");
        let [one, two] = [0, 1].map(made);
        assert_ne!(one.name(), two.name());
    }

    #[test]
    fn a_run_is_found_by_name_and_by_path() {
        let runs = tempfile::tempdir().expect("a folder");
        let name: RunName = "first".parse().expect("a name");
        let made = RunDir::create(runs.path(), Some(&name), "tiny").expect("made");
        assert!(
            RunDir::find(runs.path(), "first").is_err(),
            "no configuration"
        );
        std::fs::write(made.config_file(), "").expect("written");
        assert_eq!(
            *RunDir::find(runs.path(), "first").expect("found").name(),
            name
        );
        let path = made.path().to_str().expect("UTF-8");
        assert_eq!(
            *RunDir::find(Path::new("/"), path).expect("found").name(),
            name
        );
        let missed = RunDir::find(runs.path(), "firts").expect_err("missed");
        assert_eq!(missed.hint_text(), Some("did you mean first?"));
    }

    #[test]
    fn the_newest_checkpoint_is_complete() {
        let runs = tempfile::tempdir().expect("a folder");
        let run = RunDir::create(runs.path(), None, "tiny").expect("made");
        assert!(run.newest_checkpoint().is_none());
        for (name, complete) in [
            ("step-000100", true),
            ("step-1000000", true),
            ("step-1000050", false),
            ("step-2000000.partial", true),
        ] {
            let path = run.checkpoints().join(name);
            std::fs::create_dir_all(&path).expect("made");
            if complete {
                std::fs::write(path.join("manifest.json"), "{}").expect("written");
            }
        }
        let newest = run.checkpoints().join("step-1000000");
        assert_eq!(run.newest_checkpoint(), Some((Step(1_000_000), newest)));
    }

    #[test]
    fn a_checkpoint_that_is_set_aside_is_kept_but_does_not_count() {
        let runs = tempfile::tempdir().expect("a folder");
        let run = RunDir::create(runs.path(), None, "tiny").expect("made");
        for step in [10, 20, 30] {
            let path = run.checkpoints().join(format!("step-{step:06}"));
            std::fs::create_dir_all(&path).expect("made");
            std::fs::write(path.join(WEIGHTS), "").expect("written");
        }
        let mine = run.checkpoints().join("step-000040/mine");
        std::fs::create_dir_all(mine).expect("made");
        let aside = run.set_aside_after(Step(10), 1).expect("set aside");
        assert_eq!(
            aside,
            ["step-000020.superseded-1", "step-000030.superseded-1"]
        );
        assert!(
            aside
                .iter()
                .all(|name| run.checkpoints().join(name).is_dir())
        );
        assert_eq!(run.generation_set_aside(), 1);
        let left: Vec<Step> = run.checkpoint_folders().into_iter().map(|c| c.0).collect();
        assert_eq!(left, [Step(10)]);
        assert!(
            run.set_aside_after(Step(10), 1)
                .expect("nothing")
                .is_empty()
        );
    }
}
