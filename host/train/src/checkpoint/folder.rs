//! The folder of a run's checkpoints: their names, and how they are put in place and removed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use host_core::{Error, Result, Step};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::removal;
use crate::manifest::sync;

/// Suffix of a checkpoint's folder while it is being written.
const PARTIAL: &str = ".partial";
/// Suffix of a checkpoint's folder while it is being removed.
const PRUNED: &str = ".pruned";
/// Suffix of a checkpoint's folder while another checkpoint takes its place.
const REPLACED: &str = ".replaced";

/// The settings and files that all checkpoints of a run share.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The folder that receives the checkpoints.
    pub(crate) folder: PathBuf,
    /// Files with the same content in every checkpoint: (name, content).
    pub(crate) files: Vec<(&'static str, String)>,
    /// How many checkpoints to keep; 0 keeps all.
    pub(crate) keep: usize,
    /// The steps of checkpoints that could not be removed completely; each is warned about once.
    pub(crate) stuck: BTreeSet<Step>,
}

/// Whether a folder is a checkpoint. A damaged checkpoint is one too. A folder that remains only because of a
/// user's files is not.
fn is_checkpoint(folder: &Path) -> bool {
    let has = |name| folder.join(name).symlink_metadata().is_ok();
    has("manifest.json") || has("model.safetensors")
}

/// Returns a folder's newest checkpoint with a step of at most `up_to`.
pub(crate) fn newest(folder: &Path, up_to: Step) -> Option<(Step, PathBuf)> {
    let entries = fs::read_dir(folder).ok()?;
    let steps = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let step = Step::of_checkpoint(&entry.file_name().to_string_lossy())?;
        is_checkpoint(&entry.path()).then_some(step)
    });
    let newest = steps.filter(|&step| step <= up_to).max()?;
    Some((newest, folder.join(newest.checkpoint_name())))
}

impl Layout {
    /// Returns the folder in which this step's checkpoint is assembled.
    pub(super) fn partial(&self, step: Step) -> PathBuf {
        self.hidden(step, PARTIAL)
    }

    fn hidden(&self, step: Step, suffix: &str) -> PathBuf {
        self.folder
            .join(format!(".{}{suffix}", step.checkpoint_name()))
    }

    /// Cleans up after a process that was killed while it wrote, replaced or removed a checkpoint. Returns
    /// warnings.
    pub(super) fn sweep(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        for hidden in self.names() {
            let step_before =
                |suffix: &str| Step::of_checkpoint(hidden.strip_prefix('.')?.strip_suffix(suffix)?);
            let path = self.folder.join(&hidden);
            if let Some(step) = step_before(REPLACED)
                && !self.folder.join(step.checkpoint_name()).exists()
            {
                // The replacement was not moved into place, so the old checkpoint gets its name back.
                let _ = fs::rename(path, self.folder.join(step.checkpoint_name()));
            } else if let Some(step) = step_before(PRUNED).or_else(|| step_before(REPLACED)) {
                warnings.extend(self.dispose(&path, step));
            } else if let Some(step) = step_before(PARTIAL) {
                // A folder with a manifest is a complete checkpoint: the new one or, after an exchange, the
                // old one.
                match path.join("manifest.json").exists() {
                    true => warnings.extend(self.dispose(&path, step)),
                    // Files that remain do no harm: the folder is not treated as a checkpoint.
                    false => drop(fs::remove_dir_all(path)),
                }
            }
        }
        warnings
    }

    /// Moves the folder `partial` into place. An existing checkpoint of the same step is removed; files in it
    /// that do not belong to the run are kept next to the new checkpoint. Returns warnings about them.
    pub(super) fn put(&mut self, partial: &Path, step: Step) -> Result<(PathBuf, Vec<String>)> {
        let path = self.folder.join(step.checkpoint_name());
        let place = || -> io::Result<Option<PathBuf>> {
            let old = if path.symlink_metadata().is_err() {
                fs::rename(partial, &path)?;
                None
            } else if exchange(partial, &path).is_ok() {
                // The exchange is atomic: at every moment, the name belongs to a complete checkpoint.
                Some(partial.to_owned())
            } else {
                // The file system cannot exchange names. If the process is killed between the two renames,
                // `sweep` reverts the first.
                let old = self.hidden(step, REPLACED);
                fs::rename(&path, &old)?;
                fs::rename(partial, &path).inspect_err(|_| {
                    let _ = fs::rename(&old, &path);
                })?;
                Some(old)
            };
            sync(&self.folder)?;
            Ok(old)
        };
        let old =
            place().map_err(|error| Error::io("move the checkpoint into place", &path, &error))?;
        let warning = old.and_then(|old| self.dispose(&old, step));
        // The name now belongs to a new checkpoint.
        self.stuck.remove(&step);
        Ok((path, warning.into_iter().collect()))
    }

