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

/// Prepares training data
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  host data tokenize --data ~/src --extensions rs --output tokens"
)]
pub(crate) struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Tokenize(Tokenize),
}

const EXAMPLES: &str = "\
`host run` can tokenize text while it trains. Token files save that work when many runs or \
processes use the same data: they are mapped into memory, with two bytes per token, or four if the \
vocabulary has more than 65536 tokens.

If --output ends in .tokens, it is one file of all the data. Otherwise it is a folder for \
train.tokens, valid.tokens and the tokenizer. The training documents are in the order in which the \
first epoch of a run with the same seed reads them, so token files give the same batches as the \
text. Unusable documents are left out and counted. A file gets its final name once it is complete.

Example:
  host data tokenize --data ~/src --extensions rs --vocab-size 8192 --output tokens
  host run --data tokens/train.tokens --valid-data tokens/valid.tokens --model demo --seq-length 256";

/// Writes data as token files, with an existing tokenizer or a newly trained BPE tokenizer
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct Tokenize {
    /// Folder, file or quoted pattern ('src/**/*.rs') to tokenize: text, JSON lines (.jsonl) or Parquet;
    /// repeat for more. Text and JSON lines can be compressed (.gz, .zst); links below a folder are
    /// followed, and each file is read once
    #[arg(long, value_name = "PATH", required = true, help_heading = "Data")]
    data: Vec<PathBuf>,

    /// Folder, file or quoted pattern to evaluate on, like --data [default: a part of the data is held
    /// out, see --valid-every]
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    valid_data: Vec<PathBuf>,

    /// Folder for train.tokens, valid.tokens and tokenizer.json; or NAME.tokens, one file for all data
    #[arg(long, value_name = "PATH")]
    output: PathBuf,

    /// A tokenizer.json, a GPT-2 vocab.json with merges.txt next to it, or a folder with either
    /// [default: a tokenizer trained on the data]
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "vocab_size",
        help_heading = "Tokenizer"
    )]
    tokenizer: Option<PathBuf>,

    /// Token between documents [default: from the tokenizer's configuration]
    #[arg(
        long,
        value_name = "TOKEN",
        requires = "tokenizer",
        help_heading = "Tokenizer"
    )]
    end_of_text: Option<String>,

    /// Vocabulary size of a tokenizer trained on the data
    #[arg(long, value_name = "TOKENS", default_value_t = VOCAB_SIZE, value_parser = clap::value_parser!(i64).range(257..), help_heading = "Tokenizer")]
    vocab_size: i64,

    /// Treat names of special tokens in the data, such as <|endoftext|>, as plain text
    #[arg(long, help_heading = "Tokenizer")]
    split_special_tokens: bool,

    /// Extensions of the files to read in a folder (rs,py) [default: all files]
    #[arg(
        long,
        value_name = "EXT,…",
        value_delimiter = ',',
        help_heading = "Data"
    )]
    extensions: Vec<String>,

    /// Exclude files and folders by name ('*.min.js', node_modules), or by path below a data folder if
    /// the pattern contains a slash ('docs/**'); repeat for more
    #[arg(long, value_name = "PATTERN", help_heading = "Data")]
    exclude: Vec<String>,

    /// JSON field or Parquet column that contains the text
    #[arg(long, value_name = "NAME", default_value_t = TrainConfig::default().text_column, help_heading = "Data")]
    text_column: String,

    /// Hold out one in this many files for evaluation, chosen by name. If there is only one file, hold
    /// out one in this many of its records, or the end of its text
    #[arg(long, value_name = "FILES", default_value_t = TrainConfig::default().valid_every, value_parser = clap::value_parser!(u64).range(2..), help_heading = "Data")]
    valid_every: u64,

    /// Seed for the order of the training files
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = TrainConfig::default().seed)]
    seed: i64,

    /// Threads that tokenize [default: one per core, at most 16]
    #[arg(long, value_name = "THREADS", value_parser = clap::value_parser!(u64).range(1..))]
    data_workers: Option<u64>,

    /// Print a list of the written files as JSON
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
