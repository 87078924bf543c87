//! Trains the vocabulary of a byte-level BPE on a sample of the data. The memory usage does not grow with the
//! size of the text.
//!
//! Only the distinct words of the text are kept, with their counts. When the words exceed [`WORDS`] bytes,
//! the rarest are dropped until at most half of this size is left. A text without repetition therefore uses
//! no more memory than any other text. The training itself needs about a hundred times as much memory as
//! these words.

use std::fs;
use std::path::Path;
use std::thread;

use ahash::AHashMap;
use compact_str::CompactString;
use host_core::{Error, ErrorKind, Result, hex};
use sha2::{Digest, Sha256};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, TokenizerBuilder,
};

use crate::data::{Compression, Content, Format, Reader, SourceFile};
use crate::tokenizer::{END_OF_TEXT, Tokenizer};

/// Approximate bytes of text to train a vocabulary on. More text takes longer and changes little.
const TEXT: u64 = 256 << 20;
/// Minimum bytes to read from a file when the text is sampled. It is not worth opening a file for fewer
/// bytes.
const PIECE: u64 = 64 << 10;
/// Maximum total bytes of the distinct words.
const WORDS: usize = 16 << 20;
/// Bytes of text to split into words at once.
const BATCH: usize = 8 << 20;
/// Maximum threads that split text into words.
const THREADS: usize = 8;

impl Tokenizer {
    /// Trains a vocabulary of `vocab_size` on the files. If `cache` already contains the vocabulary for the
    /// same size and text, returns it without training.
    ///
    /// # Errors
    /// Returns an error if training fails. If the cache cannot be written, the tokenizer contains a warning,
    /// and there is no error.
    pub(crate) fn train(
        files: &[SourceFile],
        vocab_size: i64,
        cache: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let sample = Sample::of(files);
        let mut hash = Sha256::new();
        hash.update(format!("byte-level BPE {vocab_size}\0"));
        sample.each(&mut |text| {
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        });
        let folder = cache.join("tokenizers");
        let file = folder.join(format!("{}.json", &hex(&hash.finalize())[..32]));
        // An unreadable cache entry is created again.
        if file.is_file()
            && let Ok(known) = Self::read(&file, None)
        {
            return Ok(known);
        }
        say("training a tokenizer");
        let text = train(&sample, vocab_size, END_OF_TEXT)?;
        // Another run can do the same concurrently. Each run therefore writes its own temporary file, and
        // renames it.
        let partial = folder.join(format!(".{}.partial", std::process::id()));
        let kept = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&partial, &text))
            .and_then(|()| fs::rename(&partial, &file));
        let mut trained =
            Self::from_json(text, None, None).map_err(|why| Self::unusable(&why, &file))?;
        if let Err(error) = kept {
            let _ = fs::remove_file(&partial);
            let folder = folder.display();
            trained = trained.with_warning(format!(
                "the tokenizer is not kept for the next run, because the cache cannot be written: {error}: {folder}"
            ));
        }
        Ok(trained)
    }
}

/// The text to train a vocabulary on. It consists of a part of each file or, if there are too many files, of
/// a part of some files. Each pass reads the files again.
pub(crate) struct Sample<'a> {
    /// Bytes to use of each file.
    shares: Vec<(&'a SourceFile, u64)>,
}

impl<'a> Sample<'a> {
    /// Samples up to `TEXT` bytes. At most half of these bytes come from plain text files, or all bytes if
    /// there are no other files. If the plain text files are larger than that, uses only their beginnings, in
    /// proportion to their sizes. The other files are compressed files and files of records. They share the
    /// remaining bytes equally, because the amount of text in them is unknown until they are read.
    pub(crate) fn of(files: &'a [SourceFile]) -> Self {
        Self::up_to(TEXT, files)
    }

    fn up_to(text: u64, files: &'a [SourceFile]) -> Self {
        let (plain, others): (Vec<_>, Vec<_>) = files
            .iter()
            .partition(|file| file.format == Format::Text(Compression::None));
        let total: u64 = plain.iter().map(|file| file.bytes).sum();
        let room = if others.is_empty() { text } else { text / 2 };
        let mut shares = Vec::new();
        let mut taken = 0;
        if total <= room {
            shares.extend(plain.iter().map(|file| (*file, file.bytes)));
            taken = total;
        } else {
            let mut seen: u128 = 0;
            for file in plain {
                seen += u128::from(file.bytes);
                // The number of bytes to take from this file and the previous files together. It is
                // proportional to their total size.
                let due = (seen * u128::from(room) / u128::from(total)) as u64;
                let share = (due - taken).min(file.bytes);
                if share >= PIECE.min(file.bytes).min(room) {
                    shares.push((file, share));
                    taken += share;
                }
            }
        }
        let count = others.len().max(1) as u64;
        let share = (text - taken) / count;
        let every = PIECE.div_ceil(share.max(1)).min(count) as usize;
        let every = if share < PIECE { every } else { 1 };
        let share = share.saturating_mul(every as u64);
        shares.extend(others.into_iter().step_by(every).map(|file| (file, share)));
        Self { shares }
    }

