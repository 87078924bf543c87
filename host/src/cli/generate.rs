use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use host_plugin::{SearchPath, Secrets};

use super::RunsDir;
use crate::config::HubModel;
use crate::run::cache::Place;
use crate::run::hub_fetch::fetch;
use crate::runs::run_dir::RunDir;
use crate::show::printable;

const EXAMPLE: &str = "\
Example:
  host generate demo --prompt \"fn main() {\" --max-new-tokens 64";

/// Generates text from a checkpoint
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Generate {
    /// Checkpoint folder, run name or folder (for its newest checkpoint), or hub:USER/NAME@BRANCH
    checkpoint: String,

    /// Text to continue
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    prompt: String,

    /// Maximum number of tokens to generate
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    max_new_tokens: usize,

    /// Sampling temperature; 0 always takes the most likely token
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.8,
        help_heading = "Sampling"
    )]
    temperature: f64,

    /// Sample from this many most likely tokens; 0: from all
    #[arg(
        long,
        value_name = "TOKENS",
        default_value_t = 50,
        help_heading = "Sampling"
    )]
    top_k: i64,

    /// Seed for sampling
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    seed: i64,

    /// Device to run on: cpu, cuda, cuda:N, or auto (a GPU if there is one)
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,

    #[command(flatten)]
    runs: RunsDir,
}

impl Generate {
    pub(super) fn execute(&self) -> Result<()> {
        let (checkpoint, _fetched) = self.folder()?;
        let request = host_train::Generate {
            checkpoint,
            prompt: self.prompt.clone(),
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            seed: self.seed,
            device: self.device.clone(),
        };
        // On a terminal, control characters are replaced; a file or another program gets the text unchanged.
        let is_terminal = std::io::stdout().is_terminal();
        let write = |piece: &str| match is_terminal {
            true => super::write(printable::lines(piece).as_bytes()),
            false => super::write(piece.as_bytes()),
        };
        let mut written = write(&self.prompt);
        host_train::generate(&request, &mut |piece| {
            if matches!(written, Ok(true)) {
                written = write(piece);
            }
            match written {
                Ok(true) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })?;
        if written? {
            write("\n")?;
        }
        Ok(())
    }

    /// Returns the checkpoint's folder. For a fetched checkpoint, also returns the folder's owner. The owner
    /// keeps the folder from being deleted.
    fn folder(&self) -> Result<(PathBuf, Option<Place>)> {
        let path = Path::new(&self.checkpoint);
        if path.join("config.json").is_file() {
            return Ok((path.to_owned(), None));
        }
        let absolute = |path: String| match std::path::absolute(&path) {
            Ok(path) => path.to_string_lossy().into_owned(),
            Err(_) => path,
        };
        let name = HubModel::resolved(&self.checkpoint, absolute);
        if let Some(model) = HubModel::parse(&name)? {
            let search = SearchPath::from_env();
            let (fetched, place) = fetch(&model, &[], (&search, &Secrets::default()), false)?;
            if let Some(warning) = &place.warning {
                eprintln!("warning: {}", printable::one_line(warning));
            }
            return Ok((fetched.path, Some(place)));
        }
        let run = RunDir::find(&self.runs.runs_dir, &self.checkpoint)?;
        run.newest_checkpoint()
            .map(|(_, path)| (path, None))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Config,
                    format!(
                        "the run has no complete checkpoint yet: {}",
                        run.path().display()
                    ),
                )
                .hint("wait for one: a checkpoint is written every save_checkpoint_steps steps and at the end")
            })
    }
}
