//! The file `plugins.lock`, which pins the exact bytes of each plugin of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Deserializer, de};
use toml::Table;

use crate::image::Image;
use crate::{PluginManifest, is_plugin_id};

/// Version of the file's format. A file of a newer version is rejected, and never read in part.
const FORMAT: i64 = 1;

const HEADING: &str = "\
# The plugins that a run with this lock may load, byte for byte. Written by `host plugin lock`. A plugin
# that is absent or whose file differs is rejected before any of its code runs.
";

/// The plugins that may be loaded, each with its version and the hash of its file at the time of locking.
///
/// A lock pins a plugin's file. It does not make the plugin trusted. An unused entry is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginLock {
    path: PathBuf,
    plugins: BTreeMap<String, LockedPlugin>,
}

/// A plugin as it was at the time of locking.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPlugin {
    /// The id in the plugin's manifest.
    #[serde(deserialize_with = "plugin_id")]
    pub id: String,
    /// The version in the plugin's manifest.
    pub version: String,
    /// The major and minor version of the ABI that the plugin was built against.
    #[serde(deserialize_with = "abi")]
    pub abi: (u32, u32),
    /// The SHA-256 of the plugin's file, in lower-case hexadecimal.
    #[serde(deserialize_with = "sha256")]
    pub sha256: String,
    /// The size of the plugin's file in bytes.
    pub size: u64,
}

impl PluginLock {
    /// The name of the lock file, which is in the same folder as the configuration.
    pub const FILE_NAME: &str = "plugins.lock";

    /// Creates a lock of these plugins for the file at `path`. Does not write the file.
    ///
    /// # Errors
    /// Returns an error if two plugins have the same id but different files.
    pub fn new(
        path: impl Into<PathBuf>,
        plugins: impl IntoIterator<Item = LockedPlugin>,
    ) -> Result<Self> {
        let mut lock = Self {
            path: path.into(),
            plugins: BTreeMap::new(),
        };
        for plugin in plugins {
            let id = plugin.id.clone();
            if let Some(other) = lock.plugins.insert(id, plugin.clone())
                && other != plugin
            {
                let differences = other.differences(&plugin);
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "two different plugins have the id {}: {differences}",
                        plugin.id
                    ),
                )
                .hint("remove one of them: a lock has one file for each id"));
            }
        }
        Ok(lock)
    }

    /// Reads the lock at `path`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or is not a lock that this host supports.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let why = format!("cannot read the plugin lock: {error}: {}", path.display());
            Error::new(ErrorKind::Config, why).hint("create it with `host plugin lock`")
        })?;
        Self::parse(&text, path)
    }

    /// Parses the text of a lock. `path` is the file from which the text was read.
    ///
    /// # Errors
    /// Returns an error if the text is not a lock that this host supports.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |why: String, line: Option<usize>| {
            let line = line.map(|line| format!(":{line}")).unwrap_or_default();
            let message = format!("not a plugin lock: {why}: {}{line}", path.display());
            Error::new(ErrorKind::Config, message)
                .hint("remove it, and create it again with `host plugin lock`")
        };
        let malformed = |error: toml::de::Error| {
            let line = error
                .span()
                .map(|span| 1 + text[..span.start].matches('\n').count());
            wrong(error.message().replace('\n', ", "), line)
        };
        let table: Table = toml::from_str(text).map_err(malformed)?;
        match table.get("format").and_then(toml::Value::as_integer) {
            Some(FORMAT) => {}
            Some(newer) if newer > FORMAT => {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "the plugin lock has format {newer}, this host reads format {FORMAT}: {}",
                        path.display()
                    ),
                )
                .hint("use a newer host, or create the lock again with `host plugin lock`"));
            }
            _ => return Err(wrong(format!("format = {FORMAT} is missing"), None)),
        }
        let file: File = toml::from_str(text).map_err(malformed)?;
        let mut plugins = BTreeMap::new();
        for plugin in file.plugin {
            let id = plugin.id.clone();
            if plugins.insert(id.clone(), plugin).is_some() {
                return Err(wrong(format!("{id} occurs twice"), None));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            plugins,
        })
    }

    /// Returns the text of the file. The entries are sorted by id, so equal plugins result in equal texts.
    pub fn to_toml(&self) -> String {
        let mut text = format!("{HEADING}format = {FORMAT}\n");
        for plugin in self.plugins.values() {
            let LockedPlugin {
                id,
                version,
                abi: (major, minor),
                sha256,
                size,
            } = plugin;
            let version = toml::Value::from(version.as_str());
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\n[[plugin]]\nid = \"{id}\"\nversion = {version}\nabi = \"{major}.{minor}\"\n\
                 sha256 = \"{sha256}\"\nsize = {size}\n"
            );
        }
        text
    }

    /// Returns the file from which the lock was read, or for which it was created.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the plugins, sorted by id.
    pub fn plugins(&self) -> impl ExactSizeIterator<Item = &LockedPlugin> {
        self.plugins.values()
    }

    /// Returns the entry for an id.
    pub fn get(&self, id: &str) -> Option<&LockedPlugin> {
        self.plugins.get(id)
    }

    /// Checks a plugin against the lock, before any of its code runs. `library` is only used in the message.
    ///
    /// # Errors
    /// Returns an error if the plugin is not in the lock, or differs from its entry.
    pub fn check(&self, plugin: &LockedPlugin, library: &Path) -> Result<()> {
        let (id, lock) = (&plugin.id, self.path.display());
        let fault = match self.get(id) {
            None => format!("plugin {id} is not in the lock {lock}"),
            Some(locked) => match locked.differences(plugin) {
                same if same.is_empty() => return Ok(()),
                differences => format!(
                    "plugin {id} differs from its entry in the lock: {differences} (lock: {lock})"
                ),
            },
        };
        let message = format!("{fault}: {}", library.display());
        Err(Error::new(ErrorKind::Plugin, message).hint(format!(
            "if you trust the new file, run `host plugin lock --file {}` with the run's arguments",
            crate::shell_word(&lock.to_string())
        )))
    }
}

