//! Ids of runs and of folders: they need to differ, not to be secret.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Of an id, in bytes.
pub(crate) const LENGTH: usize = 32;

/// An id that nothing else has.
pub(crate) fn new() -> String {
    // The standard library's source of randomness.
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// What a file with an id says; none if it says something else, as one that was only begun does.
pub(crate) fn parse(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_id = text.len() == LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| text.to_owned())
}
