//! The gRPC service of the program: its address, its tokens and its certificate.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result, hex};
use host_serve::{Access, Fingerprint, SelfSigned, Server, Serving, Source, TlsIdentity, Token};
use toml::Table;

use crate::config::settings::HostConfig;
use crate::runs::quoted;
use crate::runs::run_dir::RunDir;

/// Minimum number of characters in a server's token, and minimum number of different characters.
const SHORTEST_TOKEN: usize = 16;
const LEAST_DIFFERENT: usize = 6;

/// A function that receives warnings for the owner of the server. Can be called on any thread.
pub(crate) type Warn = Box<dyn Fn(String) + Send + Sync>;

/// The only value that the argument `tls` can have.
const SELF_SIGNED: &str = "self-signed";

/// The arguments of the service, checked.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) listen: SocketAddr,
    access: Access,
    tls: Tls,
    /// The arguments as given, for `run.toml`. They name the environment variables that contain secrets, but
    /// contain no secrets.
    given: Table,
}

#[derive(Clone, Debug)]
enum Tls {
    None,
    SelfSigned,
    Files(TlsIdentity),
}

/// A running server, and what its clients need to connect.
pub(crate) struct Served {
    pub(crate) serving: Serving,
    pub(crate) fingerprint: Option<Fingerprint>,
    takes_token: bool,
    /// If this process trains the served run: the folder that contains the run.
    of_run_in: Option<PathBuf>,
}

impl Served {
    /// Returns lines with the address and everything else that a client needs.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("gRPC at {}", self.serving.addr())];
        lines.extend(self.clients());
        lines
    }

    /// Returns lines with what a client needs in addition to the address. With TLS, this is one line with the
    /// certificate's fingerprint. With a read token but without TLS, there are no lines. With neither, the
    /// first line contains the command for TensorBoard, which supports neither TLS nor tokens. If this
    /// process trains the run, a second line contains the command that serves the run after its end.
    pub(crate) fn clients(&self) -> Vec<String> {
        if let Some(fingerprint) = self.fingerprint {
            return vec![format!("TLS fingerprint {fingerprint}")];
        }
        if self.takes_token {
            return Vec::new();
        }
        let mut lines = vec![format!(
            "TensorBoard: tensorboard --grpc_data_provider={}",
            self.serving.addr()
        )];
        lines.extend(self.of_run_in.as_ref().map(|runs| {
            let runs = quoted(runs);
            format!(
                "This address is valid only during the run. Afterwards, use `host serve --runs-dir {runs}`."
            )
        }));
        lines
    }
}

