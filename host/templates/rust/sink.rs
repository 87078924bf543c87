//! A sink that keeps the path of the newest checkpoint in a file, for programs that want to find it.

#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use host_plugin_sdk::{Cancel, Checkpoint, CheckpointSink, Error, Host, Result, export_plugin};
use serde::Deserialize;
use serde_json::{Value, json};

/// The settings; `config.schema.json` describes them to the host and its users.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    file: Option<PathBuf>,
}

/// Notes where the newest checkpoint is.
#[derive(Debug)]
pub struct Latest {
    config: Config,
    host: Host,
}

impl CheckpointSink for Latest {
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        Ok(Self { config, host })
    }

    // It may block: it runs on a thread of its own. Delivering the same again changes nothing.
    fn publish(&mut self, checkpoint: &Checkpoint<'_>, cancel: &Cancel) -> Result<Value> {
        let own = || checkpoint.state_dir().join("latest.txt");
        let file = self.config.file.clone().unwrap_or_else(own);
        let partial = file.with_extension("partial");
        // A sink that works for long asks this again and again.
        cancel.check()?;
        // A receipt means that the checkpoint is there.
        let dir = checkpoint.dir();
        fs::metadata(dir).map_err(|error| Error::io("read", dir, &error))?;
        let line = format!("{}\n", dir.display());
        // By one rename, so that nobody reads half of it. What a full disk or a lost network makes
        // fail, `Error::io` marks as temporary, and the host tries again.
        fs::write(&partial, line).map_err(|error| Error::io("write", &partial, &error))?;
        fs::rename(&partial, &file).map_err(|error| Error::io("write", &file, &error))?;
        self.host.debug(&format!("noted in {}", file.display()));
        // The receipt: what lets a person find it.
        Ok(json!({ "path": file }))
    }
}

export_plugin! {
    description: "Keeps the path of the newest checkpoint in a file",
    checkpoint_sink: Latest,
    config: "config.schema.json",
}

#[cfg(test)]
mod tests {
    use host_plugin_sdk::fake::{Checkpoint, Plugin, Scratch};

    use super::*;

    #[test]
    fn the_newest_checkpoint_is_noted_however_often() {
        let scratch = Scratch::new();
        let file = scratch.path().join("newest.txt");
        let config = json!({ "file": file }).to_string();
        let plugin = Plugin::load(&PLUGIN);
        let mut sink = plugin.checkpoint_sink(&config).expect("created");
        for step in [1, 2, 2] {
            let dir = scratch.path().join(format!("step-{step}"));
            let checkpoint = Checkpoint::write(&dir, step, &[("model.safetensors", b"weights")]);
            let receipt = sink.publish(&checkpoint).expect("published");
            assert_eq!(receipt, json!({ "path": file }));
            let noted = fs::read_to_string(&file).expect("a note");
            assert_eq!(noted, format!("{}\n", dir.display()));
        }
    }

    #[test]
    fn without_settings_the_note_is_in_the_sinks_own_folder() {
        let scratch = Scratch::new();
        let checkpoint = Checkpoint::write(&scratch.path().join("step-1"), 1, &[]);
        let mut sink = Plugin::load(&PLUGIN)
            .checkpoint_sink("{}")
            .expect("created");
        sink.publish(&checkpoint).expect("published");
        assert!(checkpoint.state_dir().join("latest.txt").is_file());
    }
}
