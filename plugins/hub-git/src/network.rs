//! Connection settings: the trusted certificate authorities and the proxy. Git and the built-in client use
//! the same settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, PemItem, RootCerts};

use crate::git::Git;
use crate::proxy::{self, Proxies};
use crate::remote::{Kind, Remote};
use crate::{Config, Error, Result};

/// The connection settings from the configuration, the environment and the user's git configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network {
    authorities: Authorities,
    proxies: Proxies,
    /// The remote's URL, if it uses HTTP.
    url: Option<String>,
    /// The command that git runs for ssh.
    ssh: Option<String>,
    /// The folders in the user's `safe.directory`: trusted repositories that belong to other users.
    safe: Vec<String>,
}

/// The trusted certificate authorities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Authorities {
    /// The system's authorities.
    #[default]
    System,
    /// The authorities in a file, and in the files of several folders. The paths in `folders` are separated
    /// by colons.
    Named {
        file: Option<PathBuf>,
        folders: Option<String>,
    },
}

/// Environment variables that name a file of authorities. If several are set, the first in this list is used.
/// The list begins with the variables that users set by hand. `REQUESTS_CA_BUNDLE` can also name a folder, as
/// in the Python package requests.
const FILES: [&str; 3] = ["CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"];

impl Network {
    /// Finds the settings for a remote. Reads only connection settings from the user's git configuration.
    ///
    /// # Errors
    /// Returns an error if a file of certificate authorities cannot be read, or the URL of a proxy is not
    /// valid.
    pub(crate) fn find(
        git: &Git,
        config: &Config,
        remote: &Remote,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let url = remote.origin().map(|_| remote.url().to_owned());
        let ssh = match remote.kind() {
            Kind::Ssh => git.ask_user(["--get", "core.sshCommand"])?,
            _ => None,
        };
        let safe = match remote.kind() {
            Kind::Local => git.ask_user(["--get-all", "safe.directory"])?,
            _ => None,
        };
        let network = Self {
            authorities: match remote.kind() {
                Kind::Local => Authorities::System,
                _ => Authorities::find(git, config, url.as_deref(), env)?,
            },
            proxies: match remote.kind() {
                Kind::Local => Proxies::find(config.proxy.clone(), env),
                _ => {
                    let fixed = match &config.proxy {
                        Some(proxy) => Some(proxy.clone()),
                        None => of_git(git, "http.proxy", url.as_deref(), &[])?,
                    };
                    Proxies::find(fixed, env)
                }
            },
            url,
            ssh: ssh.filter(|command| !command.is_empty()),
            safe: safe
                .map(|list| list.lines().map(str::to_owned).collect())
                .unwrap_or_default(),
        };
        if config.proxy.as_deref().is_some_and(holds_password) {
            let words = "the setting proxy contains a password, which would be recorded: \
                         remove the setting, and set the variable https_proxy or http_proxy to the URL";
            return Err(Error::Permanent(words.to_owned()));
        }
        network.root_certs()?;
        if let Some(proxy) = network.url.as_deref().and_then(|url| network.proxy(url)) {
            proxy::parsed(proxy)?;
        }
        Ok(network)
    }

    /// Creates settings that send all requests through one proxy.
    #[cfg(feature = "fuzz")]
    pub(crate) fn through(proxy: &str) -> Self {
        Self {
            proxies: Proxies::find(Some(proxy.to_owned()), &|_| None),
            ..Self::default()
        }
    }

    /// Returns the proxy for requests to a URL. Returns `None` if they are sent directly.
    pub(crate) fn proxy(&self, url: &str) -> Option<&str> {
        self.proxies.of(url)
    }

    /// Returns the user's `core.sshCommand`, if it is set.
    pub(crate) fn ssh(&self) -> Option<&str> {
        self.ssh.as_deref()
    }

    /// Returns the values of the user's `safe.directory`. An empty value cancels the values before it.
    pub(crate) fn safe_directories(&self) -> &[String] {
        &self.safe
    }

    /// Whether [`Self::git_config`] sets a proxy for git, or disables git's proxy.
    pub(crate) fn has_decided(&self) -> bool {
        self.url.is_some()
    }

