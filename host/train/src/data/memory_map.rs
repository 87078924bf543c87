//! The one place of the data with `unsafe`.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;

/// The bytes of a file, in the system's page cache only.
pub(crate) struct MemoryMap {
    file: File,
    bytes: Mmap,
}

impl MemoryMap {
    /// Maps a file that has a byte at least.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        // SAFETY: the mapping is read-only and of plain bytes. Another process could write into the
        // file, which nobody has reason to: `host data tokenize` replaces a file as a whole. What it
        // wrote would be read as other bytes, each of which is valid. A file that was cut short is
        // noticed in `get` before the bytes that it lost are touched.
        #[expect(unsafe_code)]
        let bytes = unsafe { Mmap::map(&file)? };
        Ok(Self { file, bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Some of the bytes. None: the file does not have them, or not any more.
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
    fn bytes_are_had_as_long_as_the_file_has_them() {
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
