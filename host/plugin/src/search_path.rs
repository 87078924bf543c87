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

/// The environment variable that lists the folders to search first.
const PATH_VARIABLE: &str = "HOST_PLUGIN_PATH";
/// The last folder.
const SYSTEM_DIR: &str = "/usr/lib/host/plugins";
/// The ids of the plugins in the host's sources, which `make build` builds.
const SHIPPED_IDS: [&str; 8] = [
    "bits-per-byte",
    "early-stopping",
    "hub-git",
    "local-disk",
    "loss-guard",
    "perplexity",
    "token-accuracy",
    "weight-decay",
];

/// The folders in which plugins are searched, in the order of the search. The current directory is included
/// only if the user lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchPath {
    dirs: Vec<PathBuf>,
    /// The folders in `dirs` that contain the plugins shipped with the host.
    shipped: Vec<PathBuf>,
    lock: Option<Arc<PluginLock>>,
}

/// A library that has passed the inspection and may be loaded. None of its code has run.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its file.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: PluginManifest,
    /// The lock that the library must match when it is loaded, if plugins are locked.
    pub lock: Option<Arc<PluginLock>>,
    /// How the library was requested.
    pub target: Target,
    /// The shipped plugin with the same id, if this library replaces it.
    pub shadows: Option<PathBuf>,
}

/// A library in one of the folders, loadable or not.
#[derive(Debug)]
pub struct Listed {
    /// Its file.
    pub path: PathBuf,
    /// The id in the library's manifest, even if the library is rejected; `None` if the id cannot be read.
    pub id: Option<String>,
    /// The library's manifest, or why the library is rejected.
    pub outcome: Result<PluginManifest>,
    /// The file that is used instead of this one, because it has the same id and is in an earlier folder.
    pub shadowed_by: Option<PathBuf>,
}

impl Found {
    /// Returns the plugin's name in commands: its path if it was requested by path, otherwise its id.
    pub fn name(&self) -> String {
        match &self.target {
            Target::Id(id) => id.clone(),
            Target::Path(path) => match path.to_str() {
                // Without a slash, the text would be interpreted as an id.
                Some(text) if text.contains('/') || text.ends_with(".so") => text.to_owned(),
                _ => Path::new(".").join(path).display().to_string(),
            },
        }
    }

    /// Returns warnings to show before any of the library's code runs. There is one warning if the library
    /// replaces a shipped plugin, and another for each file or folder through which any user can modify the
    /// library.
    pub fn warnings(&self) -> Vec<String> {
        let id = &self.manifest.id;
        let shadows = self.shadows.as_ref().map(|shipped| {
            format!(
                "plugin {id} is {}, not the plugin shipped with the host: {}",
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

    /// Returns the SHA-256 of the file's current content, in lower-case hexadecimal.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn sha256(&self) -> Result<String> {
        Image::read(&self.path).map(|image| image.sha256())
    }

    /// Returns the lock entry for the file's current content. Runs none of its code.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is now rejected.
    pub fn pin(&self) -> Result<LockedPlugin> {
        let image = Image::read(&self.path)?;
        let manifest = crate::inspect(image.bytes(), &self.path)?;
        Ok(LockedPlugin::of(&manifest, &image))
    }

    /// Checks the library's bytes against the lock. The same bytes are loaded later.
    pub(crate) fn check_lock(&self, manifest: &PluginManifest, image: &Image) -> Result<()> {
        match &self.lock {
            Some(lock) => lock.check(&LockedPlugin::of(manifest, image), &self.path),
            None => Ok(()),
        }
    }
}

impl SearchPath {
    /// Returns the default search path: `HOST_PLUGIN_PATH`, the executable's own folder,
    /// `$XDG_DATA_HOME/host/plugins` and `/usr/lib/host/plugins`.
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

    /// Requires plugins to match this lock.
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
        // Shells interpret an empty element as the current directory, which is not intended here.
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

    /// Returns the folders, in search order.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Finds a plugin by its file or by its id. If several libraries have the id, only the first of them
    /// counts: if it is rejected, the search fails and does not continue to the next library.
    ///
    /// # Errors
    /// Returns an error if no such plugin exists or if it is rejected.
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

    /// Returns the shipped library with this id. Returns `None` if the library at `path` is itself in a
    /// folder of shipped plugins.
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

    /// Lists every library in the folders, in search order.
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
        let error = Error::new(ErrorKind::Config, format!("unknown plugin: {id:?}"));
        let is_build = |dir: &PathBuf| {
            ["target/release", "target/debug"]
                .iter()
                .any(|end| dir.ends_with(end))
        };
        let is_built_here = self.shipped.iter().any(is_build);
        if is_built_here && SHIPPED_IDS.contains(&id) {
            return error.hint("run `make build`, which builds every plugin that comes with host");
        }
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
            "found {known} in {}; pass the library's path, or set HOST_PLUGIN_PATH to its folder",
            dirs.join(", ")
        ))
    }
}

