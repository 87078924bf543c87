use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use host_core::{Error, ErrorKind, Result, nearest};
use object::ReadCache;

use crate::image::{Image, open};
use crate::inspect::{Inspection, look};
use crate::{LockedPlugin, PluginLock, PluginManifest, Target};

/// What names the first folders.
const PATH_VARIABLE: &str = "HOST_PLUGIN_PATH";
/// The last folder.
const SYSTEM_DIR: &str = "/usr/lib/host/plugins";

/// Folders where plugins are looked for, in order. The current directory is never among them by
/// itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchPath {
    dirs: Vec<PathBuf>,
    /// Those among them that have what came with the host.
    shipped: Vec<PathBuf>,
    lock: Option<Arc<PluginLock>>,
}

/// A library that may be loaded. It has been looked at, not run.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its file.
    pub path: PathBuf,
    /// What it says about itself.
    pub manifest: PluginManifest,
    /// What it must be when it is loaded, where plugins are locked.
    pub lock: Option<Arc<PluginLock>>,
    /// How it was asked for.
    pub target: Target,
    /// The plugin of the same id that came with the host, where this one is taken in its stead.
    pub shadows: Option<PathBuf>,
}

/// A library in one of the folders, loadable or not.
#[derive(Debug)]
pub struct Listed {
    /// Its file.
    pub path: PathBuf,
    /// The id that it claims, even where it is refused; none where it cannot be read.
    pub id: Option<String>,
    /// What it says about itself, or why it is refused.
    pub outcome: Result<PluginManifest>,
    /// The file that is taken in its stead, since it has the same id and comes earlier.
    pub shadowed_by: Option<PathBuf>,
}

impl Found {
    /// How a command names it: by its id, or by its path if it was asked for by that.
    pub fn name(&self) -> String {
        match &self.target {
            Target::Id(id) => id.clone(),
            Target::Path(path) => match path.to_str() {
                // Without a slash it would be an id.
                Some(text) if text.contains('/') || text.ends_with(".so") => text.to_owned(),
                _ => Path::new(".").join(path).display().to_string(),
            },
        }
    }

    /// What its user should know before code of it runs: that it takes the place of a plugin which came
    /// with the host, or that others than its owner may change it.
    pub fn warnings(&self) -> Vec<String> {
        let id = &self.manifest.id;
        let shadows = self.shadows.as_ref().map(|shipped| {
            format!(
                "plugin {id} is {}, and not the one that comes with the host: {}",
                absolute(&self.path).display(),
                absolute(shipped).display()
            )
        });
        let exposed = exposed(&self.path).into_iter().map(|(what, path)| {
            let path = path.display();
            format!("any user of this machine can change plugin {id}: its {what} is world-writable: {path}")
        });
        shadows.into_iter().chain(exposed).collect()
    }

    /// SHA-256 of the file as it is now, in lower-case hexadecimal.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sha256(&self) -> Result<String> {
        Image::read(&self.path).map(|image| image.sha256())
    }

    /// What the file is now, for a lock. None of its code runs.
    ///
    /// # Errors
    /// The file cannot be read, or is refused by now.
    pub fn pin(&self) -> Result<LockedPlugin> {
        let image = Image::read(&self.path)?;
        let manifest = crate::inspect(image.bytes(), &self.path)?;
        Ok(LockedPlugin::of(&manifest, &image))
    }

    /// Holds the bytes that were read, and are to be loaded, to the lock.
    pub(crate) fn check_lock(&self, manifest: &PluginManifest, image: &Image) -> Result<()> {
        match &self.lock {
            Some(lock) => lock.check(&LockedPlugin::of(manifest, image), &self.path),
            None => Ok(()),
        }
    }
}

impl SearchPath {
    /// `HOST_PLUGIN_PATH`, the executable's own folder, `$XDG_DATA_HOME/host/plugins` and
    /// `/usr/lib/host/plugins`.
    pub fn from_env() -> Self {
        let executable = env::current_exe().ok();
        Self::from_parts(
            env::var_os(PATH_VARIABLE),
            executable.as_deref().and_then(Path::parent),
            env::var_os("XDG_DATA_HOME"),
            env::var_os("HOME"),
        )
    }

