//! A sink that writes the path of the newest checkpoint to a file, where other programs can read it.

#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use host_plugin_sdk::{Cancel, Checkpoint, CheckpointSink, Error, Host, Result, export_plugin};
use serde::Deserialize;
use serde_json::{Value, json};

/// The settings, which `config.schema.json` describes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    file: Option<PathBuf>,
}

/// Records where the newest checkpoint is.
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

    // May block, because it runs on its own thread. Must be idempotent, because a checkpoint can be delivered
    // again.
    fn publish(&mut self, checkpoint: &Checkpoint<'_>, cancel: &Cancel) -> Result<Value> {
        let own = || checkpoint.state_dir().join("latest.txt");
        let file = self.config.file.clone().unwrap_or_else(own);
        let partial = file.with_extension("partial");
        // A slow sink should make this check often.
        cancel.check()?;
        // A receipt promises that the checkpoint exists, so check first.
        let dir = checkpoint.dir();
        fs::metadata(dir).map_err(|error| Error::io("read", dir, &error))?;
        let line = format!("{}\n", dir.display());
        // Write, then rename, so that readers never see half a file. `Error::io` marks errors such as a
        // full disk as temporary: the host tries again later.
        fs::write(&partial, line).map_err(|error| Error::io("write", &partial, &error))?;
        fs::rename(&partial, &file).map_err(|error| Error::io("write", &file, &error))?;
        self.host.debug(&format!("wrote {}", file.display()));
        // The receipt tells a person where to find the result.
        Ok(json!({ "path": file }))
    }
}

export_plugin! {
    description: "Writes the path of the newest checkpoint to a file",
    checkpoint_sink: Latest,
    config: "config.schema.json",
}

#[cfg(test)]
mod tests {
    use host_plugin_sdk::fake::{Checkpoint, Plugin, Scratch};

    use super::*;

    #[test]
    fn the_newest_checkpoint_is_recorded() {
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
    fn the_default_file_is_in_the_sinks_own_folder() {
        let scratch = Scratch::new();
        let checkpoint = Checkpoint::write(&scratch.path().join("step-1"), 1, &[]);
        let mut sink = Plugin::load(&PLUGIN)
            .checkpoint_sink("{}")
            .expect("created");
        sink.publish(&checkpoint).expect("published");
        assert!(checkpoint.state_dir().join("latest.txt").is_file());
    }
}
