use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use host_plugin::{Found, Level, Plugin, PluginSpec, SearchPath, Target, set_log};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A fixture in C: its source, manifest, flags and id.
pub(crate) struct Fixture {
    source: &'static str,
    manifest: String,
    id: String,
    flags: Vec<String>,
}

impl Fixture {
    /// Creates a fixture. The library contains the id. Tests with different ids therefore build different
    /// libraries, which the process loads separately.
    pub(crate) fn new(source: &'static str, id: &str) -> Self {
        let kind = match source {
            "metric.c" => "metric",
            "groups.c" => "param_groups",
            "observer.c" => "observer",
            _ => "checkpoint_sink",
        };
        let manifest = json!({
            "abi": [1, 0], "id": id, "version": "0.1.0", "kinds": [kind],
            "needs": ["loss_sum", "token_count"],
            "config": {
                "type": "object",
                "properties": {"how": {"type": "string"}, "keep": {"type": "integer"}},
                "additionalProperties": false
            }
        });
        let fixture = Self {
            source,
            manifest: String::new(),
            id: id.to_owned(),
            flags: Vec::new(),
        };
        fixture.manifest_text(&manifest.to_string())
    }

    pub(crate) fn metric(id: &str) -> Self {
        Self::new("metric.c", id)
    }

    pub(crate) fn manifest_text(mut self, text: &str) -> Self {
        self.manifest = format!("{text:?}");
        self
    }

    pub(crate) fn manifest_with(self, key: &str, value: Value) -> Self {
        let text: String = serde_json::from_str(&self.manifest).unwrap();
        let mut manifest: Value = serde_json::from_str(&text).unwrap();
        manifest[key] = value;
        self.manifest_text(&manifest.to_string())
    }

    pub(crate) fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Compiles the fixture into the folder.
    pub(crate) fn build(&self, dir: &Path) -> PathBuf {
        self.build_as(dir, &format!("lib{}.so", self.id.replace('-', "_")))
    }

    pub(crate) fn build_as(&self, dir: &Path, name: &str) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let to = dir.join(name);
        let mut cc = Command::new("cc");
        cc.args([
            "-std=c11",
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            "-Werror=incompatible-pointer-types",
        ])
        .args(["-Wno-unused-function", "-Wno-unused-variable"])
        .arg("-I")
        .arg(root.join("plugins/abi"))
        .arg(format!("-DMANIFEST={}", self.manifest));
        // By default these macros match the manifest, but a test can set a different id or version.
        for (name, value) in [("ID", self.id.as_str()), ("VERSION", "0.1.0")] {
            let own = format!("-D{name}=");
            if !self.flags.iter().any(|flag| flag.starts_with(&own)) {
                cc.arg(format!("{own}{value:?}"));
            }
        }
        cc.arg(root.join("tests/fixtures/plugins/c").join(self.source))
            .args(&self.flags)
            .arg("-o")
            .arg(&to);
        let output = cc.output().expect("a C compiler called cc");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        to
    }

    /// Compiles and loads the fixture.
    pub(crate) fn load(&self, dir: &Path) -> host_core::Result<Plugin> {
        self.load_with(dir, json!({}))
    }

    pub(crate) fn load_with(&self, dir: &Path, config: Value) -> host_core::Result<Plugin> {
        load(&self.build(dir), config)
    }
}

/// Finds a library by its path and loads it with these settings.
pub(crate) fn load(path: &Path, config: Value) -> host_core::Result<Plugin> {
    let mut table = config.as_object().unwrap().clone();
    table.insert("path".to_owned(), json!(path));
    let spec = PluginSpec::from_table(table)?;
    Plugin::load(&find(&spec.target)?, &spec.config)
}

pub(crate) fn find(target: &Target) -> host_core::Result<Found> {
    SearchPath::new([]).find(target)
}

pub(crate) fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Returns the plugin's log lines. Collection starts with the first call of this function or of [`listen`].
pub(crate) fn log_of(plugin: &str) -> Vec<String> {
    let log = listen().lock().unwrap();
    log.iter()
        .filter(|(id, _)| id == plugin)
        .map(|(_, message)| message.clone())
        .collect()
}

/// Collects the log lines of all plugins of this process.
pub(crate) fn listen() -> &'static Mutex<Vec<(String, String)>> {
    static LOG: OnceLock<Mutex<Vec<(String, String)>>> = OnceLock::new();
    LOG.get_or_init(|| {
        set_log(Level::Info, |record| {
            // Lines that the host itself logs about a plugin have another log target.
            if record.target != "fixture" {
                return;
            }
            let line = (record.plugin.to_owned(), record.message.to_owned());
            LOG.get().unwrap().lock().unwrap().push(line);
        });
        Mutex::default()
    })
}
