//! Entry points for the fuzzer (`tests/fuzz`): readers of untrusted files. Compiled only for fuzzing.

use std::path::Path;

use host_core::Result;

use crate::checkpoint::{Stored, remove};
use crate::data::{Content, Reader, find};
use crate::model::ModelSource;
use crate::tokenizer::Tokenizer;
use crate::{TrainConfig, weights};

/// Reads everything that a resume and a model loader read from a folder. Returns the error of each reader
/// that failed.
pub fn read_checkpoint(folder: &Path) -> Vec<host_core::Error> {
    let state = Stored::read(folder).and_then(|stored| stored.check(folder, &[], 64));
    let model = ModelSource::read(&folder.to_string_lossy()).map(drop);
    let weights = weights::read(folder, &mut |_, tensor| {
        // A loader reads the size and the kind before it copies a tensor.
        let _ = (tensor.size(), tensor.kind());
        Ok(())
    });
    let tokenizer = Tokenizer::read(folder, None).map(|tokenizer| {
        let ids = tokenizer.encode("fn main() { let x = 1; }\n");
        let _ = tokenizer.decode(&ids.unwrap_or_default());
    });
    let parts: [Result<()>; 4] = [state, model, weights, tokenizer];
    parts.into_iter().filter_map(Result::err).collect()
}

/// Removes a checkpoint in the same way as a run that keeps only the newest checkpoints.
///
/// # Errors
/// Returns the error of the file system.
pub fn remove_checkpoint(folder: &Path) -> std::io::Result<()> {
    remove(folder).map(drop)
}

/// A passage of a document, or the reason why a passage was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Text, and whether its document ends here.
    Text(String, bool),
    /// Token ids, and whether their document ends here.
    Ids(Vec<u32>, bool),
    /// The reason as text.
    LeftOut(String),
}

/// Reads at most `limit` passages of a file of training data, starting with passage `skip`.
///
/// # Errors
/// Returns an error if the file would be rejected before training begins.
pub fn read_data(path: &Path, skip: u64, limit: usize) -> Result<Vec<Read>> {
    let config = TrainConfig::default();
    let found = find("data", &[path.to_owned()], &config)?;
    let mut passages = Vec::new();
    for file in &found.files {
        let mut reader = match Reader::open(file) {
            Ok(reader) => reader,
            Err(missing) => return Ok(vec![Read::LeftOut(format!("{missing:?}"))]),
        };
        reader.skip(skip);
        while passages.len() < limit
            && let Some(next) = reader.next()
        {
            passages.push(match next {
                Ok(passage) => match passage.content {
                    Content::Text(text) => Read::Text(text, passage.ends_document),
                    Content::Ids(ids) => Read::Ids(ids, passage.ends_document),
                },
                Err(missing) => Read::LeftOut(format!("{missing:?}")),
            });
        }
    }
    Ok(passages)
}
