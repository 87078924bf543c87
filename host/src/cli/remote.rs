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

/// Maximum number of bytes read from the file of a control token.
const LONGEST_TOKEN: u64 = 4096;
/// Maximum number of bytes read from a certificate.
const LARGEST_CERTIFICATE: u64 = 1 << 20;

/// Credentials for a server. If the target is a run, the run's folder provides the defaults.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RemoteArgs {
    /// Environment variable with the token [default: control.token in the folder of your own run on this
    /// machine]
    #[arg(long, value_name = "NAME", global = true, help_heading = "Connection")]
    token_env: Option<String>,

    /// SHA-256 fingerprint of the server's certificate, as printed by the server
    #[arg(
        long,
        value_name = "SHA256",
        conflicts_with = "tls_ca",
        global = true,
        help_heading = "Connection"
    )]
    tls_fingerprint: Option<Fingerprint>,

    /// PEM file with the certificate authorities to trust
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    tls_ca: Option<PathBuf>,
}

impl RemoteArgs {
    /// Resolves `target`, which is one of: a run's name, a run's folder, a server's address.
    ///
    /// # Errors
    /// Returns an error if the run does not exist or is not live, or if an argument is invalid.
    pub(super) fn resolve(&self, target: &str, runs: &RunsDir) -> Result<Remote> {
        let token = self.token_env.as_deref().map(secret).transpose()?;
        let trust = match (&self.tls_fingerprint, &self.tls_ca) {
            (Some(fingerprint), _) => Some(Trust::Fingerprint(*fingerprint)),
            (None, Some(file)) => Some(Trust::Authorities(read(
                "the certificate authorities",
                file,
            )?)),
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
                "use `host runs show {0}` to see its results, or `host resume {0}` to resume it",
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

/// Returns true if `target` is a server's address, not a run's name or folder.
pub(super) fn is_address(target: &str) -> bool {
    target.contains(':') && !Path::new(target).exists()
}

/// Returns the control token that the run generated. Returns `None` if another user owns the run folder, or
/// if the run is on another machine. The folder can name other sources of a token, but they are ignored.
/// Otherwise the folder's creator could choose which secret is sent to which server.
fn token_of(dir: &RunDir, addr: &str) -> Option<String> {
    let user = geteuid().as_raw();
    let is_own = |what: &Metadata| what.uid() == user;
    if !is_this_machine(addr) || !fs::metadata(dir.path()).is_ok_and(|folder| is_own(&folder)) {
        return None;
    }
    let file = OpenOptions::new()
        .read(true)
        // Do not follow a link, and do not block on a pipe without a writer.
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

/// Returns true if a connection to this address stays on this machine. The address comes from a run folder,
/// so it can be any text.
fn is_this_machine(addr: &str) -> bool {
    let place = addr.split_once("://").map_or(addr, |(_, place)| place);
    let place: Option<SocketAddr> = place.parse().ok();
    // A connection to the unspecified address stays on this machine.
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

/// Reads a regular file, up to `LARGEST_CERTIFICATE` bytes.
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
    fn only_addresses_of_this_machine_receive_a_folders_token() {
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
