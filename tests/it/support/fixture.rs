use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::built::root;

/// A plugin in C from `tests/fixtures/plugins/c`. Its setting `how` selects its fault.
pub(crate) struct Fixture {
    source: &'static str,
    id: &'static str,
    kind: &'static str,
    needs: &'static [&'static str],
    devices: &'static [&'static str],
    settings: Value,
    flags: Vec<String>,
}

impl Fixture {
    pub(crate) fn metric(id: &'static str) -> Self {
        Self::new("metric.c", "metric", id)
    }

    pub(crate) fn sink(id: &'static str) -> Self {
        Self::new("sink.c", "checkpoint_sink", id)
    }

    /// Returns a metric that reports the device of its labels. It can read labels on the devices in
    /// `devices`.
    pub(crate) fn place(id: &'static str, devices: &'static [&'static str]) -> Self {
        Self {
            needs: &["labels"],
            devices,
            ..Self::new("place.c", "metric", id)
        }
    }

    /// Returns a metric that writes its argmax and labels to a file. The environment variable `DUMP` names
    /// the file.
    pub(crate) fn dump(id: &'static str) -> Self {
        Self {
            needs: &["argmax", "labels"],
            ..Self::new("dump.c", "metric", id)
        }
    }

    /// Returns a plugin that harms its process in one of its calls. Its setting `how` selects the harm and
    /// the call, in the form `BREACH CALL`.
    pub(crate) fn breach(kind: &'static str) -> Self {
        let number = match kind {
            "param_groups" => 1,
            "metric" => 2,
            "checkpoint_sink" => 3,
            _ => 4,
        };
        Self::new("breach.c", kind, "breach").flag(format!("-DKIND={number}"))
    }

    /// Returns a metric that searches environment variables for words, and logs the words that it finds. It
    /// searches the variables of three kinds of processes: its own process, its parent, and the host's other
    /// child processes. The environment variable `LOOK_FOR` names the file that contains the words.
    pub(crate) fn spy(id: &'static str) -> Self {
        Self::new("spy.c", "metric", id)
    }

    fn new(source: &'static str, kind: &'static str, id: &'static str) -> Self {
        Self {
            source,
            id,
            kind,
            needs: &["loss_sum", "token_count"],
            devices: &["cpu"],
            settings: json!({ "type": "object", "properties": { "how": { "type": "string" } } }),
            flags: Vec::new(),
        }
    }

    /// Returns a plugin with one fault. `defect` is the name of the fault, as in `defect.h` or in the source
    /// file for this kind.
    pub(crate) fn defect(kind: &'static str, defect: &str) -> Self {
        let source = match kind {
            "metric" => "defect_metric.c",
            "param_groups" => "defect_groups.c",
            "checkpoint_sink" => "defect_sink.c",
            _ => "defect_observer.c",
        };
        let level = json!({ "type": "number", "minimum": 0 });
        let properties = json!({ "level": level, "name": { "type": "string" } });
        let schema = json!({
            "type": "object", "additionalProperties": false, "properties": properties,
        });
        Self {
            needs: if kind == "metric" {
                &["nll", "labels"]
            } else {
                &[]
            },
            ..Self::new(source, kind, "defect")
        }
        .settings(schema)
        .flag(format!("-DDEFECT={defect:?}"))
        .flag("-lm")
    }

    /// Sets the schema of the plugin's settings.
    pub(crate) fn settings(mut self, schema: Value) -> Self {
        self.settings = schema;
        self
    }

    /// Adds a flag for the compiler.
    pub(crate) fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Compiles the plugin into the folder. Returns the path of the library.
    pub(crate) fn build(&self, dir: &Path) -> PathBuf {
        let manifest = json!({
            "abi": [1, 0], "id": self.id, "version": "0.1.0", "kinds": [self.kind],
            "needs": self.needs, "devices": self.devices,
            "config": self.settings,
        });
        let manifest = manifest.to_string();
        let source = root().join("tests/fixtures/plugins/c").join(self.source);
        let library = dir.join(format!("lib{}.so", self.id.replace('-', "_")));
        compile(
            Command::new("cc")
                .args(["-std=c11", "-shared", "-fPIC", "-O1", "-w", "-I"])
                .arg(root().join("plugins/abi"))
                // The folder of `settings.h`, with which plugins from `host plugin new` read their settings.
                .arg("-I")
                .arg(root().join("host/templates/c"))
                .arg(format!("-DMANIFEST={manifest:?}"))
                .arg(format!("-DID={:?}", self.id))
                .arg("-DVERSION=\"0.1.0\"")
                .arg(source)
                .args(&self.flags)
                .arg("-o")
                .arg(&library),
        );
        library
    }
}

/// Builds a library for a plugin to link. The library has the name of libtorch.
pub(crate) fn fake_libtorch(dir: &Path) -> PathBuf {
    let source = dir.join("torch.c");
    std::fs::write(&source, "int fake_torch(void) { return 1; }").expect("written");
    let library = dir.join("libtorch_cpu.so");
    compile(
        Command::new("cc")
            .args(["-shared", "-fPIC", "-Wl,-soname,libtorch_cpu.so"])
            .arg(&source)
            .arg("-o")
            .arg(&library),
    );
    library
}

/// Builds a library to preload. It kills the program at the moment that environment variables select.
pub(crate) fn kill_at(dir: &Path) -> PathBuf {
    preloadable("kill_at", dir)
}

/// Builds a library to preload. It records the program's file operations.
pub(crate) fn record_writes(dir: &Path) -> PathBuf {
    preloadable("record_writes", dir)
}

fn preloadable(name: &str, dir: &Path) -> PathBuf {
    let library = dir.join(format!("lib{name}.so"));
    compile(
        Command::new("cc")
            .args(["-std=gnu11", "-shared", "-fPIC", "-O1"])
            .arg(root().join(format!("tests/fixtures/{name}.c")))
            .arg("-o")
            .arg(&library),
    );
    library
}

fn compile(cc: &mut Command) {
    let output = cc.output().expect("a C compiler called cc");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{cc:?}\n{errors}");
}
