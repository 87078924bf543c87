//! A folder that is held open. Operations apply to the folder that was opened, even if it is renamed or
//! another folder takes its path. Operations do not follow symbolic links in the folder. They do not open
//! devices or pipes as files.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use host_plugin_sdk::Error;
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// An open folder.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// Identifies a folder, so that a different folder at the same path is detected later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

/// Returns the error for a failed operation in the folder that checkpoints are delivered to. The error is
/// temporary, because users can mount the disk again, grant permission or free space.
pub(crate) fn failed(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::temporary(format!("cannot {verb}: {error}: {}", path.display()))
}

impl Dir {
    /// Opens the folder at a path that the user configured. Follows symbolic links in the path.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(path, FOLDER, Mode::empty())?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Opens a subfolder.
    pub(crate) fn dir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        let fd = rustix::fs::openat(&self.fd, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self {
            fd,
            path: self.path.join(name),
        })
    }

    /// Opens a subfolder. Creates it if it does not exist.
    pub(crate) fn make_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => self.dir(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the path that the folder was opened with.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn identity(&self) -> io::Result<Identity> {
        let found = rustix::fs::fstat(&self.fd)?;
        Ok(Identity {
            device: found.st_dev,
            inode: found.st_ino,
        })
    }

    /// Returns the number of free bytes on the folder's disk.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::fstatvfs(&self.fd)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    pub(crate) fn device(&self) -> io::Result<u64> {
        Ok(self.identity()?.device)
    }

    /// Returns the names of the entries, in no particular order.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Returns the status of an entry. Does not follow symbolic links.
    pub(crate) fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::statat(&self.fd, name.as_ref(), flags)?)
    }

    /// Whether an entry with this name exists.
    pub(crate) fn has(&self, name: impl AsRef<OsStr>) -> bool {
        self.stat(name).is_ok()
    }

    /// Opens a regular file in the folder for reading.
    pub(crate) fn file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        // Without NONBLOCK, opening a pipe would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.fd, name.as_ref(), flags, Mode::empty())?;
        regular(File::from(file))
    }

    /// Reads a small file. Returns an error if the file has more than `most_bytes` bytes.
    pub(crate) fn read(&self, name: impl AsRef<OsStr>, most_bytes: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file(name)?
            .take(most_bytes + 1)
            .read_to_end(&mut bytes)?;
        match bytes.len() as u64 > most_bytes {
            true => Err(io::Error::new(
                ErrorKind::FileTooLarge,
                format!("it has more than {most_bytes} bytes"),
            )),
            false => Ok(bytes),
        }
    }

    /// Creates a new file in the folder for writing.
    pub(crate) fn create(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(0o666);
        Ok(rustix::fs::openat(&self.fd, name.as_ref(), flags, mode)?.into())
    }

    /// Writes a file atomically.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        match self.unlink(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = self.create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        self.rename(&new, name)?;
        self.sync()
    }

    /// Creates a hard link in the folder. The file that it links to is elsewhere.
    pub(crate) fn link(&self, source: &Path, name: impl AsRef<OsStr>) -> io::Result<()> {
        let flags = AtFlags::empty();
        Ok(rustix::fs::linkat(
            CWD,
            source,
            &self.fd,
            name.as_ref(),
            flags,
        )?)
    }

    /// Returns the target of a symbolic link. Returns `None` for other entries, or if there is no entry.
    pub(crate) fn link_text(&self, name: impl AsRef<OsStr>) -> Option<String> {
        let text = rustix::fs::readlinkat(&self.fd, name.as_ref(), Vec::new()).ok()?;
        text.into_string().ok()
    }

    /// Creates a symbolic link, or changes the target of an existing one.
    pub(crate) fn point(&self, name: &str, text: &str) -> io::Result<()> {
        let new = format!(".{name}.new");
        match self.unlink(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        rustix::fs::symlinkat(text, &self.fd, &*new)?;
        self.rename(&new, name)
    }

    pub(crate) fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::renameat(
            &self.fd,
            from.as_ref(),
            &self.fd,
            to.as_ref(),
        )?)
    }

    /// Swaps the names of two entries atomically. Some file systems do not support this.
    pub(crate) fn exchange(&self, a: impl AsRef<OsStr>, b: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(
            &self.fd,
            a.as_ref(),
            &self.fd,
            b.as_ref(),
            RenameFlags::EXCHANGE,
        )?)
    }

    pub(crate) fn unlink(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            &self.fd,
            name.as_ref(),
            AtFlags::empty(),
        )?)
    }

    /// Removes an empty folder.
    pub(crate) fn remove_dir(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            &self.fd,
            name.as_ref(),
            AtFlags::REMOVEDIR,
        )?)
    }

    /// Removes an entry with all its content. Succeeds if the entry does not exist.
    pub(crate) fn remove_all(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        match self.stat(name) {
            Ok(found) if is_dir(&found) => {
                let dir = self.dir(name)?;
                for inner in dir.names()? {
                    dir.remove_all(inner)?;
                }
                self.remove_dir(name)
            }
            Ok(_) => self.unlink(name),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Syncs the folder's entries to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Waits for an exclusive advisory lock on the folder. The lock is held until the returned handle is
    /// dropped. If the file system does not support locks, returns without a lock.
    pub(crate) fn lock(&self) -> io::Result<OwnedFd> {
        let own = rustix::fs::openat(&self.fd, c".", FOLDER, Mode::empty())?;
        let _ = rustix::fs::flock(own.as_fd(), FlockOperation::LockExclusive);
        Ok(own)
    }
}

/// Opens a regular file of the run folder for reading. Follows symbolic links.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    regular(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn regular(file: File) -> io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

pub(crate) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(crate) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}
