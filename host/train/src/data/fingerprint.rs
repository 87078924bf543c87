use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use host_core::{Error, ErrorKind, Result, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::corpus::Corpus;
use super::files::{Part, SourceFile};
use crate::ranks::Facts;

/// Identifies a run's data by the names, sizes and contents of its files. Stored in checkpoints. If the files
/// have more than 256 MiB in total, only samples of their contents are used. The samples are distributed
/// evenly over all files and within each file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    /// Names and sizes of the training files, hashed.
    data_sha256: String,
    /// [`DIGITS`] digits for each training file. Empty in checkpoints that were written before this field
    /// existed.
    #[serde(default)]
    data_files: String,
    /// The same for the evaluation files.
    #[serde(default)]
    valid_files: String,
}

/// Number of hexadecimal digits for a name, a size or a content hash.
const PART: usize = 8;
/// Number of hexadecimal digits for a file, which has three parts: name, size and content hash.
const DIGITS: usize = 3 * PART;
/// Bytes to read from all files together.
const SAMPLE: u64 = 256 << 20;
/// Bytes to read at each sampled place.
const BLOCK: u64 = 4 << 10;

impl Fingerprint {
    pub(crate) fn of(corpus: &Corpus) -> Self {
        let train = corpus.train_files();
        let mut hash = Sha256::new();
        for file in train.iter() {
            hash.update(file.name.as_bytes());
            hash.update([0]);
            hash.update(file.bytes.to_le_bytes());
        }
        Self {
            data_sha256: hex(&hash.finalize()),
            data_files: digits(&train, SAMPLE),
            valid_files: digits(&corpus.valid, SAMPLE),
        }
    }

    /// Returns the number of files and a hash of the data, for the comparison of ranks.
    pub(crate) fn facts(&self) -> Facts {
        let value = |files: &str, names: &str| {
            let hash = hex(&Sha256::new()
                .chain_update(names)
                .chain_update(files)
                .finalize());
            let count = files.len() / DIGITS;
            serde_json::Value::from(format!("{count} files with the hash {}", &hash[..12]))
        };
        Facts::from([
            (
                "the training data".to_owned(),
                value(&self.data_files, &self.data_sha256),
            ),
            (
                "the evaluation data".to_owned(),
                value(&self.valid_files, ""),
            ),
        ])
    }

    /// Compares this data with the data of a checkpoint.
    ///
    /// # Errors
    /// Returns an error that names the first file that differs.
    pub(crate) fn check(&self, then: &Self, corpus: &Corpus) -> Result<()> {
        let refused = |what: &str, why: &str| {
            let message =
                format!("the {what} data has changed since the checkpoint was written{why}");
            Err(Error::new(ErrorKind::Config, message).hint(
                "restore the files, or start a new run with --model set to the checkpoint's folder",
            ))
        };
        if then.data_files.is_empty() {
            return if self.data_sha256 == then.data_sha256 {
                Ok(())
            } else {
                refused("training", "")
            };
        }
        let train = corpus.train_files();
        if let Some(why) = difference(&self.data_files, &then.data_files, &train) {
            return refused("training", &why);
        }
        match difference(&self.valid_files, &then.valid_files, &corpus.valid) {
            Some(why) => refused("evaluation", &why),
            None => Ok(()),
        }
    }
}

/// Returns the digits for all files. Reads about `sample` bytes of their contents in total, or everything if
/// they have fewer bytes.
fn digits(files: &[SourceFile], sample: u64) -> String {
    let total: u64 = files.iter().map(|file| file.bytes).sum();
    let mut digits = String::with_capacity(files.len() * DIGITS);
    for file in files {
        let name = match file.part {
            Part::All => file.name.clone(),
            part => format!("{} {part:?}", file.name),
        };
        let share = if total <= sample {
            file.bytes
        } else {
            (u128::from(file.bytes) * u128::from(sample) / u128::from(total)) as u64
        };
        // An unreadable file is not an error here: the run will leave it out.
        let content = content(file, share).unwrap_or_default();
        for part in [name.as_bytes(), &file.bytes.to_le_bytes(), &content] {
            digits += &hex(&Sha256::digest(part))[..PART];
        }
    }
    digits
}

/// Hashes about `share` bytes of the file. Reads them in blocks at equal distances. The blocks include the
/// file's beginning and its end.
fn content(file: &SourceFile, share: u64) -> io::Result<Vec<u8>> {
    let open = File::open(&file.path)?;
    let (mut at, step, block) = if share >= file.bytes {
        (0, 64 * BLOCK, 64 * BLOCK)
    } else {
        let last = file.bytes.saturating_sub(BLOCK);
        (0, last / ((share / BLOCK).max(2) - 1), BLOCK)
    };
    let mut hash = Sha256::new();
    let mut bytes = vec![0; block as usize];
    while at < file.bytes {
        let length = block.min(file.bytes - at) as usize;
        open.read_exact_at(&mut bytes[..length], at)?;
        hash.update(&bytes[..length]);
        at += step.max(1);
    }
    let tail = BLOCK.min(file.bytes);
    let length = tail as usize;
    open.read_exact_at(&mut bytes[..length], file.bytes - tail)?;
    hash.update(&bytes[..length]);
    Ok(hash.finalize().to_vec())
}