    /// Removes the oldest checkpoints until only `keep` are left. Does not remove `newest`, nor any
    /// checkpoint for which `is_needed` returns true. Returns warnings.
    pub(super) fn prune(&mut self, newest: Step, is_needed: &dyn Fn(Step) -> bool) -> Vec<String> {
        let excess = self.beyond_keep().into_iter();
        let doomed: Vec<Step> = excess
            .filter(|&step| step != newest && !self.stuck.contains(&step) && !is_needed(step))
            .collect();
        let removed = doomed.into_iter().filter_map(|step| self.remove(step));
        removed.collect()
    }

    /// Considers only checkpoints that are older than the newest `keep`. Of these, removes the oldest one for
    /// which `give_up` returns true. Returns warnings, or `None` if there is no such checkpoint.
    pub(super) fn make_room(&mut self, give_up: &dyn Fn(Step) -> bool) -> Option<Vec<String>> {
        let mut excess = self.beyond_keep().into_iter();
        let step = excess.find(|step| !self.stuck.contains(step) && give_up(*step))?;
        Some(self.remove(step).into_iter().collect())
    }

    /// Returns the steps of all checkpoints except the newest `keep`. The oldest step is first. If `keep` is
    /// 0, returns an empty list.
    fn beyond_keep(&self) -> Vec<Step> {
        if self.keep == 0 {
            return Vec::new();
        }
        let steps = self
            .names()
            .into_iter()
            .filter_map(|name| Step::of_checkpoint(&name));
        let mut steps: Vec<Step> = steps
            .filter(|&step| is_checkpoint(&self.folder.join(step.checkpoint_name())))
            .collect();
        steps.sort_unstable();
        steps.truncate(steps.len().saturating_sub(self.keep));
        steps
    }

    /// Hides a checkpoint by a rename, then removes it. Returns a warning if something remains.
    fn remove(&mut self, step: Step) -> Option<String> {
        let path = self.folder.join(step.checkpoint_name());
        let doomed = self.hidden(step, PRUNED);
        match fs::rename(&path, &doomed) {
            Ok(()) => self.dispose(&doomed, step),
            Err(error) => self.stuck(step, &path, &error),
        }
    }

    /// Removes the checkpoint's own files from a hidden folder. If the folder contains other files, it is
    /// renamed to the path that `free_name` returns.
    fn dispose(&mut self, doomed: &Path, step: Step) -> Option<String> {
        let left = match removal::remove(doomed) {
            Ok(left) if left.is_empty() => return None,
            Ok(left) => left,
            // The files that remain are in a hidden folder, which is removed when the run is resumed.
            Err(error) => return self.stuck(step, doomed, &error),
        };
        let place = self.free_name(step);
        if let Err(error) = fs::rename(doomed, &place) {
            return self.stuck(step, doomed, &error);
        }
        if !self.stuck.insert(step) {
            return None;
        }
        Some(format!(
            "the checkpoint of step {step} was removed, but its folder remains because it contains other files ({}): {}",
            listed(&left),
            place.display()
        ))
    }

    fn stuck(&mut self, step: Step, path: &Path, error: &io::Error) -> Option<String> {
        let path = path.display();
        self.stuck
            .insert(step)
            .then(|| format!("the checkpoint of step {step} cannot be removed: {error}: {path}"))
    }

    /// Returns an unused path for the remaining files of a removed checkpoint: the checkpoint's own path if
    /// it is unused, else the same path with a suffix.
    fn free_name(&self, step: Step) -> PathBuf {
        let name = step.checkpoint_name();
        let beside = (1..).map(|number| match number {
            1 => format!("{name}.replaced"),
            number => format!("{name}.replaced-{number}"),
        });
        let mut places = std::iter::once(name.clone())
            .chain(beside)
            .map(|name| self.folder.join(name));
        let free = places.find(|place| place.symlink_metadata().is_err());
        free.expect("one of the numbered names is always free")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }
}

/// Exchanges the names of two folders. Not every file system supports it.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .map_err(|errno| io::Error::from_raw_os_error(errno.raw_os_error()))
}

