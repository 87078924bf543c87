//! Writes a corpus as token files, for `host data tokenize`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use host_core::{Error, ErrorKind, Result};

use crate::TrainConfig;
use crate::data::{
    Corpus, Format, Found, LeftOut, Order, PassageId, SourceFile, Stream, TokenHeader, TokenWriter,
    Workers, find,
};
use crate::tokenizer::Tokenizer;

/// A token file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile {
    /// The file's path.
    pub path: PathBuf,
    /// Number of ids in the file, including end-of-text tokens.
    pub tokens: u64,
    /// Size of the tokenizer's vocabulary.
    pub vocab_size: u32,
}

/// Progress of [`tokenize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizeNews<'a> {
    /// A stage begins. The text is a phrase such as `training a tokenizer`.
    Begins(&'a str),
    /// Progress of the current file.
    Tokens {
        /// Number of ids written.
        tokens: u64,
        /// Number of source files read.
        files: usize,
        /// Total number of source files.
        of_files: usize,
    },
    /// A warning as a sentence. For example, the sentence states how many documents were skipped, and why.
    Warning(&'a str),
}

/// Writes `data` as token files, using the data settings, the tokenizer and the seed in `config`.
///
/// If `output` ends in `.tokens`, it becomes one file with all of `data`. Otherwise it becomes a folder with
/// `train.tokens` and `valid.tokens`. `valid.tokens` contains `valid_data` or the held-out data. First, the
/// tokenizer's files are written to the folder of the token files. Training documents are in the order in
/// which the first epoch of a run reads them. A file appears under its final name only when it is complete.
///
/// # Errors
/// Returns an error if the data or the tokenizer cannot be used, or a file cannot be written.
pub fn tokenize(
    config: &TrainConfig,
    output: &Path,
    cache: &Path,
    news: &mut dyn FnMut(TokenizeNews<'_>),
) -> Result<Vec<TokenFile>> {
    let one_file = output
        .extension()
        .is_some_and(|extension| extension == "tokens");
    let (folder, parts) = if one_file {
        let folder = output.parent().unwrap_or(Path::new("."));
        let Found { files, notices } = find("data", &config.data, config)?;
        for notice in &notices {
            news(TokenizeNews::Warning(notice));
        }
        let all: Arc<[SourceFile]> = files.into();
        (
            folder,
            vec![("data", output.to_owned(), all, Order::Shuffled(config.seed))],
        )
    } else {
        let corpus = Corpus::find(config)?;
        for notice in &corpus.notices {
            news(TokenizeNews::Warning(notice));
        }
        let train = corpus.train_files();
        let order = Order::Shuffled(config.seed);
        let parts = vec![
            ("training data", output.join("train.tokens"), train, order),
            (
                "evaluation data",
                output.join("valid.tokens"),
                corpus.valid,
                Order::Once,
            ),
        ];
        (output, parts)
    };
    for (_, _, files, _) in &parts {
        if let Some(file) = files.iter().find(|file| file.format == Format::Tokens) {
            let message = format!("the data is already tokenized: {}", file.path.display());
            return Err(Error::new(ErrorKind::Config, message)
                .hint("use the original text, or train on the token file directly"));
        }
    }
    let tokenizer = match &config.tokenizer {
        Some(path) => Tokenizer::read(path, config.end_of_text.as_deref())?,
        None => {
            let vocab_size = config.vocab_size.unwrap_or(VOCAB_SIZE);
            Tokenizer::train(&parts[0].2, vocab_size, cache, &mut |what| {
                news(TokenizeNews::Begins(what));
            })?
        }
    };
    if let Some(warning) = tokenizer.warning() {
        news(TokenizeNews::Warning(warning));
    }
    let tokenizer = Arc::new(tokenizer.splitting_special_tokens(config.split_special_tokens));
    let count = config
        .data_workers
        .unwrap_or_else(|| 2 * Workers::default_count());
    let workers = Arc::new(Workers::start(&tokenizer, count)?);
    fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, &error))?;
    for (name, content) in tokenizer.files() {
        write_whole(&folder.join(name), |file| {
            file.write_all(content.as_bytes())
        })?;
    }
    let header = TokenHeader::new(
        u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX),
        tokenizer.end_of_text(),
        tokenizer.sha256(),
    );
    parts
        .into_iter()
        .map(|(what, path, files, order)| {
            news(TokenizeNews::Begins(&format!("tokenizing the {what}")));
            let left_out = Arc::new(LeftOut::default());
            let place = PassageId::default();
            let stream = Stream::new(
                0,
                files.clone(),
                workers.clone(),
                left_out.clone(),
                order,
                place,
            );
            let header = write_tokens(&path, stream, header, files.len(), news)?;
            if let Some(message) = left_out.message(what) {
                news(TokenizeNews::Warning(&message));
            }
            Ok(TokenFile {
                path,
                tokens: header.count,
                vocab_size: header.vocab_size,
            })
        })
        .collect()
}

/// Default size of a newly trained vocabulary, as in CodeParrot.
pub const VOCAB_SIZE: i64 = 32_768;

fn write_tokens(
    path: &Path,
    mut stream: Stream,
    header: TokenHeader,
    of_files: usize,
    news: &mut dyn FnMut(TokenizeNews<'_>),
) -> Result<TokenHeader> {
    let mut failed = Ok(());
    let mut written = header;
    write_whole(path, |file| {
        let mut writer = TokenWriter::new(file, header)?;
        let mut tokens = 0;
        loop {
            match stream.next() {
                Ok(Some(passage)) => {
                    writer.write(&passage.tokens)?;
                    tokens += passage.tokens.len() as u64;
                    news(TokenizeNews::Tokens {
                        tokens,
                        files: passage.place.file,
                        of_files,
                    });
                }
                Ok(None) => break,
                Err(error) => {
                    failed = Err(error);
                    return Err(io::ErrorKind::Other.into());
                }
            }
        }
        written = writer.finish()?.1;
        Ok(())
    })
    .or_else(|error| failed.and(Err(error)))?;
    Ok(written)
}

/// Writes a file under a temporary name, and renames it when it is complete and synced.
fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let written = File::create(&partial).and_then(|mut file| {
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&partial);
        Error::io("write the file", path, &error)
    })
}