/// Describes the first file that differs; `None` if all are the same.
fn difference(now: &str, then: &str, files: &[SourceFile]) -> Option<String> {
    if now == then {
        return None;
    }
    let parts = |digits: &str| -> Vec<(String, String, String)> {
        let part = |file: &[u8], n: usize| {
            let part = file.get(n * PART..(n + 1) * PART).unwrap_or_default();
            String::from_utf8_lossy(part).into_owned()
        };
        let files = digits.as_bytes().chunks(DIGITS);
        files
            .map(|file| (part(file, 0), part(file, 1), part(file, 2)))
            .collect()
    };
    let (now, then) = (parts(now), parts(then));
    // Files in different folders can have the same name. Such files are compared in their order.
    let mut known: HashMap<&str, Vec<&(String, String, String)>> = HashMap::new();
    for file in then.iter().rev() {
        known.entry(&file.0).or_default().push(file);
    }
    let mut sizes = None;
    let mut contents = None;
    let mut new = None;
    for (file, now) in files.iter().zip(&now) {
        match known.get_mut(now.0.as_str()).and_then(Vec::pop) {
            None => new = new.or(Some(file)),
            Some(then) if then.1 != now.1 => sizes = sizes.or(Some(file)),
            Some(then) if then.2 != now.2 => contents = contents.or(Some(file)),
            Some(_) => {}
        }
    }
    let gone: usize = known.values().map(Vec::len).sum();
    let at = |file: &SourceFile| file.path.display().to_string();
    Some(match (sizes, new, gone, contents) {
        // If the size of one file differs, the sampled blocks of every file can differ, so the content hashes
        // cannot be compared.
        (Some(file), ..) => format!(": a file has a different size: {}", at(file)),
        (None, Some(file), 0, _) => format!(": a file is new: {}", at(file)),
        (None, Some(file), gone, _) => {
            let files = if gone == 1 { "a file is" } else { "files are" };
            format!(": {files} missing, and a file is new: {}", at(file))
        }
        (None, None, 1.., _) => format!(": missing files: {gone} of {}", then.len()),
        (None, None, 0, Some(file)) => format!(": a file has different content: {}", at(file)),
        (None, None, 0, None) => ": its files are in a different order".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainConfig;
    use std::fs;
    use std::path::Path;

    fn corpus(folder: &Path) -> Corpus {
        let config = TrainConfig {
            data: vec![folder.join("data")],
            valid_data: vec![folder.join("valid")],
            ..TrainConfig::default()
        };
        Corpus::find(&config).expect("found")
    }

    #[test]
    fn a_changed_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(&path, text).expect("written");
        };
        let good = [
            ("data/a.rs", "aaaa"),
            ("data/b.rs", "bbbb"),
            ("valid/c.rs", "cccc"),
        ];
        for (name, text) in good {
            put(name, text);
        }
        let then = Fingerprint::of(&corpus(folder.path()));
        let said = || {
            let corpus = corpus(folder.path());
            let error = Fingerprint::of(&corpus).check(&then, &corpus).err()?;
            let home = format!("{}/", folder.path().display());
            let message = error.message().replace(&home, "");
            Some(message.replace(" data has changed since the checkpoint was written", ""))
        };
        assert_eq!(said(), None);
        put("data/b.rs", "bbBb");
        assert_eq!(
            said().as_deref(),
            Some("the training: a file has different content: data/b.rs")
        );
        put("data/b.rs", "bbb");
        assert_eq!(
            said().as_deref(),
            Some("the training: a file has a different size: data/b.rs")
        );
        put("data/b.rs", "bbbb");
        put("data/ab.rs", "new");
        assert_eq!(
            said().as_deref(),
            Some("the training: a file is new: data/ab.rs")
        );
        fs::remove_file(folder.path().join("data/b.rs")).expect("removed");
        assert_eq!(
            said().as_deref(),
            Some("the training: a file is missing, and a file is new: data/ab.rs")
        );
        fs::remove_file(folder.path().join("data/ab.rs")).expect("removed");
        assert_eq!(
            said().as_deref(),
            Some("the training: missing files: 1 of 2")
        );
        put("data/b.rs", "bbbb");
        put("valid/c.rs", "cccC");
        assert_eq!(
            said().as_deref(),
            Some("the evaluation: a file has different content: valid/c.rs")
        );
        put("valid/c.rs", "cccc");
        assert_eq!(said(), None);
        // The folder can be moved without an error.
        let moved = tempfile::tempdir().expect("a folder");
        for name in ["data", "valid"] {
            fs::rename(folder.path().join(name), moved.path().join(name)).expect("moved");
        }
        let corpus = corpus(moved.path());
        assert!(Fingerprint::of(&corpus).check(&then, &corpus).is_ok());
        // An older checkpoint has only names and sizes.
        let older = Fingerprint {
            data_sha256: then.data_sha256.clone(),
            ..Fingerprint::default()
        };
        assert!(Fingerprint::of(&corpus).check(&older, &corpus).is_ok());
        fs::write(moved.path().join("data/a.rs"), "aaa").expect("written");
        let corpus = self::corpus(moved.path());
        assert!(Fingerprint::of(&corpus).check(&older, &corpus).is_err());
    }

    #[test]
    fn a_sample_has_the_first_and_the_last_block_and_no_more_than_its_share() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("data")).expect("made");
        fs::write(folder.path().join("valid"), "valid").expect("written");
        let path = folder.path().join("data/a.rs");
        let text = vec![b'a'; 1 << 20];
        fs::write(&path, &text).expect("written");
        let digits = |sample| digits(&corpus(folder.path()).train_files(), sample);
        let (all, some) = (digits(1 << 20), digits(64 << 10));
        let mut seen = 0;
        for at in (0..text.len())
            .step_by(BLOCK as usize)
            .chain([text.len() - 1])
        {
            let mut other = text.clone();
            other[at] = b'b';
            fs::write(&path, &other).expect("written");
            assert_ne!(digits(1 << 20), all);
            let is_seen = digits(64 << 10) != some;
            seen += usize::from(is_seen);
            if at == 0 || at == text.len() - 1 {
                assert!(is_seen, "{at}");
            }
        }
        assert!((10..=34).contains(&seen), "{seen}");
    }
}
