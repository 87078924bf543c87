use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::built::root;

/// A fixture in C of `tests/fixtures/plugins/c`: a plugin whose setting `how` says how it errs.
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

    /// A metric that tells where its labels lie, and that can read them on these devices.
    pub(crate) fn place(id: &'static str, devices: &'static [&'static str]) -> Self {
        Self {
            needs: &["labels"],
            devices,
            ..Self::new("place.c", "metric", id)
        }
    }

    /// A metric that writes its argmax and labels to the file that the variable `DUMP` names.
    pub(crate) fn dump(id: &'static str) -> Self {
        Self {
            needs: &["argmax", "labels"],
            ..Self::new("dump.c", "metric", id)
        }
    }

    /// A plugin of a kind that does to its process what its setting `how` says: `BREACH CALL`.
    pub(crate) fn breach(kind: &'static str) -> Self {
        let number = match kind {
            "param_groups" => 1,
            "metric" => 2,
            "checkpoint_sink" => 3,
            _ => 4,
        };
        Self::new("breach.c", kind, "breach").flag(format!("-DKIND={number}"))
    }

    /// A metric that tells which of the words in the file that `LOOK_FOR` names it finds in the environments of
    /// processes.
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

    /// A plugin of a kind with the one fault that `defect.h` and the kind's file know by this name.
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

    /// Another schema of its settings.
    pub(crate) fn settings(mut self, schema: Value) -> Self {
        self.settings = schema;
        self
    }

    /// For the compiler.
    pub(crate) fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Compiles it into the folder; the library.
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
                // What reads the settings in a plugin of `host plugin new`.
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

/// A library that calls itself libtorch, for a plugin to link.
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

/// A library to preload, which kills the program at a moment that its environment names.
pub(crate) fn kill_at(dir: &Path) -> PathBuf {
    preloadable("kill_at", dir)
}

/// A library to preload, which records what the program does to its files.
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
