use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::http::{self, Got, Http};
use crate::lfs::{Action, Pointer};
use crate::limit::Limit;
use crate::upload::{Sent, hex, link_refused};
use crate::{Error, Result};

/// The file into which an object is downloaded. Tracks the size and the digest of the part that is already
/// written.
pub(crate) struct Target<'a> {
    file: &'a File,
    path: &'a Path,
    hash: Sha256,
    bytes: u64,
}

/// Maximum number of consecutive attempts that receive no data.
const ATTEMPTS: u32 = 4;

/// Buffer size in bytes.
const PIECE: usize = 256 << 10;

/// Whether a server returns an object of `size` bytes. The content is not checked.
pub(crate) fn is_there(http: &Http<'_>, action: &Action, size: u64) -> Result<bool> {
    let got = action.with_access(
        http,
        |header| http.get(&action.href, header, 0),
        |got| matches!(got, Got::Refusal(answer) if answer.status == 401),
    )?;
    let Got::Body(_, body) = got else {
        return Ok(false);
    };
    if let Some(length) = body.content_length() {
        return Ok(length == size);
    }
    let mut reader = body.into_with_config().limit(u64::MAX).reader();
    let read = std::io::copy(&mut (&mut reader).take(size + 1), &mut std::io::sink());
    http.limit().check()?;
    Ok(read.is_ok_and(|read| read == size))
}

impl<'a> Target<'a> {
    /// Wraps an empty file; `path` is for error messages.
    pub(crate) fn new(file: &'a File, path: &'a Path) -> Self {
        Self {
            file,
            path,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// Downloads the missing bytes. If a connection breaks, resumes at the same position.
    ///
    /// # Errors
    /// Returns an error if the server does not return the object or returns other content, or if writing the
    /// file fails.
    pub(crate) fn fill(
        &mut self,
        http: &Http<'_>,
        action: &Action,
        pointer: &Pointer,
    ) -> Result<Sent> {
        let server = http::server(&action.href);
        let mut attempt = 1;
        while self.bytes < pointer.size {
            let before = self.bytes;
            let failed = match self.take(http, action, pointer) {
                Ok(None) => continue,
                Ok(Some(refused)) => return Ok(refused),
                Err(Error::Temporary(words)) => words,
                Err(error) => return Err(error),
            };
            http.limit().check()?;
            attempt = if self.bytes > before { 1 } else { attempt + 1 };
            if attempt > ATTEMPTS {
                return Err(Error::Temporary(failed));
            }
            let so_far = format!("{} of {} bytes", self.bytes, pointer.size);
            http.limit().warn(&format!(
                "a download was interrupted at {so_far} and is resumed: {failed}"
            ));
            http.limit()
                .sleep(Duration::from_millis(200 * (1 << attempt)))?;
        }
        if self.is(pointer) {
            return Ok(Sent::Whole);
        }
        Err(Error::Permanent(format!(
            "{server} sent the wrong content ({} bytes, sha256 {}) for the object {}",
            self.bytes,
            hex(self.hash.clone()),
            pointer.sha256
        )))
    }

    /// Downloads the content of one response. If the server refused the link in `action`, returns
    /// [`Sent::LinkRefused`].
    fn take(
        &mut self,
        http: &Http<'_>,
        action: &Action,
        pointer: &Pointer,
    ) -> Result<Option<Sent>> {
        let server = http::server(&action.href);
        let got = action.with_access(
            http,
            |header| http.get(&action.href, header, self.bytes),
            |got| matches!(got, Got::Refusal(answer) if answer.status == 401),
        )?;
        let (from, body) = match got {
            Got::Body(from, body) => (from, body),
            Got::Refusal(answer) => {
                let refused = link_refused(&answer);
                return match refused {
                    Some(refused) => Ok(Some(refused)),
                    // A successful response without content is not retried: if the server always returned
                    // such responses, the loop would never end.
                    None => Err(answer.success(&server).map_or_else(
                        |error| error,
                        |answer| {
                            let status = answer.status;
                            Error::Permanent(format!("{server} returned no content ({status})"))
                        },
                    )),
                };
            }
        };
        if from != self.bytes {
            self.begin_again()?;
        }
        let mut reader = body.into_with_config().limit(u64::MAX).reader();
        self.copy(&mut reader, pointer.size, http.limit())
            .map_err(|error| match error {
                Error::Temporary(words) => {
                    Error::Temporary(format!("the connection to {server} broke: {words}"))
                }
                other => other,
            })?;
        Ok(None)
    }

    /// Copies a stream. If the content is longer than `size` bytes, it is wrong, and the copy stops.
    pub(crate) fn copy(
        &mut self,
        reader: &mut dyn Read,
        size: u64,
        limit: &Limit<'_>,
    ) -> Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            limit.check()?;
            let read = match reader.read(&mut piece) {
                Ok(0) if self.bytes < size => {
                    return Err(Error::Temporary("the data ended early".to_owned()));
                }
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) => {
                    limit.check()?;
                    return Err(Error::Temporary(error.to_string()));
                }
            };
            let mut file = self.file;
            file.write_all(&piece[..read])
                .map_err(|error| Error::Permanent(self.not_written(&error)))?;
            self.hash.update(&piece[..read]);
            self.bytes += read as u64;
            if self.bytes > size {
                return Ok(());
            }
        }
    }

    fn begin_again(&mut self) -> Result<()> {
        let mut file = self.file;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .map_err(|error| Error::Permanent(self.not_written(&error)))?;
        self.hash = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// Whether the content matches the pointer.
    pub(crate) fn is(&self, pointer: &Pointer) -> bool {
        self.bytes == pointer.size && hex(self.hash.clone()) == pointer.sha256
    }

    fn not_written(&self, error: &std::io::Error) -> String {
        format!("cannot write: {error}: {}", self.path.display())
    }
}
