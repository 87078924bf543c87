use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Subcommand;
use host_core::Result;
use host_train::{TokenFile, TokenizeNews, TrainConfig, VOCAB_SIZE};
use serde_json::json;

use super::{print, print_json};
use crate::run::cache::Cache;
use crate::show::number::{bytes, count};
use crate::show::progress::{Progress, Style};
use crate::show::table::{Align, Table};

/// Prepares data
#[derive(Debug, clap::Args)]
pub(crate) struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Tokenize(Tokenize),
}

const EXAMPLES: &str = "\
A training tokenizes text while it runs, ahead of the loop. Token files save that work when the
same data is trained on again and again, or by many processes: they are mapped into memory, two
bytes a token, or four if the vocabulary has more than 65536.

A folder receives train.tokens, valid.tokens and the tokenizer; an output that ends in .tokens is
one file of all the data. The training documents stand in the order in which the first epoch of a
training with the same seed meets them, so its batches are the same as from the text. Documents
that cannot be used are left out and counted. A file appears under its name when it is whole.

Example:
  host data tokenize --data ~/src --extensions rs --vocab-size 8192 --output tokens
  host run --data tokens/train.tokens --valid-data tokens/valid.tokens --model demo";

/// Trains a BPE tokenizer, or takes one, and writes the data as token files
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct Tokenize {
    /// Folder, file or quoted pattern ('src/**/*.rs'): text or JSON lines (.jsonl), also compressed
    /// (.gz, .zst), or Parquet; links below a folder are followed, and each file counts once; give it
    /// again for more
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,

    /// The same for evaluation; without it, one file in `valid-every` of the data is held out
    #[arg(long, value_name = "PATH")]
    valid_data: Vec<PathBuf>,

    /// Folder for train.tokens, valid.tokens and tokenizer.json; or one file for all, NAME.tokens
    #[arg(long, value_name = "PATH")]
    output: PathBuf,

    /// A tokenizer.json, GPT-2's vocab.json with its merges.txt, or a folder with either; without it, one
    /// is trained on the data
    #[arg(long, value_name = "PATH", conflicts_with = "vocab_size")]
    tokenizer: Option<PathBuf>,

    /// The token between documents; without it, the one that the tokenizer's configuration says
    #[arg(long, value_name = "TOKEN", requires = "tokenizer")]
    end_of_text: Option<String>,

    /// Tokens in a vocabulary trained here
    #[arg(long, value_name = "TOKENS", default_value_t = VOCAB_SIZE, value_parser = clap::value_parser!(i64).range(257..))]
    vocab_size: i64,

    /// Take the name of a special token in the data, such as <|endoftext|>, as text like any other
    #[arg(long)]
    split_special_tokens: bool,

    /// Which files of a folder count, by extension (rs,py); without it, all
    #[arg(long, value_name = "EXT,…", value_delimiter = ',')]
    extensions: Vec<String>,

    /// Leave out what fits this pattern: a name of files or folders ('*.min.js', node_modules), or with
    /// a slash a path below a data folder ('docs/**'); give it again for more
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,

    /// Field of a JSON line, or column of a Parquet file, that has the text
    #[arg(long, value_name = "NAME", default_value_t = TrainConfig::default().text_column)]
    text_column: String,

    /// One file in this many is held out for evaluation, by its name; of a single file with records
    /// one record in this many, of a single text its last part
    #[arg(long, value_name = "FILES", default_value_t = TrainConfig::default().valid_every, value_parser = clap::value_parser!(u64).range(2..))]
    valid_every: u64,

    /// Seeds the order of the training files
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = TrainConfig::default().seed)]
    seed: i64,

    /// Threads that tokenize; without it, one for each core, at most 16
    #[arg(long, value_name = "THREADS", value_parser = clap::value_parser!(u64).range(1..))]
    data_workers: Option<u64>,

    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

impl Data {
    pub(super) fn execute(&self) -> Result<()> {
        let Command::Tokenize(tokenize) = &self.command;
        tokenize.execute()
    }
}

impl Tokenize {
    fn execute(&self) -> Result<()> {
        let config = TrainConfig {
            data: self.data.clone(),
            valid_data: self.valid_data.clone(),
            extensions: self.extensions.clone(),
            exclude: self.exclude.clone(),
            text_column: self.text_column.clone(),
            valid_every: self.valid_every,
            tokenizer: self.tokenizer.clone(),
            split_special_tokens: self.split_special_tokens,
            end_of_text: self.end_of_text.clone(),
            vocab_size: Some(self.vocab_size),
            seed: self.seed,
            data_workers: self
                .data_workers
                .and_then(|count| usize::try_from(count).ok()),
            ..TrainConfig::default()
        };
        let style = Style::choose(self.json);
        let progress = Progress::new(style, 0);
        let every = match style {
            Style::Bar => Duration::from_millis(200),
            Style::Lines | Style::Json => Duration::from_secs(10),
        };
        let (mut began, mut shown) = (Instant::now(), Instant::now());
        let mut news = |news: TokenizeNews<'_>| match news {
            TokenizeNews::Begins(what) => {
                (began, shown) = (Instant::now(), Instant::now());
                progress.busy(what);
            }
            TokenizeNews::Warning(message) => progress.say(&format!("warning: {message}")),
            TokenizeNews::Tokens { .. } if shown.elapsed() < every => {}
            TokenizeNews::Tokens {
                tokens,
                files,
                of_files,
            } => {
                shown = Instant::now();
                let tokens = tokens as f64;
                let speed = tokens / began.elapsed().as_secs_f64().max(1e-9);
                progress.busy(&format!(
                    "{} tokens, {files} of {of_files} files, {} tokens/s",
                    count(tokens),
                    count(speed)
                ));
            }
        };
        let cache = Cache::find()?;
        if let Some(warning) = &cache.warning {
            progress.say(&format!("warning: {warning}"));
        }
        let written = host_train::tokenize(&config, &self.output, cache.folder(), &mut news);
        progress.end();
        self.show(&written?)
    }

    fn show(&self, files: &[TokenFile]) -> Result<()> {
        if self.json {
            let file = |file: &TokenFile| json!({ "path": file.path, "tokens": file.tokens, "vocab_size": file.vocab_size });
            return print_json(&files.iter().map(file).collect());
        }
        let mut table = Table::new([
            ("file", Align::Left),
            ("tokens", Align::Right),
            ("vocabulary", Align::Right),
            ("size", Align::Right),
        ]);
        for file in files {
            let size = std::fs::metadata(&file.path).map_or(0, |metadata| metadata.len());
            table.row([
                file.path.display().to_string(),
                count(file.tokens as f64),
                file.vocab_size.to_string(),
                bytes(size),
            ]);
        }
        print(&table.render())
    }
}
