//! Finds a remote's Git LFS server and the credentials for it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::git::Git;
use crate::limit::Limit;
use crate::publisher::Publisher;
use crate::refusal;
use crate::remote::{self, Remote, SshAddress};
use crate::token::Token;
use crate::{Error, Result, http};

/// A Git LFS server.
#[derive(Debug)]
pub(crate) struct LfsServer {
    /// `https://host/user/name.git/info/lfs`
    pub(crate) url: String,
    /// The header of each request to this server. It contains a secret, so it must not be sent to another
    /// server.
    pub(crate) header: BTreeMap<String, String>,
    /// True if two conditions hold: the branch's `.lfsconfig` names this LFS server, and the remote is on
    /// another server.
    is_foreign: bool,
}

/// The output of `git-lfs-authenticate`, which runs on the server over ssh.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

impl LfsServer {
    /// Returns the LFS server of a remote. Returns `None` if the remote is a folder. `operation` is `upload`
    /// or `download`. `lfs_config` is the branch's `.lfsconfig`, which may name another server. A remote over
    /// SSH is asked for its LFS server and for the header, which expires soon.
    ///
    /// # Errors
    /// Returns an error if the `.lfsconfig` is not usable, or if a remote over SSH cannot be reached or has
    /// no LFS server.
    pub(crate) fn of(
        publisher: &Publisher,
        operation: &str,
        lfs_config: Option<&str>,
        limit: &Limit<'_>,
    ) -> Result<Option<Self>> {
        let Publisher {
            remote, token, git, ..
        } = publisher;
        if let Some(text) = lfs_config
            && let Some(named) = named(git, text, operation, limit)?
        {
            return Self::named(publisher, &named, operation, limit).map(Some);
        }
        if let Some(url) = remote.lfs_url() {
            return Ok(Some(Self::over_http(url, token.as_ref())));
        }
        match remote.ssh_address() {
            Some(address) => Self::over_ssh(git, remote, &address, operation, limit).map(Some),
            None => Ok(None),
        }
    }

    /// Returns the LFS server that a branch's `.lfsconfig` names. The remote's token is sent to the LFS
    /// server only if the remote itself is on that server. If the token were sent to any named server, anyone
    /// who can push to the branch could obtain it.
    fn named(
        publisher: &Publisher,
        named: &str,
        operation: &str,
        limit: &Limit<'_>,
    ) -> Result<Self> {
        let Publisher {
            remote: repository,
            token,
            lfs_token,
            git,
            ..
        } = publisher;
        let cannot = |why: &str| {
            let url = repository.url();
            Error::Permanent(format!("the branch's .lfsconfig names {why}: {url}"))
        };
        let Some(origin) = remote::origin(named) else {
            let server = Remote::parse(named, &|_| None)
                .map_err(|error| cannot(&format!("an invalid LFS server: {error}")))?;
            return match server.ssh_address() {
                Some(address) => Self::over_ssh(git, &server, &address, operation, limit),
                None => Err(cannot(
                    "a folder for LFS objects, which only git-lfs can use",
                )),
            };
        };
        if origin.contains('@') {
            return Err(cannot(
                "an LFS server with credentials in its URL, which is not supported",
            ));
        }
        let url = named.trim_end_matches('/').to_owned();
        let is_foreign = http::server(&url) != http::server(repository.url());
        let token = if is_foreign { lfs_token } else { token };
        Ok(Self {
            is_foreign,
            ..Self::over_http(url, token.as_ref())
        })
    }

    fn over_http(url: String, token: Option<&Token>) -> Self {
        let authorization = token.map(|token| {
            let value = token.authorization().to_owned();
            ("Authorization".to_owned(), value)
        });
        Self::over_http_with(url, authorization.into_iter().collect())
    }

    /// Creates an LFS server from its URL and the header for its requests.
    pub(crate) fn over_http_with(url: String, header: BTreeMap<String, String>) -> Self {
        Self {
            url,
            header,
            is_foreign: false,
        }
    }

