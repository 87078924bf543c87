use std::path::{Path, PathBuf};

use host_core::{Error, Kind, Result};
use host_serve::{Fingerprint, Remote, Trust};

use super::RunsDir;
use crate::run_dir::RunDir;
use crate::run_file::RunFile;
use crate::service::secret;

/// What it takes to talk with a server. A live run's own folder has all of it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RemoteArgs {
    /// Environment variable with the token; without it, what lies in the run's folder
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
                Kind::Config,
                format!("run {} is not live: {}", dir.name(), dir.path().display()),
            )
            .hint(format!(
                "`host runs show {0}` shows what it did, `host resume {0}` resumes it",
                dir.name()
            ))
        })?;
        let (file, _) = RunFile::read(&dir.config_file())?;
        Ok(Remote {
            token: token.or_else(|| token_of(&dir, &file)),
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

/// The token that the run made, or the one that it was started with, if this shell has it, too.
fn token_of(dir: &RunDir, file: &RunFile) -> Option<String> {
    let made = std::fs::read_to_string(dir.control_token_file()).ok();
    let given = ["control_token_env", "read_token_env"]
        .into_iter()
        .filter_map(|key| secret(file.text(key)?).ok());
    made.into_iter().chain(given).next()
}

fn certificate_of(dir: &RunDir, file: &RunFile) -> Result<Trust> {
    let path = match file.text("tls_cert") {
        Some(given) => PathBuf::from(given),
        None => dir.certificate_file(),
    };
    let fingerprint = Fingerprint::of_pem(&read("the certificate", &path)?)?;
    Ok(Trust::Fingerprint(fingerprint))
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(&format!("read {what}"), path, &e))
}