impl LockedPlugin {
    /// Creates the entry for a file from its digest, its size and its manifest.
    pub(crate) fn of(manifest: &PluginManifest, image: &Image) -> Self {
        Self {
            id: manifest.id.clone(),
            version: manifest.version.clone(),
            abi: manifest.abi,
            sha256: image.sha256(),
            size: image.size(),
        }
    }

    /// Lists how a plugin with this id differs from this entry. Returns an empty text if there are no
    /// differences.
    pub fn differences(&self, found: &Self) -> String {
        let mut words = Vec::new();
        let mut compare = |what: &str, locked: String, found: String| {
            if locked != found {
                words.push(format!("{what} {found} instead of {locked}"));
            }
        };
        compare("version", self.version.clone(), found.version.clone());
        let abi = |(major, minor): (u32, u32)| format!("{major}.{minor}");
        compare("ABI", abi(self.abi), abi(found.abi));
        compare("size", self.size.to_string(), found.size.to_string());
        compare("sha256", self.sha256.clone(), found.sha256.clone());
        words.join(", ")
    }
}

/// The layout of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "format")]
    _format: i64,
    #[serde(default)]
    plugin: Vec<LockedPlugin>,
}

fn plugin_id<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let id = String::deserialize(from)?;
    match is_plugin_id(&id) {
        true => Ok(id),
        false => Err(de::Error::custom(format!("{id:?} is not a plugin id"))),
    }
}

fn abi<'de, D: Deserializer<'de>>(from: D) -> Result<(u32, u32), D::Error> {
    let text = String::deserialize(from)?;
    let parts = text
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts.ok_or_else(|| de::Error::custom(format!("abi is {text:?}, not \"MAJOR.MINOR\"")))
}