    /// Returns the environment variables that set git's certificate authorities.
    pub(crate) fn git_env(&self) -> Vec<(&'static str, String)> {
        let Authorities::Named { file, folders } = &self.authorities else {
            return Vec::new();
        };
        let file = file
            .as_deref()
            .map(|path| ("GIT_SSL_CAINFO", path.to_string_lossy().into_owned()));
        let folders = folders.clone().map(|folders| ("GIT_SSL_CAPATH", folders));
        file.into_iter().chain(folders).collect()
    }

    /// Returns the configuration that sets git's proxy.
    pub(crate) fn git_config(&self) -> Option<(String, String)> {
        let url = self.url.as_deref()?;
        let proxy = self.proxy(url).unwrap_or_default();
        Some(("http.proxy".to_owned(), proxy.to_owned()))
    }

    /// Returns the certificate authorities for the built-in client.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or contains no certificate. If there is no file, returns
    /// an error if the folders contain no certificate.
    pub(crate) fn root_certs(&self) -> Result<RootCerts> {
        let Authorities::Named { file, folders } = &self.authorities else {
            return Ok(RootCerts::PlatformVerifier);
        };
        let mut certificates = Vec::new();
        if let Some(path) = file {
            let found = read(path).map_err(|error| cannot_read(path, &error.to_string()))?;
            if found.is_empty() {
                return Err(cannot_read(path, "it contains no certificate"));
            }
            certificates.extend(found);
        }
        for folder in folders.iter().flat_map(|folders| folders.split(':')) {
            let Ok(entries) = std::fs::read_dir(folder) else {
                continue;
            };
            for entry in entries.flatten() {
                certificates.extend(read(&entry.path()).unwrap_or_default());
            }
        }
        if certificates.is_empty() {
            let folders = folders.clone().unwrap_or_default();
            return Err(cannot_read(
                Path::new(&folders),
                "it contains no certificate",
            ));
        }
        Ok(RootCerts::Specific(Arc::new(certificates)))
    }
}

impl Authorities {
    /// Returns the authorities from the first source that sets them. The sources are, in this order: the
    /// plugin's configuration, the settings for git, and the environment variables for programs in general.
    fn find(
        git: &Git,
        config: &Config,
        url: Option<&str>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let named = |file: Option<String>, folders: Option<String>| {
            let file = file.map(PathBuf::from);
            // Some variables can name either a file or a folder.
            match file {
                Some(path) if path.is_dir() => Self::Named {
                    file: None,
                    folders: Some(path.to_string_lossy().into_owned()),
                },
                file => Self::Named { file, folders },
            }
        };
        if let Some(path) = &config.ca_file {
            return Ok(named(Some(path.clone()), None));
        }
        let as_path = ["--type=path"];
        let file = match env("GIT_SSL_CAINFO") {
            Some(path) => Some(path),
            None => of_git(git, "http.sslCAInfo", url, &as_path)?,
        };
        let folder = match env("GIT_SSL_CAPATH") {
            Some(path) => Some(path),
            None => of_git(git, "http.sslCAPath", url, &as_path)?,
        };
        if file.is_some() || folder.is_some() {
            return Ok(named(file, folder));
        }
        let file = FILES.iter().copied().find_map(env);
        match (file, env("SSL_CERT_DIR")) {
            (None, None) => Ok(Self::System),
            (file, folders) => Ok(named(file, folders)),
        }
    }
}

/// Reads a value of the user's git configuration. If `url` is given, reads the value for this URL.
fn of_git(git: &Git, key: &str, url: Option<&str>, more: &[&str]) -> Result<Option<String>> {
    let args = more.iter().copied();
    match url {
        Some(url) => git.ask_user(args.chain(["--get-urlmatch", key, url])),
        None => git.ask_user(args.chain(["--get", key])),
    }
}

/// Reads the certificates in a file. Other PEM items are ignored.
fn read(path: &Path) -> std::io::Result<Vec<Certificate<'static>>> {
    let pem = std::fs::read(path)?;
    let certificates = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    Ok(certificates.collect())
}

fn holds_password(proxy: &str) -> bool {
    let rest = proxy.split_once("://").map_or(proxy, |(_, rest)| rest);
    rest.rsplit_once('@')
        .is_some_and(|(user, _)| user.contains(':'))
}

fn cannot_read(path: &Path, why: &str) -> Error {
    Error::Permanent(format!(
        "cannot read the certificate authorities (ca_file, or a variable such as SSL_CERT_FILE): {why}: {}",
        path.display()
    ))
}