impl Service {
    /// Checks the arguments, and reads the certificate and the tokens.
    ///
    /// # Errors
    /// Returns an error if an argument is invalid, or an environment variable is not set.
    pub(crate) fn new(config: &HostConfig) -> Result<Self> {
        let listen = listen_address(&config.listen)?;
        let tls =
            match (&config.tls, &config.tls_cert, &config.tls_key) {
                (None, None, None) => Tls::None,
                (Some(how), None, None) if how == SELF_SIGNED => Tls::SelfSigned,
                (None, Some(certificate), Some(key)) => {
                    Tls::Files(TlsIdentity::read(certificate, key)?)
                }
                _ => {
                    return Err(Error::new(ErrorKind::Config, "conflicting TLS options").hint(
                    "give --tls self-signed, or --tls-cert FILE together with --tls-key FILE",
                ));
                }
            };
        let token = |name: &Option<String>| name.as_deref().map(server_secret).transpose();
        let access = Access {
            read: token(&config.read_token_env)?.as_deref().map(Token::new),
            control: token(&config.control_token_env)?.as_deref().map(Token::new),
        };
        Server::check(listen, !matches!(tls, Tls::None), access.read.is_some())?;
        let path = |path: &PathBuf| path.to_str().unwrap_or_default().to_owned();
        let given = [
            ("listen", Some(listen.to_string())),
            ("read_token_env", config.read_token_env.clone()),
            ("control_token_env", config.control_token_env.clone()),
            ("tls", config.tls.clone()),
            ("tls_cert", config.tls_cert.as_ref().map(path)),
            ("tls_key", config.tls_key.as_ref().map(path)),
        ];
        let given = given
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.into())));
        Ok(Self {
            listen,
            access,
            tls,
            given: given.collect(),
        })
    }

    /// Returns the names of the environment variables with the tokens.
    pub(crate) fn token_variables(config: &HostConfig) -> impl Iterator<Item = String> {
        let names = [&config.read_token_env, &config.control_token_env];
        names.into_iter().flatten().cloned()
    }

    /// Returns the arguments as keys of a configuration.
    pub(crate) fn as_table(&self) -> Table {
        self.given.clone()
    }

    /// Serves the runs of a folder. This process trains none of them.
    ///
    /// # Errors
    /// Returns an error if the address is in use, or the certificate cannot be generated.
    pub(crate) fn serve(&self, runs_dir: &Path, warn: Warn) -> Result<Served> {
        let tls = match &self.tls {
            Tls::SelfSigned => Some(self.self_signed()?.identity()?),
            Tls::Files(identity) => Some(identity.clone()),
            Tls::None => None,
        };
        self.start(
            Source::Folder(runs_dir.to_owned()),
            self.access.clone(),
            tls,
            warn,
        )
    }

    /// Serves the run that this process trains. Writes files for this user's clients to the run folder: the
    /// address, the control token (unless the user gave one) and the certificate (if it is self-signed).
    ///
    /// # Errors
    /// Returns an error if the address is in use, or the folder cannot be written.
    pub(crate) fn serve_run(&self, dir: &RunDir, source: Source, warn: Warn) -> Result<Served> {
        let mut access = self.access.clone();
        let token = dir.control_token_file();
        remove(&token)?;
        if access.control.is_none() {
            let secret = random_secret()?;
            write_private(&token, &secret)?;
            access.control = Some(Token::new(&secret));
        }
        let tls = match &self.tls {
            Tls::SelfSigned => Some(self.kept_identity(dir)?),
            Tls::Files(identity) => Some(identity.clone()),
            Tls::None => None,
        };
        let scheme = if tls.is_some() { "https://" } else { "" };
        let mut served = self.start(source, access, tls, warn)?;
        served.of_run_in = Some(dir.runs_dir().to_owned());
        let address = dir.address_file();
        fs::write(&address, format!("{scheme}{}\n", served.serving.addr()))
            .map_err(|e| Error::io("write the address", &address, &e))?;
        Ok(served)
    }

    fn start(
        &self,
        source: Source,
        access: Access,
        tls: Option<TlsIdentity>,
        warn: Warn,
    ) -> Result<Served> {
        let fingerprint = tls.as_ref().map(TlsIdentity::fingerprint);
        let takes_token = access.read.is_some();
        let server = Server::new(self.listen, source).access(access).tls(tls);
        let server = server.on_warning(warn);
        Ok(Served {
            serving: server.start()?,
            fingerprint,
            takes_token,
            of_run_in: None,
        })
    }

    /// Reads the certificate in the run folder, so that a resumed run keeps its fingerprint. If the folder
    /// has no certificate, generates one.
    fn kept_identity(&self, dir: &RunDir) -> Result<TlsIdentity> {
        let (certificate, key) = (dir.certificate_file(), dir.key_file());
        if !(certificate.is_file() && key.is_file()) {
            let made = self.self_signed()?;
            remove(&key)?;
            write_private(&key, &made.key)?;
            fs::write(&certificate, &made.certificate)
                .map_err(|e| Error::io("write the certificate", &certificate, &e))?;
        }
        TlsIdentity::read(&certificate, &key)
    }

    fn self_signed(&self) -> Result<SelfSigned> {
        let mut names = vec![self.listen.ip().to_string()];
        if let Ok(host) = fs::read_to_string("/proc/sys/kernel/hostname") {
            names.push(host.trim().to_owned());
        }
        SelfSigned::new(&names)
    }
}

/// Reads a secret from an environment variable.
///
/// # Errors
/// Returns an error if the variable is not set or is empty.
pub(crate) fn secret(name: &str) -> Result<String> {
    let value = std::env::var(name).unwrap_or_default();
    match value.trim() {
        "" => Err(Error::new(
            ErrorKind::Config,
            format!("the environment variable {name} contains no token"),
        )
        .hint(format!("set it: export {name}=$(openssl rand -hex 32)"))),
        secret => Ok(secret.to_owned()),
    }
}

/// Reads the token that clients of a server must send.
///
/// # Errors
/// Returns an error in the same cases as [`secret`], and if the token is easy to guess or contains characters
/// that clients cannot send.
fn server_secret(name: &str) -> Result<String> {
    let secret = secret(name)?;
    match weakness(&secret) {
        None => Ok(secret),
        Some(why) => Err(Error::new(
            ErrorKind::Config,
            format!("the token in the environment variable {name} {why}"),
        )
        .hint(format!(
            "generate one: export {name}=$(openssl rand -hex 32)"
        ))),
    }
}