    /// Exactly these folders.
    pub fn new(dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            dirs: dirs.into_iter().collect(),
            shipped: Vec::new(),
            lock: None,
        }
    }

    /// The same, and what is found is loaded only as this lock says.
    #[must_use]
    pub fn with_lock(self, lock: PluginLock) -> Self {
        let lock = Some(Arc::new(lock));
        Self { lock, ..self }
    }

    fn from_parts(
        plugin_path: Option<OsString>,
        beside: Option<&Path>,
        data_home: Option<OsString>,
        home: Option<OsString>,
    ) -> Self {
        let given = plugin_path.unwrap_or_default();
        // An empty element means the current directory to a shell, which nobody asked for here.
        let given = env::split_paths(&given).filter(|dir| !dir.as_os_str().is_empty());
        let data_home = data_home
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
            .or_else(|| Some(PathBuf::from(home?).join(".local/share")))
            .filter(|dir| dir.is_absolute());
        let beside = beside.map(Path::to_owned);
        let system = PathBuf::from(SYSTEM_DIR);
        Self {
            shipped: beside.iter().chain([&system]).cloned().collect(),
            ..Self::new(
                given
                    .chain(beside)
                    .chain(data_home.map(|dir| dir.join("host/plugins")))
                    .chain([system]),
            )
        }
    }

    /// The folders, in order.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Finds a plugin by its file, or by its id: the first library with that id counts, even if it
    /// is refused, so that an older one does not silently take its place.
    ///
    /// # Errors
    /// There is none, or it is refused.
    pub fn find(&self, target: &Target) -> Result<Found> {
        let id = match target {
            Target::Path(path) => {
                let manifest = look_at(path)?.outcome.map_err(|refusal| refusal.at(path))?;
                return Ok(self.found(target, path.clone(), manifest));
            }
            Target::Id(id) => id,
        };
        let mut others = Vec::new();
        for path in libraries(&self.dirs) {
            match look_at(&path) {
                Ok(Inspection {
                    id: Some(its),
                    outcome,
                }) if its == *id => {
                    let manifest = outcome.map_err(|refusal| refusal.at(&path))?;
                    let shadows = self.shipped_beside(&path, id);
                    return Ok(Found {
                        shadows,
                        ..self.found(target, path, manifest)
                    });
                }
                Ok(Inspection {
                    id: Some(its),
                    outcome: Ok(_),
                }) => others.push(its),
                Ok(Inspection {
                    id: None,
                    outcome: Err(refusal),
                }) if is_named_after(&path, id) => {
                    return Err(refusal.at(&path));
                }
                _ => {}
            }
        }
        Err(self.not_found(id, &others))
    }

    fn found(&self, target: &Target, path: PathBuf, manifest: PluginManifest) -> Found {
        Found {
            path,
            manifest,
            lock: self.lock.clone(),
            target: target.clone(),
            shadows: None,
        }
    }

    /// The library of this id that came with the host, if the one at `path` did not.
    fn shipped_beside(&self, path: &Path, id: &str) -> Option<PathBuf> {
        let folder = path.parent().and_then(|dir| dir.canonicalize().ok());
        let mut shipped = self.shipped.iter();
        if shipped.any(|dir| folder.is_some() && dir.canonicalize().ok() == folder) {
            return None;
        }
        let has_id = |library: &PathBuf| {
            look_at(library).is_ok_and(|inspection| inspection.id.as_deref() == Some(id))
        };
        libraries(&self.shipped).into_iter().find(has_id)
    }

    /// Every library in the folders, in the order in which they are looked at.
    pub fn list(&self) -> Vec<Listed> {
        let mut first: Vec<(String, PathBuf)> = Vec::new();
        libraries(&self.dirs)
            .into_iter()
            .map(|path| {
                let (id, outcome) = match look_at(&path) {
                    Ok(Inspection { id, outcome }) => {
                        (id, outcome.map_err(|refusal| refusal.at(&path)))
                    }
                    Err(error) => (None, Err(error)),
                };
                let earlier = id.as_ref().and_then(|id| {
                    let earlier = first.iter().find(|(known, _)| known == id);
                    earlier.map(|(_, path)| path.clone())
                });
                if let (Some(id), None) = (&id, &earlier) {
                    first.push((id.clone(), path.clone()));
                }
                Listed {
                    path,
                    id,
                    outcome,
                    shadowed_by: earlier,
                }
            })
            .collect()
    }

    fn not_found(&self, id: &str, others: &[String]) -> Error {
        let error = Error::new(ErrorKind::Config, format!("no plugin has the id {id:?}"));
        let mut known: Vec<&str> = others.iter().map(String::as_str).collect();
        known.sort_unstable();
        known.dedup();
        if let Some(near) = nearest(id, known.iter().copied()) {
            return error.hint(format!("did you mean {near}?"));
        }
        let dirs: Vec<_> = self
            .dirs
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        let known = match known.is_empty() {
            true => "nothing".to_owned(),
            false => known.join(", "),
        };
        error.hint(format!(
            "found {known} in {}; give the library's path, or set HOST_PLUGIN_PATH to its folder",
            dirs.join(", ")
        ))
    }
}

