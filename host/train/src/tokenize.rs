//! Token files of a corpus: what `host data tokenize` does.

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
    /// Where it is.
    pub path: PathBuf,
    /// The ids in it, end-of-text tokens included.
    pub tokens: u64,
    /// Its tokenizer's vocabulary.
    pub vocab_size: u32,
}

/// What somebody who waits for token files is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizeNews<'a> {
    /// What begins, in half a sentence.
    Begins(&'a str),
    /// How far the file is.
    Tokens {
        /// Ids written.
        tokens: u64,
        /// Source files read.
        files: usize,
        /// Source files that there are.
        of_files: usize,
    },
    /// How many documents were left out and why, or what else to warn of, in a sentence.
    Warning(&'a str),
}

/// Writes `data` as token files, by the data's own settings in `config`, its tokenizer and its seed.
///
/// An `output` that ends in `.tokens` is one file of all `data`. Any other is a folder that receives
/// `train.tokens`, and `valid.tokens` of `valid_data` or what is held out. `tokenizer.json` is written
/// beside them first. The training documents stand in the order in which a training's first epoch would
/// meet them. Each file appears under its name when it is whole, or not at all.
///
/// # Errors
/// Data or a tokenizer that cannot be used, or a file that cannot be written.
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
            let message = format!("the data is tokenized already: {}", file.path.display());
            return Err(Error::new(ErrorKind::Config, message)
                .hint("give the text that it was made from, or train on it as it is"));
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
    fs::create_dir_all(folder).map_err(|error| Error::io("make the folder", folder, &error))?;
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

/// Tokens in a vocabulary that is trained here when nothing is said: CodeParrot's.
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

/// Writes a file beside its place and moves it there when it is whole and on the disk.
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
