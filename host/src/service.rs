//! How runs are served: where, to whom, and as whom.

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

/// Characters that a server's token has at least, and how many different ones.
const SHORTEST_TOKEN: usize = 16;
const LEAST_DIFFERENT: usize = 6;

/// Tells what the owner of a server should know. It may be called on any thread.
pub(crate) type Warn = Box<dyn Fn(String) + Send + Sync>;

/// The one value of `tls`.
const SELF_SIGNED: &str = "self-signed";

/// The arguments of the service, checked.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) listen: SocketAddr,
    access: Access,
    tls: Tls,
    /// The arguments as they were given, for `run.toml`. They name secrets and hold none.
    given: Table,
}

#[derive(Clone, Debug)]
enum Tls {
    None,
    SelfSigned,
    Files(TlsIdentity),
}

/// A server at work, and how its clients know it.
pub(crate) struct Served {
    pub(crate) serving: Serving,
    pub(crate) fingerprint: Option<Fingerprint>,
    takes_token: bool,
    /// The runs' folder, if it is a run's own process that serves.
    of_run_in: Option<PathBuf>,
}

impl Served {
    /// The address, and what a client needs beside it.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("gRPC at {}", self.serving.addr())];
        lines.extend(self.clients());
        lines
    }

    /// What a client needs beside the address, in lines: the certificate's fingerprint; without one and
    /// without a token, TensorBoard's command, which can give neither. The address of a run's own process
    /// goes with it, so it is told what shows the run afterwards.
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
            format!("this address ends with the run; `host serve --runs {runs}` has one that stays")
        }));
        lines
    }
}

impl Service {
    /// # Errors
    /// An argument that cannot be right, or an environment variable that is not set.
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

    /// The environment variables that hold its tokens.
    pub(crate) fn token_variables(config: &HostConfig) -> impl Iterator<Item = String> {
        let names = [&config.read_token_env, &config.control_token_env];
        names.into_iter().flatten().cloned()
    }

    /// The arguments, for a configuration.
    pub(crate) fn as_table(&self) -> Table {
        self.given.clone()
    }

    /// Serves the runs of a folder, of which this process trains none.
    ///
    /// # Errors
    /// The address is taken, or no certificate can be made.
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

    /// Serves the run that this process trains, and puts into its folder what this user's clients need:
    /// the address, the control token if none was given, and a certificate that was made here.
    ///
    /// # Errors
    /// The address is taken, or the folder cannot be written.
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

    /// The certificate in the run's folder, so that a resumed run is known by the same fingerprint; a
    /// new one if there is none.
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

/// What an environment variable holds.
///
/// # Errors
/// It is not set, or empty.
pub(crate) fn secret(name: &str) -> Result<String> {
    let value = std::env::var(name).unwrap_or_default();
    match value.trim() {
        "" => Err(Error::new(
            ErrorKind::Config,
            format!("the environment variable {name} holds no token"),
        )
        .hint(format!("set it: export {name}=$(openssl rand -hex 32)"))),
        secret => Ok(secret.to_owned()),
    }
}

/// The token that a server asks for.
///
/// # Errors
/// As [`secret`]; it could be guessed, or no client could send it.
fn server_secret(name: &str) -> Result<String> {
    let secret = secret(name)?;
    match weakness(&secret) {
        None => Ok(secret),
        Some(why) => Err(Error::new(
            ErrorKind::Config,
            format!("the token in the environment variable {name} {why}"),
        )
        .hint(format!("make one: export {name}=$(openssl rand -hex 32)"))),
    }
}

/// Why a token is not good enough to keep others out.
fn weakness(secret: &str) -> Option<String> {
    let different = secret.bytes().collect::<BTreeSet<u8>>().len();
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("has characters that no client can send".to_owned());
    }
    if secret.len() < SHORTEST_TOKEN {
        let length = secret.len();
        return Some(format!(
            "is too short to be safe: {length} of at least {SHORTEST_TOKEN} characters"
        ));
    }
    (different < LEAST_DIFFERENT).then(|| "repeats too few characters to be safe".to_owned())
}

/// 256 bits of the system's, in hexadecimal.
fn random_secret() -> Result<String> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    fs::File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Error::io("make a token from", source, &e))?;
    Ok(hex(&bytes))
}

/// Writes a new file that only this user reads.
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

/// An address to listen at, from `ADDR:PORT`.
///
/// # Errors
/// It is not one, or names no address of this machine's resolver.
fn listen_address(text: &str) -> Result<SocketAddr> {
    let wrong = |why: String| {
        Error::new(
            ErrorKind::Config,
            format!("cannot listen at {text:?}: {why}"),
        )
        .hint("give an address and a port, as in 127.0.0.1:6006; port 0 is a free one")
    };
    text.to_socket_addrs()
        .map_err(|e| wrong(e.to_string()))?
        .next()
        .ok_or_else(|| wrong("it has no address".to_owned()))
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
    fn beyond_this_machine_takes_tls_and_a_token() {
        let open = |config: &mut HostConfig| config.listen = "0.0.0.0:0".to_owned();
        assert!(refusal(open).contains("--tls self-signed"));
        let with_tls = |config: &mut HostConfig| {
            open(config);
            config.tls = Some(SELF_SIGNED.to_owned());
        };
        assert!(refusal(with_tls).contains("--read-token-env"));
    }

    #[test]
    fn half_a_certificate_and_a_token_that_is_not_there_are_refused() {
        let half = refusal(|config| config.tls_cert = Some("/c.pem".into()));
        assert!(half.contains("--tls-key"), "{half}");
        assert!(refusal(|config| config.tls = Some("yes".to_owned())).contains("self-signed"));
        let unset = refusal(|config| config.read_token_env = Some("NO_SUCH_TOKEN".to_owned()));
        assert!(unset.contains("NO_SUCH_TOKEN"), "{unset}");
    }

    #[test]
    fn a_token_that_can_be_guessed_or_not_be_sent_is_refused() {
        for (token, why) in [
            ("x", "1 of at least 16 characters"),
            ("0123456789abcde", "15 of at least 16 characters"),
            ("aaaaaaaaaaaaaaaaaaaaaaaa", "repeats"),
            ("abababababababababababab", "repeats"),
            ("a pass phrase of words", "no client can send"),
            ("schlüsselschlüssel", "no client can send"),
        ] {
            let said = weakness(token).expect("refused");
            assert!(said.contains(why), "{token}: {said}");
        }
        for token in ["0123456789abcdef", &random_secret().expect("random")] {
            assert_eq!(weakness(token), None, "{token}");
        }
    }

    #[test]
    fn a_secret_is_long_and_only_its_users() {
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
            "never into another's file"
        );
    }

    #[test]
    fn an_address_has_a_port() {
        assert!(listen_address("127.0.0.1:0").is_ok());
        assert!(listen_address("127.0.0.1").is_err());
        assert!(listen_address("").is_err());
    }
}