/// The `*.so` files of the folders, each folder once and sorted by name. A folder that is not
/// there or cannot be read has none.
fn libraries(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for dir in dirs {
        let Ok(real) = dir.canonicalize() else {
            continue;
        };
        if seen.contains(&real) {
            continue;
        }
        seen.push(real);
        let Ok(entries) = dir.read_dir() else {
            continue;
        };
        let mut libraries: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "so"))
            .collect();
        libraries.sort();
        found.append(&mut libraries);
    }
    found
}

/// The path for people, wherever they are.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// What of a library every user of the machine may write to: its file, or a folder in which it, or a link
/// to it, can be replaced. In a folder such as `/tmp` only a file's owner can replace it.
fn exposed(path: &Path) -> Vec<(&'static str, PathBuf)> {
    const WRITABLE: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let path = absolute(path);
    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
    let mode = |path: &Path| {
        path.metadata()
            .map_or(0, |found| found.permissions().mode())
    };
    let mut found = Vec::new();
    if mode(&real) & WRITABLE != 0 {
        found.push(("file", real.clone()));
    }
    let mut folders: Vec<&Path> = [&path, &real]
        .into_iter()
        .filter_map(|p| p.parent())
        .collect();
    folders.dedup();
    let folders = folders
        .into_iter()
        .filter(|folder| mode(folder) & (WRITABLE | STICKY) == WRITABLE);
    found.extend(folders.map(|folder| ("folder", folder.to_owned())));
    found
}

/// Reads of the file only what the look needs.
fn look_at(path: &Path) -> Result<Inspection> {
    let (file, _): (File, u64) = open(path)?;
    let cache = ReadCache::new(file);
    Ok(look(&cache))
}

/// Whether the file is called as a library of this id would be.
fn is_named_after(path: &Path, id: &str) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.is_some_and(|stem| stem.strip_prefix("lib").unwrap_or(stem) == id.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_fixed_and_the_current_directory_is_not_in_it() {
        let path = SearchPath::from_parts(
            Some(":/a::/b:".into()),
            Some(Path::new("/exe")),
            Some("/data".into()),
            Some("/home".into()),
        );
        let expected = [
            "/a",
            "/b",
            "/exe",
            "/data/host/plugins",
            "/usr/lib/host/plugins",
        ];
        assert_eq!(path.dirs(), expected.map(PathBuf::from));
    }

    #[test]
    fn what_any_user_can_write_to_is_named() {
        use std::fs::{Permissions, create_dir, set_permissions, write};
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path().canonicalize().expect("a folder");
        let (open, closed) = (dir.join("open"), dir.join("closed"));
        for folder in [&open, &closed] {
            create_dir(folder).expect("made");
            write(folder.join("a.so"), "").expect("written");
            set_permissions(folder.join("a.so"), Permissions::from_mode(0o644)).expect("set");
        }
        let set = |path: &Path, mode| {
            set_permissions(path, Permissions::from_mode(mode)).expect("set");
        };
        let library = closed.join("a.so");
        assert_eq!(exposed(&library), []);
        set(&library, 0o666);
        assert_eq!(exposed(&library), [("file", library.clone())]);
        set(&open, 0o777);
        assert_eq!(exposed(&open.join("a.so")), [("folder", open.clone())]);
        set(&open, 0o1777);
        assert_eq!(exposed(&open.join("a.so")), []);
        // A link in an open folder to a library in a closed one.
        set(&library, 0o644);
        set(&open, 0o777);
        std::os::unix::fs::symlink(&library, open.join("link.so")).expect("linked");
        assert_eq!(exposed(&open.join("link.so")), [("folder", open)]);
    }

    #[test]
    fn a_relative_or_missing_data_home_gives_way_to_the_home() {
        for data_home in [None, Some("relative".into()), Some("".into())] {
            let path = SearchPath::from_parts(None, None, data_home, Some("/home".into()));
            let expected = ["/home/.local/share/host/plugins", "/usr/lib/host/plugins"];
            assert_eq!(path.dirs(), expected.map(PathBuf::from));
        }
        let nowhere = SearchPath::from_parts(None, None, None, None);
        assert_eq!(nowhere.dirs(), [PathBuf::from("/usr/lib/host/plugins")]);
    }
}