/// Lists the `*.so` files in the folders, sorted by name within each folder. A folder that is given twice is
/// listed only once. Skips a folder that does not exist or cannot be read.
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

/// Returns the absolute path, since messages must not depend on the current folder.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Lists the file and the folders through which any user of the machine can modify the library at `path`: the
/// library's file, or a folder in which the library or a link to it can be replaced. A sticky folder such as
/// `/tmp` is not listed, because there only the owner of a file can replace the file.
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

/// Inspects a file. Reads only the parts that are necessary.
fn look_at(path: &Path) -> Result<Inspection> {
    let (file, _): (File, u64) = open(path)?;
    let cache = ReadCache::new(file);
    Ok(look(&cache))
}

/// Whether the file has the usual name of a library with this id.
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
    fn the_shipped_plugins_are_those_of_the_sources() {
        let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
        let mut ids: Vec<String> = std::fs::read_dir(plugins)
            .expect("a folder")
            .map(|entry| entry.expect("an entry"))
            .filter(|entry| entry.path().join("Cargo.toml").is_file())
            .map(|entry| entry.file_name().into_string().expect("UTF-8"))
            .filter(|name| name != "abi" && name != "sdk")
            .collect();
        ids.sort();
        assert_eq!(ids, SHIPPED_IDS);
    }

    #[test]
    fn a_shipped_plugin_that_is_not_built_can_be_built_with_make() {
        let dir = tempfile::tempdir().expect("a folder");
        let hint = |beside: &str, id: &str| {
            let beside = dir.path().join(beside);
            let home = Some(dir.path().into());
            let path = SearchPath::from_parts(None, Some(&beside), None, home);
            let error = path.find(&Target::Id(id.to_owned())).expect_err("unknown");
            error.hint_text().unwrap_or_default().to_owned()
        };
        let make = "run `make build`, which builds every plugin that comes with host";
        assert_eq!(hint("target/release", "token-accuracy"), make);
        assert_eq!(hint("target/debug", "token-accuracy"), make);
        assert_ne!(hint("target/release", "another"), make);
        assert_ne!(hint("bin", "token-accuracy"), make);
    }

    #[test]
    fn world_writable_files_and_folders_are_named() {
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
        // A link in a world-writable folder to a library in a protected one.
        set(&library, 0o644);
        set(&open, 0o777);
        std::os::unix::fs::symlink(&library, open.join("link.so")).expect("linked");
        assert_eq!(exposed(&open.join("link.so")), [("folder", open)]);
    }

    #[test]
    fn a_relative_or_missing_data_home_defaults_to_the_home() {
        for data_home in [None, Some("relative".into()), Some("".into())] {
            let path = SearchPath::from_parts(None, None, data_home, Some("/home".into()));
            let expected = ["/home/.local/share/host/plugins", "/usr/lib/host/plugins"];
            assert_eq!(path.dirs(), expected.map(PathBuf::from));
        }
        let nowhere = SearchPath::from_parts(None, None, None, None);
        assert_eq!(nowhere.dirs(), [PathBuf::from("/usr/lib/host/plugins")]);
    }
}
