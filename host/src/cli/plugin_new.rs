use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use host_plugin::is_plugin_id;

use super::print;
use crate::plugins::scaffold::{self, Language, PluginKind, Sdk};

/// What something of a project in Rust, or in C, is called already.
const TAKEN_IN_RUST: [&str; 6] = [
    "host-plugin-sdk",
    "serde",
    "serde_json",
    "core",
    "std",
    "test",
];
const TAKEN_IN_C: [&str; 2] = ["test_plugin", "test-plugin"];

/// Makes a small plugin of your own to begin with, complete with its test
#[derive(Debug, clap::Args)]
pub(super) struct New {
    /// The plugin's id: lower-case letters, digits, - and _, beginning with a letter
    name: String,

    /// What it is to be
    #[arg(long, value_enum)]
    kind: PluginKind,

    /// What it is to be written in
    #[arg(long, value_enum)]
    lang: Language,

    /// The folder to make; without it, NAME in the current one
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,

    /// Folder of the crate host-plugin-sdk, for Rust; without it, the one of the source tree in which
    /// this program was built, or the registry's
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

impl New {
    pub(super) fn execute(&self) -> Result<()> {
        self.check_name()?;
        let sdk = self.sdk()?;
        let folder = self
            .path
            .clone()
            .unwrap_or_else(|| PathBuf::from(&self.name));
        let files = scaffold::files(&self.name, self.kind, self.lang, &sdk);
        write(&folder, &files)?;
        print(&self.said(&folder, &sdk))
    }

    fn check_name(&self) -> Result<()> {
        let name = &self.name;
        if !is_plugin_id(name) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("{name:?} cannot be a plugin's id"),
            )
            .hint("use 1 to 64 lower-case letters, digits, - and _, beginning with a letter"));
        }
        let taken = match self.lang {
            Language::Rust => &TAKEN_IN_RUST[..],
            Language::C | Language::Cpp => &TAKEN_IN_C,
        };
        if taken.contains(&name.as_str()) {
            let message = format!("{name:?} is the name of something else in the project");
            return Err(Error::new(ErrorKind::Config, message).hint("choose another name"));
        }
        Ok(())
    }

    fn sdk(&self) -> Result<Sdk> {
        let Some(given) = &self.sdk else {
            let program = std::env::current_exe().and_then(fs::canonicalize);
            let beside = program.ok().and_then(|p| scaffold::sdk_beside(&p));
            return Ok(beside.map_or(Sdk::Registry, Sdk::Path));
        };
        if self.lang != Language::Rust {
            let message = format!("a plugin in {} does not use the SDK", self.lang.name());
            return Err(Error::new(ErrorKind::Config, message).hint("leave --sdk out"));
        }
        let path = fs::canonicalize(given).map_err(|e| Error::io("find folder", given, &e))?;
        if !scaffold::is_sdk(&path) || path.to_str().is_none() {
            let message = format!("this is not the crate host-plugin-sdk: {}", path.display());
            return Err(Error::new(ErrorKind::Config, message)
                .hint("it is the folder plugins/sdk of the host's sources"));
        }
        Ok(Sdk::Path(path))
    }

    fn said(&self, folder: &Path, sdk: &Sdk) -> String {
        let identifier = self.name.replace('-', "_");
        let (test, library) = match self.lang {
            Language::Rust => ("cargo test && cargo build --release", "target/release/"),
            Language::C | Language::Cpp => ("make test", ""),
        };
        let sdk = match sdk {
            Sdk::Path(path) if self.lang == Language::Rust => {
                format!("SDK    {}\n", path.display())
            }
            Sdk::Registry if self.lang == Language::Rust => format!(
                "SDK    host-plugin-sdk {} from the registry, since no source tree of the host is around \
                 this program; with --sdk from a folder\n",
                env!("CARGO_PKG_VERSION")
            ),
            _ => String::new(),
        };
        format!(
            "{name}: {kind} in {language}: {folder}\n{sdk}\
             test   cd {folder} && {test}\n\
             check  host plugin check {folder}/{library}lib{identifier}.so\n\
             use    host run … --plugin {folder}/{library}lib{identifier}.so\n",
            name = self.name,
            kind = self.kind.phrase(),
            language = self.lang.name(),
            folder = folder.display(),
        )
    }
}

/// Writes a new folder: all of it, or an error and nothing but the folders above it.
fn write(folder: &Path, files: &[(String, String)]) -> Result<()> {
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above).map_err(|error| Error::io("create folder", above, &error))?;
    }
    fs::create_dir(folder).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::new(
            ErrorKind::Config,
            format!("the folder exists already: {}", folder.display()),
        )
        .hint("choose another by --path, or remove it"),
        _ => Error::io("create folder", folder, &error),
    })?;
    for (path, text) in files {
        let path = folder.join(path);
        let written = fs::create_dir_all(path.parent().unwrap_or(folder))
            .and_then(|()| fs::write(&path, text));
        if let Err(error) = written {
            // Best effort; what matters is the error.
            let _ = fs::remove_dir_all(folder);
            return Err(Error::io("write", &path, &error));
        }
    }
    Ok(())
}
