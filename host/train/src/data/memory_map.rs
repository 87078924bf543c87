//! The only `unsafe` code of the data modules.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;

/// The bytes of a file, held only in the system's page cache.
pub(crate) struct MemoryMap {
    file: File,
    bytes: Mmap,
}

impl MemoryMap {
    /// Maps a file of at least one byte.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        // SAFETY: the mapping is read-only, and its content is plain bytes. Another process could write to
        // the file, but has no reason to: `host data tokenize` replaces files as a whole. Such a write would
        // only change the bytes that are read, and every byte is valid. `get` detects a truncated file before
        // it touches the missing bytes.
        #[expect(unsafe_code)]
        let bytes = unsafe { Mmap::map(&file)? };
        Ok(Self { file, bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns some of the bytes. `None` if the file does not have them or has been truncated.
    pub(crate) fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        let length = self.file.metadata().ok()?.len();
        self.bytes
            .get(range)
            .filter(|_| length >= self.bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn bytes_are_returned_until_the_file_is_truncated() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"some bytes").expect("written");
        let map = MemoryMap::open(file.try_clone().expect("a handle")).expect("mapped");
        assert_eq!(map.len(), 10);
        assert_eq!(map.get(5..10), Some(&b"bytes"[..]));
        assert_eq!(map.get(5..11), None);
        file.set_len(7).expect("cut");
        assert_eq!(map.get(5..10), None);
    }
}
