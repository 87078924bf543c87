//! A run's folder: where everything of a run lies.

use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result, RunName, Step, nearest};
use host_store::{Reader, RunStatus};

use crate::runs::how_to_name_at;

/// What makes a folder a checkpoint: what says what is in it, and what it is about.
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
    /// Makes the folder of a new run. A name of the user's must be free; one made here, of the model
    /// and the time, gets a number behind it until it is.
    ///
    /// # Errors
    /// The name is taken, or the folder cannot be made.
    pub(crate) fn create(runs: &Path, name: Option<&RunName>, model: &str) -> Result<Self> {
        std::fs::create_dir_all(runs).map_err(|e| Error::io("make the runs' folder", runs, &e))?;
        let make = |name: RunName| {
            let path = runs.join(name.as_str());
            match std::fs::create_dir(&path) {
                Ok(()) => {
                    // A checkpoint in a folder whose name is lost with the power is lost, too.
                    std::fs::File::open(runs)
                        .and_then(|folder| folder.sync_all())
                        .map_err(|e| Error::io("sync the runs' folder", runs, &e))?;
                    Ok(Some(Self { name, path }))
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
                Err(e) => Err(Error::io("make the run's folder", &path, &e)),
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
        unreachable!("a folder is found before the numbers end")
    }

    /// Looks early whether [`RunDir::create`] will find the name free.
    ///
    /// # Errors
    /// It is taken.
    pub(crate) fn check_free(runs: &Path, name: &RunName) -> Result<()> {
        match runs.join(name.as_str()).exists() {
            true => Err(taken(runs, name)),
            false => Ok(()),
        }
    }

    /// The folder of a run that the user names, by its name or its path.
    ///
    /// # Errors
    /// There is none.
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
                format!("there is no run {run}: {}", runs.display()),
            );
            let known = names(runs);
            return Err(match nearest(run, known.iter().map(String::as_str)) {
                Some(name) => error.hint(format!("did you mean {name}?")),
                None => {
                    error.hint("`host runs list` names the runs; --runs-dir names their folder")
                }
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

    /// The run's name.
    pub(crate) fn name(&self) -> &RunName {
        &self.name
    }

    /// The folder; absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that holds this one and other runs'; absolute.
    pub(crate) fn runs_dir(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// The resolved configuration.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.path.join("run.toml")
    }

    /// Where the live run listens; absent when it is not live.
    pub(crate) fn address_file(&self) -> PathBuf {
        self.path.join(host_serve::ADDRESS_FILE)
    }

    /// Where the run's own process listens; none if the run is not live.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn live_address(&self) -> Result<Option<String>> {
        // A process that was killed leaves its address behind, so the store is asked, too.
        let status = Reader::open(&self.path)?.run()?.status;
        let address = std::fs::read_to_string(self.address_file()).ok();
        let address = address.filter(|_| status == RunStatus::Running);
        Ok(address.map(|address| address.trim().to_owned()))
    }

    /// What lets this user control the live run; absent when it is not live, or the token is elsewhere.
    pub(crate) fn control_token_file(&self) -> PathBuf {
        self.path.join("control.token")
    }

    /// The certificate that the run made for itself, if it did.
    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.path.join("tls-cert.pem")
    }

    /// Its key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.path.join("tls-key.pem")
    }

    /// What a live run leaves no longer than it lives.
    pub(crate) fn transient_files(&self) -> [PathBuf; 2] {
        [self.address_file(), self.control_token_file()]
    }

    /// The checkpoints.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// A sink's own folder.
    pub(crate) fn sink_state(&self, label: &str) -> PathBuf {
        self.path.join("sinks").join(label)
    }

    /// The complete checkpoint of the highest step.
    pub(crate) fn newest_checkpoint(&self) -> Option<(Step, PathBuf)> {
        let mut found = self.checkpoint_folders();
        found.retain(|(_, path)| path.join(MANIFEST).is_file());
        found.pop()
    }

    /// Every checkpoint, whole or damaged, in the steps' order. A folder that only a user's files keep
    /// standing is none.
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

    /// The highest generation for which a checkpoint was set aside; 0 if none was.
    pub(crate) fn generation_set_aside(&self) -> u32 {
        let entries = self.checkpoints().read_dir().into_iter().flatten();
        let generation = |entry: std::io::Result<std::fs::DirEntry>| -> Option<u32> {
            let name = entry.ok()?.file_name();
            name.to_str()?.rsplit_once(SET_ASIDE)?.1.parse().ok()
        };
        entries.filter_map(generation).max().unwrap_or(0)
    }

    /// Gives the checkpoints after `step` other names, since the run goes back there as its
    /// `generation`: what it writes now is not mixed with what it wrote before. Returns the new names.
    ///
    /// # Errors
    /// The file system refuses.
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
            // On the disk before an event says that the run went back.
            std::fs::File::open(&folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|e| Error::io("set checkpoints aside in", &folder, &e))?;
        }
        Ok(names)
    }
}

/// How a checkpoint is called that was set aside, between its own name and the generation.
const SET_ASIDE: &str = ".superseded-";

fn taken(runs: &Path, name: &RunName) -> Error {
    let path = runs.join(name.as_str());
    let message = format!("there is a run {name} already: {}", path.display());
    Error::new(ErrorKind::Config, message).hint(format!(
        "`host resume {}` resumes it; or choose another --name",
        how_to_name_at(name, &path)
    ))
}

/// The names of the runs in a folder, in their order.
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

/// `codeparrot-20261124-0155`.
fn generated_name(model: &str, now: &jiff::ZonedDateTime) -> String {
    let path = Path::new(model);
    // Of `gpt2/config.json` the folder tells more than the file.
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
    fn a_generated_name_tells_the_model_and_the_time() {
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
    fn a_users_name_must_be_free_and_a_generated_one_becomes_so() {
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
    fn the_newest_checkpoint_is_a_complete_one() {
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
    fn what_is_set_aside_is_no_checkpoint_and_stays() {
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