    /// Calls `see` with each piece of text, which is at most one passage long. Skips unusable documents, as
    /// training does.
    pub(crate) fn each(&self, see: &mut dyn FnMut(String)) {
        for (file, share) in &self.shares {
            let Ok(mut reader) = Reader::open(file) else {
                continue;
            };
            let mut taken = 0;
            while taken < *share
                && let Some(next) = reader.next()
            {
                if let Ok(passage) = next
                    && let Content::Text(text) = passage.content
                {
                    taken += text.len() as u64;
                    see(text);
                }
            }
        }
    }
}

/// Trains a vocabulary of this size and returns its `tokenizer.json`.
///
/// # Errors
/// Returns an error if the library fails.
pub(crate) fn train(sample: &Sample<'_>, vocab_size: i64, end_of_text: &str) -> Result<String> {
    train_within(sample, vocab_size, end_of_text, WORDS)
}

/// Like [`train`], with at most `limit` bytes of distinct words.
pub(crate) fn train_within(
    sample: &Sample<'_>,
    vocab_size: i64,
    end_of_text: &str,
    limit: usize,
) -> Result<String> {
    let failed = |why: &dyn std::fmt::Display| {
        let message = format!("training the tokenizer failed: {why}");
        Error::new(ErrorKind::System, message)
    };
    let byte_level = ByteLevel::new(false, true, true);
    let words = Words::of(sample, byte_level, limit).map_err(|error| failed(&error))?;
    let trainer = BpeTrainer::builder()
        .vocab_size(usize::try_from(vocab_size).unwrap_or(0))
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(end_of_text, true)])
        .build();
    let mut model = BPE::default();
    let special_tokens = trainer
        .do_train(&words.counts, &mut model)
        .map_err(|error| failed(&error))?;
    drop(words);
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        tokenizers::NormalizerWrapper,
        ByteLevel,
        ByteLevel,
        ByteLevel,
    >::new()
    .with_model(model)
    .with_pre_tokenizer(Some(byte_level))
    .with_post_processor(Some(ByteLevel::new(false, false, true)))
    .with_decoder(Some(byte_level))
    .build()
    .map_err(|error| failed(&error))?;
    tokenizer
        .add_special_tokens(special_tokens)
        .map_err(|error| failed(&error))?;
    tokenizer.to_string(true).map_err(|error| failed(&error))
}

type Counts = AHashMap<CompactString, u64>;

/// How often each word occurs.
#[derive(Default)]
struct Words {
    counts: Counts,
    /// Total bytes of the words, each counted once.
    bytes: usize,
}

impl Words {
    /// Counts the words of the sample. The result does not depend on the number of threads.
    fn of(sample: &Sample<'_>, byte_level: ByteLevel, limit: usize) -> tokenizers::Result<Self> {
        let mut words = Self::default();
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut outcome = Ok(());
        let mut count = |batch: &mut Vec<String>| {
            if outcome.is_ok() {
                outcome = words.count(batch, byte_level, limit);
            }
            batch.clear();
        };
        sample.each(&mut |text| {
            bytes += text.len();
            batch.push(text);
            if bytes > BATCH {
                count(&mut batch);
                bytes = 0;
            }
        });
        count(&mut batch);
        outcome?;
        Ok(words)
    }

    fn count(
        &mut self,
        batch: &[String],
        byte_level: ByteLevel,
        limit: usize,
    ) -> tokenizers::Result<()> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let part = batch.len().div_ceil(threads.min(THREADS)).max(1);
        let parts: Vec<tokenizers::Result<Counts>> = thread::scope(|scope| {
            let threads: Vec<_> = batch
                .chunks(part)
                .map(|texts| scope.spawn(move || counts(texts, byte_level)))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err("a text could not be split into words".into()))
            };
            threads.into_iter().map(join).collect()
        });
        for part in parts {
            for (word, count) in part? {
                let length = word.len();
                let known = self.counts.entry(word).or_insert_with(|| {
                    self.bytes += length;
                    0
                });
                *known += count;
            }
        }
        if self.bytes > limit {
            self.forget(limit / 2);
        }
        Ok(())
    }

    /// Drops the rarest words until the remaining words have at most `bytes` bytes in total.
    fn forget(&mut self, bytes: usize) {
        let mut words: Vec<(u64, CompactString)> = self
            .counts
            .drain()
            .map(|(word, count)| (count, word))
            .collect();
        // Equal counts are ordered by word, so the result does not depend on the map's order.
        words.sort_unstable_by(|a, b| b.cmp(a));
        self.bytes = 0;
        for (count, word) in words {
            if self.bytes + word.len() <= bytes {
                self.bytes += word.len();
                self.counts.insert(word, count);
            }
        }
        self.counts.shrink_to_fit();
    }
}

