//! Creates the files of a new plugin project.
//!
//! The templates are working files of a plugin called `my-plugin`. The name of the user's new plugin replaces
//! this name.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

/// The kind of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PluginKind {
    /// An evaluation metric
    Metric,
    /// The optimizer's parameter groups
    Groups,
    /// Delivers checkpoints
    Sink,
    /// Receives the run's events and can stop the run
    Observer,
}

/// The plugin's programming language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// Rust with the SDK, built by cargo
    Rust,
    /// C11 with the header, built by make
    C,
    /// C++17 with the header, built by make
    Cpp,
}

/// Where a Rust project finds the SDK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sdk {
    /// This folder; absolute.
    Path(PathBuf),
    /// The crate registry. There, the SDK has the same version as this host.
    Registry,
}

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("../../templates/", $path))
    };
}

const HEADER: &str = include_str!("../../../plugins/abi/host_plugin.h");
const SDK_NAME: &str = "host-plugin-sdk";
/// The line of the template's `Cargo.toml` that locates the SDK.
const SDK_LINE: &str = "host-plugin-sdk = { path = \"../../../plugins/sdk\" }";

impl PluginKind {
    /// Returns the kind with its article, such as "a metric".
    pub(crate) fn phrase(self) -> &'static str {
        match self {
            Self::Metric => "a metric",
            Self::Groups => "parameter groups",
            Self::Sink => "a checkpoint sink",
            Self::Observer => "an observer",
        }
    }
}

impl Language {
    /// Returns the language's name for users.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::C => "C",
            Self::Cpp => "C++",
        }
    }
}

/// Returns the project's files: the path in the project and the contents of each file.
pub(crate) fn files(
    name: &str,
    kind: PluginKind,
    language: Language,
    sdk: &Sdk,
) -> Vec<(String, String)> {
    let identifier = name.replace('-', "_");
    // `my_plugin` is replaced first. In the other order, a `my_plugin` within the user's name would be
    // replaced too. The identifier has no hyphen, so the second replacement does not change it.
    let named = |text: &str| {
        text.replace("my_plugin", &identifier)
            .replace("my-plugin", name)
    };
    let readme = |text: &str| text.replace("KIND", kind.phrase());
    let files: Vec<(&str, String)> = match language {
        Language::Rust => {
            let (source, schema) = rust_source(kind);
            let manifest = template!("rust/Cargo.toml").replace(SDK_LINE, &dependency(sdk));
            vec![
                ("Cargo.toml", manifest),
                ("README.md", readme(template!("rust/README.md"))),
                (".gitignore", "/target\n".to_owned()),
                ("config.schema.json", schema.to_owned()),
                ("src/lib.rs", source.to_owned()),
            ]
        }
        Language::C | Language::Cpp => {
            let (source, makefile, file) = match language {
                Language::C => (c_source(kind), template!("c/Makefile"), "my_plugin.c"),
                _ => (cpp_source(kind), template!("cpp/Makefile"), "my_plugin.cpp"),
            };
            vec![
                (file, source.to_owned()),
                ("Makefile", makefile.to_owned()),
                ("README.md", readme(template!("c/README.md"))),
                (".gitignore", "*.so\n/test_plugin\n".to_owned()),
                ("host_plugin.h", HEADER.to_owned()),
                ("settings.h", template!("c/settings.h").to_owned()),
                ("fake_host.h", template!("c/test/fake_host.h").to_owned()),
                ("test_plugin.c", c_test(kind).to_owned()),
            ]
        }
    };
    files
        .into_iter()
        .map(|(path, text)| (named(path), named(&text)))
        .collect()
}

/// Returns the SDK's folder if the program is still in the source tree in which it was built. Returns `None`
/// for an installed program.
pub(crate) fn sdk_beside(program: &Path) -> Option<PathBuf> {
    let sdk = |folder: &Path| folder.join("plugins/sdk");
    program
        .ancestors()
        .skip(1)
        .map(sdk)
        .find(|folder| is_sdk(folder))
}

/// Whether the folder holds the SDK's crate.
pub(crate) fn is_sdk(folder: &Path) -> bool {
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    let manifest: toml::Table = toml::from_str(&manifest).unwrap_or_default();
    let name = manifest.get("package").and_then(|p| p.get("name"));
    name.and_then(toml::Value::as_str) == Some(SDK_NAME)
}