    /// If a request was refused because it had no token, the returned error explains why the token is
    /// missing.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error {
            Error::Permanent(words) if self.is_foreign && self.header.is_empty() => {
                Error::Permanent(format!(
                    "{words}: the branch's .lfsconfig names this server, and the repository's token is not sent there: set lfs_token_env to the name of the variable that contains a token for this server"
                ))
            }
            other => other,
        }
    }

    fn over_ssh(
        git: &Git,
        remote: &Remote,
        address: &SshAddress,
        operation: &str,
        limit: &Limit<'_>,
    ) -> Result<Self> {
        let path = quoted(&address.path);
        let asked = format!("git-lfs-authenticate {path} {operation}");
        let mut args = Vec::new();
        if let Some(port) = &address.port {
            args.extend(["-p", port]);
        }
        args.extend([&*address.host, &asked]);
        let output = git.ssh(&args).run(limit)?;
        let unknown = output.status.code() == Some(127);
        let said = output.success().map_err(|stderr| {
            if unknown || stderr.contains("command not found") {
                no_lfs(remote, &refusal::words(&stderr))
            } else {
                refusal::judge(&stderr, "get Git LFS access from", remote)
            }
        })?;
        let answer: Answer = serde_json::from_slice(&said)
            .map_err(|error| no_lfs(remote, &format!("its response is not valid JSON: {error}")))?;
        let url = match answer.href.trim_end_matches('/') {
            // If there is no URL, use the default LFS server that the specification of Git LFS defines for
            // the remote.
            "" => {
                let (_, host) = address.host.rsplit_once('@').unwrap_or(("", &address.host));
                let path = address
                    .path
                    .trim_start_matches('/')
                    .trim_end_matches(".git");
                format!("https://{host}/{path}.git/info/lfs")
            }
            href => href.to_owned(),
        };
        Ok(Self::over_http_with(url, answer.header))
    }
}

/// Returns the LFS server that a `.lfsconfig` names. The keys have the same precedence as in git-lfs.
fn named(git: &Git, text: &str, operation: &str, limit: &Limit<'_>) -> Result<Option<String>> {
    let args = ["config", "--file", "-", "--null", "--list"];
    // `Call::run` treats empty input as no input.
    if text.trim().is_empty() {
        return Ok(None);
    }
    let output = git.call(args).stdin(text.as_bytes()).run(limit)?;
    let listed = output.success().map_err(|stderr| {
        let words = refusal::words(&stderr);
        Error::Permanent(format!("cannot read the branch's .lfsconfig: {words}"))
    })?;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let value = |key: &str| {
        let mut pairs = listed.split('\0').filter_map(|pair| pair.split_once('\n'));
        let value = pairs.rfind(|(there, _)| *there == key)?.1;
        (!value.is_empty()).then(|| value.to_owned())
    };
    let keys: &[&str] = match operation {
        "upload" => &[
            "lfs.pushurl",
            "lfs.url",
            "remote.origin.lfspushurl",
            "remote.origin.lfsurl",
        ],
        _ => &["lfs.url", "remote.origin.lfsurl"],
    };
    Ok(keys.iter().find_map(|key| value(key)))
}

fn no_lfs(remote: &Remote, words: &str) -> Error {
    Error::Permanent(format!(
        "the server does not support Git LFS over ssh: use the repository's https URL, or lfs = \"never\": {}: {words}",
        remote.url()
    ))
}

/// Quotes a path as one word for the remote shell. Simple paths are not quoted, because some servers parse
/// the command without a shell.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-~+".contains(c);
    if path.chars().all(is_plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word() {
        assert_eq!(quoted("ann/gpt-2.git"), "ann/gpt-2.git");
        assert_eq!(quoted("my models/a'b; x"), r"'my models/a'\''b; x'");
    }
}
