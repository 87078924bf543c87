//! Ids of runs and folders. They must be unique, but need not be secret.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Length of an id in bytes.
pub(crate) const LENGTH: usize = 32;

/// Returns a new unique id.
pub(crate) fn new() -> String {
    // Each `RandomState` has random keys from the standard library.
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// Parses the content of an id file. Returns `None` if the content is not an id, for example because the file
/// was only partially written.
pub(crate) fn parse(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_id = text.len() == LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| text.to_owned())
}