/// If a token cannot be used, returns the reason.
fn weakness(secret: &str) -> Option<String> {
    let different = secret.bytes().collect::<BTreeSet<u8>>().len();
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("contains characters that clients cannot send".to_owned());
    }
    if secret.len() < SHORTEST_TOKEN {
        let length = secret.len();
        return Some(format!(
            "is too short to be secure: its length is {length}, but must be at least {SHORTEST_TOKEN} characters"
        ));
    }
    (different < LEAST_DIFFERENT)
        .then(|| "has too few different characters to be secure".to_owned())
}

/// Returns 256 random bits from the system, in hexadecimal.
fn random_secret() -> Result<String> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    fs::File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Error::io("read random bytes for a token", source, &e))?;
    Ok(hex(&bytes))
}

/// Creates a file that only this user can read. Fails if it exists.
fn write_private(path: &Path, content: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(|e| Error::io("write", path, &e))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Parses an address to listen on, `ADDR:PORT`.
///
/// # Errors
/// Returns an error if the address is invalid, or its host name cannot be resolved.
fn listen_address(text: &str) -> Result<SocketAddr> {
    let wrong = |why: String| {
        Error::new(
            ErrorKind::Config,
            format!("cannot listen on {text:?}: {why}"),
        )
        .hint("give an address and a port, as in 127.0.0.1:6006; port 0 selects a free port")
    };
    text.to_socket_addrs()
        .map_err(|e| wrong(e.to_string()))?
        .next()
        .ok_or_else(|| wrong("no address was found".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn refusal(change: impl Fn(&mut HostConfig)) -> String {
        let mut config = HostConfig::default();
        change(&mut config);
        let error = Service::new(&config).expect_err("refused");
        format!(
            "{}; {}",
            error.message(),
            error.hint_text().expect("a hint")
        )
    }

    #[test]
    fn listening_for_other_machines_requires_tls_and_a_token() {
        let open = |config: &mut HostConfig| config.listen = "0.0.0.0:0".to_owned();
        assert!(refusal(open).contains("--tls self-signed"));
        let with_tls = |config: &mut HostConfig| {
            open(config);
            config.tls = Some(SELF_SIGNED.to_owned());
        };
        assert!(refusal(with_tls).contains("--read-token-env"));
    }

    #[test]
    fn a_certificate_without_key_and_an_unset_token_are_errors() {
        let half = refusal(|config| config.tls_cert = Some("/c.pem".into()));
        assert!(half.contains("--tls-key"), "{half}");
        assert!(refusal(|config| config.tls = Some("yes".to_owned())).contains("self-signed"));
        let unset = refusal(|config| config.read_token_env = Some("NO_SUCH_TOKEN".to_owned()));
        assert!(unset.contains("NO_SUCH_TOKEN"), "{unset}");
    }

    #[test]
    fn a_token_that_is_easy_to_guess_or_cannot_be_sent_is_an_error() {
        for (token, why) in [
            ("x", "its length is 1, but must be at least 16"),
            (
                "0123456789abcde",
                "its length is 15, but must be at least 16",
            ),
            ("aaaaaaaaaaaaaaaaaaaaaaaa", "too few different"),
            ("abababababababababababab", "too few different"),
            ("a pass phrase of words", "clients cannot send"),
            ("schlüsselschlüssel", "clients cannot send"),
        ] {
            let said = weakness(token).expect("refused");
            assert!(said.contains(why), "{token}: {said}");
        }
        for token in ["0123456789abcdef", &random_secret().expect("random")] {
            assert_eq!(weakness(token), None, "{token}");
        }
    }

    #[test]
    fn a_secret_is_long_and_only_its_user_can_read_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let secret = random_secret().expect("random");
        assert_eq!(secret.len(), 64);
        assert_ne!(secret, random_secret().expect("random"));
        write_private(&path, &secret).expect("written");
        let mode = path.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(
            write_private(&path, &secret).is_err(),
            "an existing file is not overwritten"
        );
    }

    #[test]
    fn an_address_has_a_port() {
        assert!(listen_address("127.0.0.1:0").is_ok());
        assert!(listen_address("127.0.0.1").is_err());
        assert!(listen_address("").is_err());
    }
}