fn dependency(sdk: &Sdk) -> String {
    match sdk {
        Sdk::Path(path) => {
            let path = toml::Value::from(path.display().to_string());
            format!("{SDK_NAME} = {{ path = {path} }}")
        }
        Sdk::Registry => format!("{SDK_NAME} = {:?}", env!("CARGO_PKG_VERSION")),
    }
}

/// Returns the plugin's source and the schema of its settings.
fn rust_source(kind: PluginKind) -> (&'static str, &'static str) {
    match kind {
        PluginKind::Metric => (
            template!("rust/metric.rs"),
            template!("rust/metric.schema.json"),
        ),
        PluginKind::Groups => (
            template!("rust/groups.rs"),
            template!("rust/groups.schema.json"),
        ),
        PluginKind::Sink => (
            template!("rust/sink.rs"),
            template!("rust/sink.schema.json"),
        ),
        PluginKind::Observer => (
            template!("rust/observer.rs"),
            template!("rust/observer.schema.json"),
        ),
    }
}

fn c_source(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Metric => template!("c/metric.c"),
        PluginKind::Groups => template!("c/groups.c"),
        PluginKind::Sink => template!("c/sink.c"),
        PluginKind::Observer => template!("c/observer.c"),
    }
}

fn cpp_source(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Metric => template!("cpp/metric.cpp"),
        PluginKind::Groups => template!("cpp/groups.cpp"),
        PluginKind::Sink => template!("cpp/sink.cpp"),
        PluginKind::Observer => template!("cpp/observer.cpp"),
    }
}

/// Returns the test for a C or C++ plugin. The test calls the library through the C interface.
fn c_test(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Metric => template!("c/test/metric.c"),
        PluginKind::Groups => template!("c/test/groups.c"),
        PluginKind::Sink => template!("c/test/sink.c"),
        PluginKind::Observer => template!("c/test/observer.c"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_has_its_name_instead_of_the_template_s() {
        let sdk = Sdk::Path("/a \"b\"/sdk".into());
        for kind in PluginKind::value_variants() {
            for language in Language::value_variants() {
                for (path, text) in files("worst-line", *kind, *language, &sdk) {
                    for left in ["my-plugin", "my_plugin", "KIND.", "../../../"] {
                        assert!(
                            !text.contains(left) && !path.contains(left),
                            "{path}: {left}"
                        );
                    }
                    if path == "README.md" {
                        assert!(text.starts_with("# worst-line\n"));
                        assert!(text.contains(kind.phrase()) && text.contains("libworst_line.so"));
                    }
                }
            }
        }
    }

    #[test]
    fn a_name_can_contain_the_template_s() {
        let files = files(
            "my_plugin-my-plugin",
            PluginKind::Sink,
            Language::C,
            &Sdk::Registry,
        );
        let (path, text) = &files[0];
        assert_eq!(path, "my_plugin_my_plugin.c");
        assert!(text.contains("#define ID \"my_plugin-my-plugin\"\n"));
    }

    #[test]
    fn the_sdk_is_given_by_its_folder_or_its_version() {
        let manifest = |sdk| {
            let files = files("x", PluginKind::Metric, Language::Rust, &sdk);
            let (_, text) = files
                .iter()
                .find(|(path, _)| path == "Cargo.toml")
                .expect("one");
            toml::from_str::<toml::Table>(text).expect("TOML")["dependencies"][SDK_NAME].clone()
        };
        let path = manifest(Sdk::Path("/a \"b\"/sdk".into()));
        assert_eq!(path["path"].as_str(), Some("/a \"b\"/sdk"));
        let version = manifest(Sdk::Registry);
        assert_eq!(version.as_str(), Some(env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn the_sdk_is_found_from_the_target_folder() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the root");
        let found = sdk_beside(&root.join("target/release/host"));
        assert_eq!(found, Some(root.join("plugins/sdk")));
        assert_eq!(sdk_beside(Path::new("/usr/bin/host")), None);
        assert!(!is_sdk(&root.join("plugins/abi")));
    }
}