/// Lists a few names for a message.
fn listed(names: &[OsString]) -> String {
    let mut names: Vec<String> = names
        .iter()
        .map(|name| name.display().to_string())
        .collect();
    names.sort();
    let more = names.len().saturating_sub(3);
    names.truncate(3);
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::Manifest;

    use crate::manifest::hash;

    struct Scene {
        dir: tempfile::TempDir,
        layout: Layout,
    }

    impl Scene {
        fn new(keep: usize) -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            let layout = Layout {
                folder: dir.path().to_owned(),
                files: Vec::new(),
                keep,
                stuck: BTreeSet::new(),
            };
            Self { dir, layout }
        }

        fn path(&self, below: &str) -> PathBuf {
            self.dir.path().join(below)
        }

        /// Creates a checkpoint with this model.
        fn write(&self, name: &str, model: &str) {
            fs::create_dir(self.path(name)).expect("made");
            let file = self.path(name).join("model.safetensors");
            fs::write(&file, model).expect("written");
            let files = [("model.safetensors".to_owned(), hash(&file).expect("read"))];
            let manifest = Manifest {
                files: files.into(),
            };
            let json = serde_json::to_string(&manifest).expect("JSON");
            fs::write(self.path(name).join("manifest.json"), json).expect("written");
        }

        fn model(&self, name: &str) -> String {
            let file = self.path(name).join("model.safetensors");
            fs::read_to_string(file).expect("a file")
        }

        fn names(&self) -> Vec<String> {
            let mut names = self.layout.names();
            names.sort();
            names
        }
    }

    #[test]
    fn a_checkpoint_replaces_another_of_the_same_step() {
        let mut scene = Scene::new(0);
        scene.write("step-000010", "old");
        scene.write(".step-000010.partial", "new");
        let partial = scene.layout.partial(Step(10));
        let (path, warnings) = scene.layout.put(&partial, Step(10)).expect("put");
        assert_eq!(path, scene.path("step-000010"));
        assert_eq!(warnings, [""; 0]);
        assert_eq!(scene.model("step-000010"), "new");
        assert_eq!(scene.names(), ["step-000010"]);

        scene.write(".step-000010.partial", "newer");
        fs::write(scene.path("step-000010/mine"), "mine").expect("written");
        let (_, warnings) = scene.layout.put(&partial, Step(10)).expect("put");
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].ends_with("/step-000010.replaced"),
            "{warnings:?}"
        );
        assert_eq!(scene.model("step-000010"), "newer");
        assert_eq!(scene.names(), ["step-000010", "step-000010.replaced"]);
        assert!(scene.path("step-000010.replaced/mine").is_file());
    }

    #[test]
    fn after_any_kill_the_name_belongs_to_a_complete_checkpoint() {
        let mut scene = Scene::new(0);
        // Step 10: killed between the two renames, which are used only if the file system cannot exchange
        // names.
        scene.write(".step-000010.replaced", "old");
        scene.write(".step-000010.partial", "new");
        // Step 20: killed after both renames.
        scene.write(".step-000020.replaced", "old");
        scene.write("step-000020", "new");
        // Step 30: killed after an exchange. The old checkpoint contains a user's file.
        scene.write(".step-000030.partial", "old");
        scene.write("step-000030", "new");
        fs::write(scene.path(".step-000030.partial/mine"), "mine").expect("written");
        // Step 40: killed during a removal.
        scene.write(".step-000040.pruned", "old");
        fs::write(scene.path(".step-000040.pruned/mine"), "mine").expect("written");
        // Step 50: killed while the checkpoint was being written.
        fs::create_dir(scene.path(".step-000050.partial")).expect("made");
        fs::write(scene.path(".step-000050.partial/model.safetensors"), "half").expect("written");
        let warnings = scene.layout.sweep();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert_eq!(
            scene.names(),
            [
                "step-000010",
                "step-000020",
                "step-000030",
                "step-000030.replaced",
                "step-000040"
            ]
        );
        let models = ["step-000010", "step-000020", "step-000030"].map(|name| scene.model(name));
        assert_eq!(models, ["old", "new", "new"]);
        assert!(scene.path("step-000040/mine").is_file());
        assert_eq!(
            newest(scene.dir.path(), Step(100)).expect("one").0,
            Step(30)
        );
    }

    #[test]
    fn needed_checkpoints_are_kept_until_the_disk_is_full() {
        let mut scene = Scene::new(1);
        for step in [10, 20, 30, 40] {
            scene.write(&Step(step).checkpoint_name(), "model");
        }
        let is_needed = |step: Step| step.0 < 30;
        assert_eq!(scene.layout.prune(Step(40), &is_needed), [""; 0]);
        assert_eq!(scene.names(), ["step-000010", "step-000020", "step-000040"]);
        // The oldest checkpoint is being delivered.
        let give_up = |step: Step| step.0 != 10;
        assert!(scene.layout.make_room(&give_up).is_some());
        assert_eq!(scene.names(), ["step-000010", "step-000040"]);
        assert!(scene.layout.make_room(&give_up).is_none());
        // The newest checkpoint is never removed.
        assert!(scene.layout.make_room(&|_| true).is_some());
        assert!(scene.layout.make_room(&|_| true).is_none());
        assert_eq!(scene.names(), ["step-000040"]);
    }

    #[test]
    fn the_rest_of_a_pruned_checkpoint_is_reported_once_and_no_longer_counts() {
        let mut scene = Scene::new(2);
        for step in [10, 20, 30] {
            scene.write(&Step(step).checkpoint_name(), "model");
        }
        fs::write(scene.path("step-000010/mine"), "mine").expect("written");
        let warnings = scene.layout.prune(Step(30), &|_| false);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].ends_with("/step-000010"), "{warnings:?}");
        assert_eq!(scene.layout.prune(Step(30), &|_| false), [""; 0]);
        assert_eq!(scene.names(), ["step-000010", "step-000020", "step-000030"]);
        assert!(scene.path("step-000010/mine").is_file());
    }
}
