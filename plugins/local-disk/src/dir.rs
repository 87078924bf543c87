//! A folder that is held open. What is done in it is done there, whatever becomes of its path meanwhile, and
//! what others may have put into it is not followed: no symbolic link, no device, no pipe.

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

/// What tells a folder from any other that may come to have its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

/// What failed in a folder that checkpoints are delivered to. It may pass: a disk is mounted again, a
/// permission given, room made.
pub(crate) fn failed(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::temporary(format!("cannot {verb}: {error}: {}", path.display()))
}

impl Dir {
    /// The folder at a path of the user's, who may have it behind links.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(path, FOLDER, Mode::empty())?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// A folder in it.
    pub(crate) fn dir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        let fd = rustix::fs::openat(&self.fd, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self {
            fd,
            path: self.path.join(name),
        })
    }

    /// A folder in it, which is made if it is not there.
    pub(crate) fn make_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => self.dir(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Where it was found.
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

    /// Bytes that are free on its disk.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::fstatvfs(&self.fd)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    pub(crate) fn device(&self) -> io::Result<u64> {
        Ok(self.identity()?.device)
    }

    /// What is in it, in no order.
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

    /// What a name stands for; a link is a link.
    pub(crate) fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::statat(&self.fd, name.as_ref(), flags)?)
    }

    /// Whether anything has the name.
    pub(crate) fn has(&self, name: impl AsRef<OsStr>) -> bool {
        self.stat(name).is_ok()
    }

    /// A file in it, to read.
    pub(crate) fn file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        // A pipe that nobody writes to would be waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.fd, name.as_ref(), flags, Mode::empty())?;
        regular(File::from(file))
    }

    /// What a small file says.
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

    /// A new file in it, to write.
    pub(crate) fn create(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(0o666);
        Ok(rustix::fs::openat(&self.fd, name.as_ref(), flags, mode)?.into())
    }

    /// Puts a file there as a whole or not at all.
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

    /// Gives a file of elsewhere a second name here.
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

    /// What a symbolic link says; none if the name stands for something else or nothing.
    pub(crate) fn link_text(&self, name: impl AsRef<OsStr>) -> Option<String> {
        let text = rustix::fs::readlinkat(&self.fd, name.as_ref(), Vec::new()).ok()?;
        text.into_string().ok()
    }

    /// Makes a symbolic link, or lets one that is there lead elsewhere.
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

    /// Lets two change their names at one moment. Not every file system can.
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

    /// Removes whatever has the name, and all that is in it.
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

    /// Waits until its entries are on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Waits until nobody else who asks for it has the folder to himself, for as long as the returned
    /// handle is there. Where the file system knows no locks nothing is waited for.
    pub(crate) fn lock(&self) -> io::Result<OwnedFd> {
        let own = rustix::fs::openat(&self.fd, c".", FOLDER, Mode::empty())?;
        let _ = rustix::fs::flock(own.as_fd(), FlockOperation::LockExclusive);
        Ok(own)
    }
}

/// A file of the run folder, to read.
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
