use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use host_plugin::is_plugin_id;

use super::print;
use crate::plugins::scaffold::{self, Language, PluginKind, Sdk};

/// Names that a Rust or C project cannot use, because they already have a meaning there.
const TAKEN_IN_RUST: [&str; 6] = [
    "host-plugin-sdk",
    "serde",
    "serde_json",
    "core",
    "std",
    "test",
];
const TAKEN_IN_C: [&str; 2] = ["test_plugin", "test-plugin"];

const EXAMPLE: &str = "\
Example:
  host plugin new costly-tokens --kind metric --lang rust";

/// Creates a small working plugin with a test, as a starting point
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct New {
    /// Id of the plugin: lower-case letters, digits, - and _, starting with a letter
    name: String,

    /// Kind of the plugin
    #[arg(long, value_enum)]
    kind: PluginKind,

    /// Programming language
    #[arg(long, value_enum)]
    lang: Language,

    /// Folder to create [default: NAME in the current folder]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,

    /// Folder of the crate host-plugin-sdk, for a Rust plugin [default: the crate in the source tree that
    /// this program was built in, or else the crate from the registry]
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
            return Err(
                Error::new(ErrorKind::Config, format!("invalid plugin id: {name:?}")).hint(
                    "use 1 to 64 lower-case letters, digits, - and _, starting with a letter",
                ),
            );
        }
        let taken = match self.lang {
            Language::Rust => &TAKEN_IN_RUST[..],
            Language::C | Language::Cpp => &TAKEN_IN_C,
        };
        if taken.contains(&name.as_str()) {
            let message = format!("reserved plugin id: {name:?}");
            return Err(Error::new(ErrorKind::Config, message).hint("choose another id"));
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
            let message = format!("plugins in {} do not use the SDK", self.lang.name());
            return Err(Error::new(ErrorKind::Config, message).hint("remove --sdk"));
        }
        let path = fs::canonicalize(given).map_err(|e| Error::io("find folder", given, &e))?;
        if !scaffold::is_sdk(&path) || path.to_str().is_none() {
            let message = format!("not the crate host-plugin-sdk: {}", path.display());
            return Err(Error::new(ErrorKind::Config, message)
                .hint("use the folder plugins/sdk of the host's sources"));
        }
        Ok(Sdk::Path(path))
    }

    fn said(&self, folder: &Path, sdk: &Sdk) -> String {
        let identifier = self.name.replace('-', "_");
        // Without a `./`, the name of the folder alone could be read as the id.
        let place = match folder.components().next() {
            Some(Component::Normal(_)) => Path::new(".").join(folder),
            _ => folder.to_owned(),
        };
        let (test, library) = match self.lang {
            Language::Rust => ("cargo test && cargo build --release", "target/release/"),
            Language::C | Language::Cpp => ("make test", ""),
        };
        let sdk = match sdk {
            Sdk::Path(path) if self.lang == Language::Rust => {
                format!("SDK    {}\n", path.display())
            }
            Sdk::Registry if self.lang == Language::Rust => format!(
                "SDK    host-plugin-sdk {} from the registry, because this program is not in its source \
                 tree; --sdk selects a local folder\n",
                env!("CARGO_PKG_VERSION")
            ),
            _ => String::new(),
        };
        format!(
            "created {place}, {kind} in {language}\n{sdk}\
             test   cd {folder} && {test}\n\
             check  host plugin check {folder}/{library}lib{identifier}.so\n\
             use    host run … --plugin {folder}/{library}lib{identifier}.so\n",
            kind = self.kind.phrase(),
            language = self.lang.name(),
            place = place.display(),
            folder = folder.display(),
        )
    }
}

/// Writes the project into a new folder. If that fails, removes the folder, but not the parent folders that
/// were created.
fn write(folder: &Path, files: &[(String, String)]) -> Result<()> {
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above).map_err(|error| Error::io("create folder", above, &error))?;
    }
    fs::create_dir(folder).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::new(
            ErrorKind::Config,
            format!("the folder already exists: {}", folder.display()),
        )
        .hint("choose another folder with --path, or remove this one"),
        _ => Error::io("create folder", folder, &error),
    })?;
    for (path, text) in files {
        let path = folder.join(path);
        let written = fs::create_dir_all(path.parent().unwrap_or(folder))
            .and_then(|()| fs::write(&path, text));
        if let Err(error) = written {
            // An error here is ignored: the error that caused the removal is reported.
            let _ = fs::remove_dir_all(folder);
            return Err(Error::io("write", &path, &error));
        }
    }
    Ok(())
}