fn counts(texts: &[String], byte_level: ByteLevel) -> tokenizers::Result<Counts> {
    let mut counts = Counts::new();
    for text in texts {
        let mut words = PreTokenizedString::from(text.as_str());
        byte_level.pre_tokenize(&mut words)?;
        for (word, ..) in words.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            *counts.entry(CompactString::from(word)).or_default() += 1;
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainConfig;
    use crate::data::find;
    use std::path::Path;

    fn files(folder: &Path) -> Vec<SourceFile> {
        let config = TrainConfig::default();
        find("data", &[folder.to_owned()], &config)
            .expect("found")
            .files
    }

    fn texts(sample: &Sample<'_>) -> Vec<String> {
        let mut texts = Vec::new();
        sample.each(&mut |text| texts.push(text));
        texts
    }

    #[test]
    fn the_vocabulary_equals_the_librarys_on_the_whole_text() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = include_str!("vocabulary.rs");
        for n in 0..3 {
            let name = folder.path().join(format!("{n}.rs"));
            std::fs::write(name, text.repeat(n + 1)).expect("written");
        }
        let files = files(folder.path());
        let ours = train(&Sample::of(&files), 700, "<|endoftext|>").expect("trained");
        let ours: tokenizers::Tokenizer = ours.parse().expect("a tokenizer");
        let mut trainer = BpeTrainer::builder()
            .vocab_size(700)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from("<|endoftext|>", true)])
            .build();
        let mut theirs = TokenizerBuilder::<
            BPE,
            tokenizers::NormalizerWrapper,
            ByteLevel,
            ByteLevel,
            ByteLevel,
        >::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .build()
        .expect("a tokenizer");
        theirs
            .train(&mut trainer, [text.repeat(6)].iter())
            .expect("trained");
        assert_eq!(ours.get_vocab(true), theirs.get_vocab(true));
        assert_eq!(ours.get_vocab_size(true), 700);
    }

    #[test]
    fn a_text_larger_than_the_sample_is_cut_between_characters() {
        let folder = tempfile::tempdir().expect("a folder");
        // Each character has three bytes, so most cuts at a fixed byte offset would split a character.
        let text = "日本語".repeat(100_000);
        std::fs::write(folder.path().join("a.txt"), &text).expect("written");
        let files = files(folder.path());
        for room in [300_000, 300_001, 300_002] {
            let texts = texts(&Sample::up_to(room, &files));
            let bytes: usize = texts.iter().map(String::len).sum();
            assert!(bytes as u64 >= room && (bytes as u64) < room + (1 << 18));
            assert!(text.starts_with(&texts.concat()));
        }
    }

    #[test]
    fn a_large_file_is_sampled_whichever_files_precede_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |name: &str, bytes: usize| {
            let line = format!("{name}\n");
            let text = line.repeat(bytes / line.len() + 1);
            std::fs::write(folder.path().join(name), &text[..bytes]).expect("written");
        };
        put("a.txt", 10);
        put("b.txt", 3 << 20);
        for n in 0..100 {
            put(&format!("c{n:02}.txt"), 10_000);
        }
        let files = files(folder.path());
        let sample = Sample::up_to(1 << 20, &files);
        let share = |part: &str| {
            let of_part = sample
                .shares
                .iter()
                .filter(|(file, _)| file.name.starts_with(part));
            of_part.map(|(_, share)| share).sum::<u64>()
        };
        // The shares are proportional to the sizes: three quarters of a mebibyte for `b`, and the rest for
        // the `c` files.
        assert!((700_000..=800_000).contains(&share("b")), "{}", share("b"));
        assert!((200_000..=300_000).contains(&share("c")), "{}", share("c"));
        let opened = sample
            .shares
            .iter()
            .filter(|(file, _)| file.name.starts_with('c'));
        assert!(opened.count() < 40, "whole files, but not all of them");
    }

    #[test]
    fn records_are_sampled_next_to_much_plain_text() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a.txt"), "a\n".repeat(1 << 20)).expect("written");
        let line = format!("{}\n", serde_json::json!({ "content": "b".repeat(999) }));
        std::fs::write(folder.path().join("b.jsonl"), line.repeat(1000)).expect("written");
        let files = files(folder.path());
        let texts = texts(&Sample::up_to(1 << 20, &files));
        let of = |letter: char| {
            let texts = texts.iter().filter(|text| text.contains(letter));
            texts.map(String::len).sum::<usize>()
        };
        assert!(of('a') >= 1 << 19 && of('b') >= 1 << 19);
    }

    #[test]
    fn words_stay_within_the_limit_and_frequent_ones_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).expect("written");
        };
        let mut rare = String::new();
        for n in 0..40_000_u32 {
            // Only letters are used, so that each string is a single word.
            let letters: String = n
                .to_string()
                .bytes()
                .map(|c| char::from(c - b'0' + b'a'))
                .collect();
            rare += &format!(" rare{letters}");
            if n % 4 == 0 {
                rare += " frequent";
            }
        }
        put("a.txt", rare);
        let files = files(folder.path());
        let byte_level = ByteLevel::new(false, true, true);
        let limit = 100_000;
        let words = Words::of(&Sample::of(&files), byte_level, limit).expect("counted");
        assert!(words.bytes <= limit && words.bytes > limit / 4);
        let bytes: usize = words.counts.keys().map(CompactString::len).sum();
        assert_eq!(bytes, words.bytes);
        assert_eq!(words.counts[&CompactString::from("Ġfrequent")], 10_000);
    }
}