fn sha256<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    match text.len() == 64 && text.chars().all(is_digit) {
        true => Ok(text),
        false => Err(de::Error::custom(format!(
            "sha256 is {text:?}, not 64 hexadecimal digits in lower case"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# The plugins that a run with this lock may load, byte for byte. Written by `host plugin lock`. A plugin
# that is absent or whose file differs is rejected before any of its code runs.
format = 1

[[plugin]]
id = \"a\"
version = \"0.1.0\"
abi = \"1.0\"
sha256 = \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"
size = 100

[[plugin]]
id = \"b\"
version = \"0.1.0\"
abi = \"1.0\"
sha256 = \"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\"
size = 100
";

    fn plugin(id: &str) -> LockedPlugin {
        LockedPlugin {
            id: id.to_owned(),
            version: "0.1.0".to_owned(),
            abi: (1, 0),
            sha256: id.repeat(64),
            size: 100,
        }
    }

    fn lock() -> PluginLock {
        PluginLock::new("/c/plugins.lock", ["b", "a", "b"].map(plugin)).expect("a lock")
    }

    #[test]
    fn the_text_is_sorted_and_reads_as_the_same() {
        assert_eq!(lock().to_toml(), TEXT);
        let path = Path::new("/c/plugins.lock");
        assert_eq!(PluginLock::parse(TEXT, path).expect("a lock"), lock());
        let empty = PluginLock::new(path, []).expect("a lock");
        assert_eq!(
            PluginLock::parse(&empty.to_toml(), path).expect("a lock"),
            empty
        );
    }

    #[test]
    fn differences_are_reported_with_the_locked_values() {
        let library = Path::new("/lib/a.so");
        assert!(lock().check(&plugin("a"), library).is_ok());
        let locked = "a".repeat(64);
        for (found, fault) in [
            (
                LockedPlugin {
                    version: "0.2.0".to_owned(),
                    abi: (1, 3),
                    size: 101,
                    sha256: "c".repeat(64),
                    ..plugin("a")
                },
                format!(
                    "plugin a differs from its entry in the lock: version 0.2.0 instead of 0.1.0, \
                     ABI 1.3 instead of 1.0, size 101 instead of 100, sha256 {} instead of \
                     {locked} (lock: /c/plugins.lock): /lib/a.so",
                    "c".repeat(64)
                ),
            ),
            (
                plugin("z"),
                "plugin z is not in the lock /c/plugins.lock: /lib/a.so".to_owned(),
            ),
        ] {
            let error = lock().check(&found, library).expect_err("rejected");
            assert_eq!(error.message(), fault);
            assert_eq!(error.kind(), ErrorKind::Plugin);
            assert_eq!(
                error.hint_text(),
                Some(
                    "if you trust the new file, run `host plugin lock --file /c/plugins.lock` with the run's arguments"
                )
            );
        }
    }

    #[test]
    fn two_files_under_one_id_cannot_be_locked() {
        let other = LockedPlugin {
            size: 101,
            ..plugin("a")
        };
        let error = PluginLock::new("x", [plugin("a"), other]).expect_err("rejected");
        assert_eq!(
            error.message(),
            "two different plugins have the id a: size 101 instead of 100"
        );
    }

    #[test]
    fn an_invalid_lock_is_rejected_with_the_reason_and_the_line() {
        let changed = |from: &str, to: &str| TEXT.replacen(from, to, 1);
        let digest = format!("\"{}\"", "a".repeat(64));
        for (text, said) in [
            (
                String::new(),
                "not a plugin lock: format = 1 is missing: /l".to_owned(),
            ),
            (
                "[package]\nname = \"x\"\n".to_owned(),
                "not a plugin lock: format = 1 is missing: /l".to_owned(),
            ),
            (
                changed("format = 1", "format = 2\nnews = true"),
                "the plugin lock has format 2, this host reads format 1: /l".to_owned(),
            ),
            (
                changed("\"b\"", "\"a\""),
                "not a plugin lock: a occurs twice: /l".to_owned(),
            ),
            (
                changed("\"b\"", "\"../b\""),
                "not a plugin lock: \"../b\" is not a plugin id: /l:13".to_owned(),
            ),
            (
                changed("\"1.0\"", "\"1\""),
                "not a plugin lock: abi is \"1\", not \"MAJOR.MINOR\": /l:8".to_owned(),
            ),
            (
                changed(&digest, "\"AA\""),
                "not a plugin lock: sha256 is \"AA\", not 64 hexadecimal digits in lower case: /l:9"
                    .to_owned(),
            ),
            (
                changed("size = 100\n", ""),
                "not a plugin lock: missing field `size`: /l:5".to_owned(),
            ),
            (
                changed("size = 100\n", "size = -1\n"),
                "not a plugin lock: invalid value: integer `-1`, expected u64: /l:10".to_owned(),
            ),
            (
                changed("size = 100\n", "size = 100\npath = \"x\"\n"),
                "not a plugin lock: unknown field `path`, expected one of `id`, `version`, `abi`, `sha256`, `size`: /l:11"
                    .to_owned(),
            ),
        ] {
            let error = PluginLock::parse(&text, Path::new("/l")).expect_err(&said);
            assert_eq!(error.message(), said);
            assert!(error.hint_text().is_some());
            assert_eq!(error.kind(), ErrorKind::Config);
        }
        let error = PluginLock::read(Path::new("/none/plugins.lock")).expect_err("no file");
        assert!(error.message().starts_with("cannot read the plugin lock: "));
    }
}
