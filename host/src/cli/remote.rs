use std::fs::{self, Metadata, OpenOptions};
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use host_serve::{Fingerprint, Remote, Trust};
use rustix::fs::OFlags;
use rustix::process::geteuid;

use super::RunsDir;
use crate::plan::run_file::RunFile;
use crate::runs::run_dir::RunDir;
use crate::service::secret;

/// Bytes of a token file that are read.
const LONGEST_TOKEN: u64 = 4096;
/// Bytes of a certificate that are read.
const LARGEST_CERTIFICATE: u64 = 1 << 20;

/// What it takes to talk with a server. A live run's own folder has all of it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RemoteArgs {
    /// Environment variable with the token; without it, the token file in the folder of a run of yours on
    /// this machine
    #[arg(long, value_name = "NAME", global = true)]
    token_env: Option<String>,

    /// The server's certificate is the one with this SHA-256, as the server printed it
    #[arg(long, value_name = "SHA256", conflicts_with = "tls_ca", global = true)]
    tls_fingerprint: Option<Fingerprint>,

    /// An authority of this PEM file signed the server's certificate
    #[arg(long, value_name = "FILE", global = true)]
    tls_ca: Option<PathBuf>,
}

impl RemoteArgs {
    /// The server that `target`, a run's name or folder or an address, is about.
    ///
    /// # Errors
    /// There is no such run, it is not live, or an argument cannot be right.
    pub(super) fn resolve(&self, target: &str, runs: &RunsDir) -> Result<Remote> {
        let token = self.token_env.as_deref().map(secret).transpose()?;
        let trust = match (&self.tls_fingerprint, &self.tls_ca) {
            (Some(fingerprint), _) => Some(Trust::Fingerprint(*fingerprint)),
            (None, Some(file)) => Some(Trust::Authorities(read("the authorities", file)?)),
            (None, None) => None,
        };
        if is_address(target) {
            return Ok(Remote {
                addr: target.to_owned(),
                token,
                trust,
            });
        }
        let dir = RunDir::find(&runs.runs_dir, target)?;
        let addr = dir.live_address()?.ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                format!("run {} is not live: {}", dir.name(), dir.path().display()),
            )
            .hint(format!(
                "`host runs show {0}` shows what it did, `host resume {0}` resumes it",
                dir.name()
            ))
        })?;
        let (file, _) = RunFile::read(&dir.config_file())?;
        Ok(Remote {
            token: token.or_else(|| token_of(&dir, &addr)),
            trust: match trust {
                None if addr.starts_with("https://") => Some(certificate_of(&dir, &file)?),
                trust => trust,
            },
            addr,
        })
    }
}

/// Whether it is a server's address, and not a run's name or folder.
pub(super) fn is_address(target: &str) -> bool {
    target.contains(':') && !Path::new(target).exists()
}

/// The token that the run made for itself, if this user owns its folder and it runs on this machine. What
/// else the folder says does not count: who made it would choose which secret goes where.
fn token_of(dir: &RunDir, addr: &str) -> Option<String> {
    let user = geteuid().as_raw();
    let is_own = |what: &Metadata| what.uid() == user;
    if !is_this_machine(addr) || !fs::metadata(dir.path()).is_ok_and(|folder| is_own(&folder)) {
        return None;
    }
    let file = OpenOptions::new()
        .read(true)
        // Neither another file in its place nor a pipe that is never written.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(dir.control_token_file())
        .ok()?;
    let is_token = |what: Metadata| is_own(&what) && what.is_file();
    if !file.metadata().is_ok_and(is_token) {
        return None;
    }
    let mut token = String::new();
    file.take(LONGEST_TOKEN).read_to_string(&mut token).ok()?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// Whether an address, as a run's folder has it, is of this machine alone.
fn is_this_machine(addr: &str) -> bool {
    let place = addr.split_once("://").map_or(addr, |(_, place)| place);
    let place: Option<SocketAddr> = place.parse().ok();
    // To connect to the address of all interfaces is to stay here.
    place.is_some_and(|place| place.ip().is_loopback() || place.ip().is_unspecified())
}

fn certificate_of(dir: &RunDir, file: &RunFile) -> Result<Trust> {
    let path = match file.text("tls_cert") {
        Some(given) => PathBuf::from(given),
        None => dir.certificate_file(),
    };
    let fingerprint = Fingerprint::of_pem(&read("the certificate", &path)?)?;
    Ok(Trust::Fingerprint(fingerprint))
}

/// Reads a regular file that is no larger than a certificate can be.
fn read(what: &str, path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(LARGEST_CERTIFICATE).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|e| Error::io(&format!("read {what}"), path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_of_this_machine_gets_the_token_of_a_folder() {
        for here in [
            "127.0.0.1:1",
            "https://127.8.0.1:1",
            "[::1]:1",
            "https://0.0.0.0:1",
        ] {
            assert!(is_this_machine(here), "{here}");
        }
        for elsewhere in [
            "192.0.2.1:1",
            "https://192.0.2.1:1",
            "localhost:1",
            "127.0.0.1.example.org:1",
            "https://127.0.0.1:1@example.org:2",
            "",
        ] {
            assert!(!is_this_machine(elsewhere), "{elsewhere}");
        }
    }
}
