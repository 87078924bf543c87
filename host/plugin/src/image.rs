use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result, hex};
use sha2::{Digest, Sha256};

use crate::inspect::LARGEST_FILE;

/// The bytes of a library. The file is read a single time, so that the same bytes are hashed, inspected and
/// loaded.
pub struct Image {
    bytes: Vec<u8>,
    digest: [u8; 32],
}

/// A file that contains an image's bytes, for the dynamic loader. No other user can change the file.
pub(crate) enum Mapped {
    /// An anonymous, sealed file. It must stay open as long as the library remains loaded. Otherwise, another
    /// library could get the same `/proc/self/fd` name, and the loader would mistake it for this library.
    Sealed(OwnedFd),
    /// A folder with a private copy, for systems without anonymous files. It is deleted when this value is
    /// dropped.
    Copy(tempfile::TempDir),
}

impl Image {
    /// Reads the library.
    pub fn read(path: &Path) -> Result<Self> {
        let (file, size) = open(path)?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(LARGEST_FILE)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read the plugin", path, &error))?;
        let digest = Sha256::digest(&bytes).into();
        Ok(Self { bytes, digest })
    }

    /// Returns the bytes of the whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Returns the digest in lower-case hexadecimal.
    pub(crate) fn sha256(&self) -> String {
        hex(&self.digest)
    }

    /// Writes the bytes to a file that the loader can map. Debuggers and `/proc/PID/maps` show `name`.
    pub(crate) fn map(&self, name: &str) -> io::Result<Mapped> {
        match self.seal(name) {
            Ok(file) => Ok(Mapped::Sealed(file)),
            // The kernel is too old, or a policy forbids executable memory files.
            Err(_) => self.copy(name),
        }
    }

    fn seal(&self, name: &str) -> io::Result<OwnedFd> {
        let name = CString::new(name)?;
        let create = |flags| {
            // SAFETY: the name is a C string. The call returns a descriptor or -1.
            let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
            match fd {
                -1 => Err(io::Error::last_os_error()),
                // SAFETY: the descriptor is new, so nothing else owns it.
                fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            }
        };
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // Kernels before 6.3 reject MFD_EXEC. Without it, they behave as if it were set.
        let file = create(flags | libc::MFD_EXEC).or_else(|_| create(flags))?;
        let mut file = File::from(file);
        file.write_all(&self.bytes)?;
        let seals =
            libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
        // SAFETY: the descriptor is open, and F_ADD_SEALS takes an int.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(file.into()),
        }
    }

    fn copy(&self, name: &str) -> io::Result<Mapped> {
        // Only this user can access the folder.
        let dir = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o700))
            .tempdir()?;
        std::fs::write(copy_path(&dir, name), &self.bytes)?;
        Ok(Mapped::Copy(dir))
    }
}

impl Mapped {
    /// Returns the file that contains the bytes.
    pub(crate) fn into_file(self, name: &str) -> io::Result<OwnedFd> {
        match self {
            Self::Sealed(file) => Ok(file),
            // The open file stays readable after its name is deleted.
            Self::Copy(_) => File::open(self.path(name)).map(OwnedFd::from),
        }
    }

    /// Returns the path to pass to the loader.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Sealed(file) => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            Self::Copy(dir) => copy_path(dir, name),
        }
    }
}

fn copy_path(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(format!("{name}.so"))
}

/// Opens a library's file, which must be a regular file within the size limit. If a pipe replaces the file at
/// the last moment, opening it does not block.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let wrong = |reason: &str| {
        Error::new(
            ErrorKind::Config,
            format!("plugin {reason}: {}", path.display()),
        )
        .hint("pass the path of the plugin's .so file, or its id")
    };
    let open = || {
        if !path.metadata()?.is_file() {
            return Ok(None);
        }
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let is_file = file.metadata()?.is_file();
        Ok(is_file.then_some(file))
    };
    let file = open()
        .map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => wrong("does not exist"),
            _ => Error::io("open the plugin", path, &error),
        })?
        .ok_or_else(|| wrong("is not a file"))?;
    let size = file
        .metadata()
        .map_err(|error| Error::io("open the plugin", path, &error))?
        .len();
    if size > LARGEST_FILE {
        return Err(Error::new(
            ErrorKind::Plugin,
            format!(
                "plugin has {} MiB, more than {} MiB: {}",
                size >> 20,
                LARGEST_FILE >> 20,
                path.display()
            ),
        )
        .hint("strip it, or move large data out of the library"));
    }
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(bytes: &[u8]) -> Image {
        Image {
            bytes: bytes.to_vec(),
            digest: Sha256::digest(bytes).into(),
        }
    }

    #[test]
    fn a_sealed_image_holds_the_bytes_and_cannot_be_changed() {
        let mapped = image(b"abc").map("name").expect("mapped");
        let path = mapped.path("name");
        assert_eq!(std::fs::read(&path).expect("readable"), b"abc");
        if matches!(mapped, Mapped::Sealed(_)) {
            let error = std::fs::write(&path, b"x").expect_err("sealed");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn a_copy_holds_the_bytes_and_is_private() {
        let mapped = image(b"abc").copy("name").expect("copied");
        let path = mapped.path("name");
        assert_eq!(std::fs::read(&path).expect("readable"), b"abc");
        let dir = path.parent().expect("a folder").to_owned();
        let mode = dir.metadata().expect("a folder").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(mapped);
        assert!(!dir.exists());
    }

    #[test]
    fn the_digest_is_that_of_the_bytes() {
        assert_eq!(
            image(b"abc").sha256(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
