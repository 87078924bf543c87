//! Reads files safely from folders of untrusted origin. Reading a device or a pipe might never end, and a
//! file can be larger than expected.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Maximum size in bytes of a small file: a configuration, a tokenizer's settings or a list of files.
pub(crate) const SMALL: u64 = 64 << 20;

/// Opens a regular file, or a symbolic link to one.
///
/// # Errors
/// Returns an error if the file is missing, cannot be opened, or is a folder, a device, a pipe or a socket.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    open_with(path, OFlags::empty())
}

/// Like [`open`], but rejects symbolic links.
///
/// # Errors
/// Returns an error in the same cases as [`open`], and if the path is a symbolic link.
pub(crate) fn open_no_link(path: &Path) -> io::Result<File> {
    if path.symlink_metadata()?.is_symlink() {
        return Err(io::Error::other("it is a symbolic link"));
    }
    open_with(path, OFlags::NOFOLLOW)
}

fn open_with(path: &Path, flags: OFlags) -> io::Result<File> {
    // Without `NONBLOCK`, opening a pipe would block until another process opens it for writing.
    let flags = flags | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// Returns an error in the same cases as [`open`], and if the file is larger.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_all(open(path)?, limit)
}

/// Like [`read`], but returns text.
///
/// # Errors
/// Returns an error in the same cases as [`read`], and if the file is not UTF-8.
pub(crate) fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|_| io::Error::other("it is not UTF-8"))
}

/// Reads an open file of at most `limit` bytes.
///
/// # Errors
/// Returns an error if the file is larger or cannot be read.
pub(crate) fn read_all(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::other(format!("it is larger than {} MiB", limit >> 20));
    let size = file.metadata()?.len();
    if size > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 <= limit {
        true => Ok(bytes),
        false => Err(too_large()),
    }
}

/// Whether the bytes are a Git LFS pointer, which replaces a file that was not fetched.
pub(crate) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "text").expect("written");
        symlink("file", path("link")).expect("linked");
        symlink("/dev/zero", path("device")).expect("linked");
        symlink("nothing", path("dangling")).expect("linked");
        fs::create_dir(path("folder")).expect("made");
        let made = std::process::Command::new("mkfifo")
            .arg(path("pipe"))
            .status();
        assert!(made.expect("mkfifo").success());

        for name in ["file", "link"] {
            assert_eq!(read(&path(name), 4).expect(name), b"text");
        }
        assert!(open_no_link(&path("file")).is_ok());
        for name in ["device", "dangling", "folder", "pipe"] {
            assert!(read(&path(name), 4).is_err(), "{name}");
        }
        for name in ["link", "device", "dangling", "folder", "pipe"] {
            assert!(open_no_link(&path(name)).is_err(), "{name}");
        }
        let error = read(&path("file"), 3).expect_err("too large");
        assert!(
            error.to_string().starts_with("it is larger than"),
            "{error}"
        );
    }
}
