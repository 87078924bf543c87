//! Where a remote's Git LFS server is, and how it is asked.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::limit::Limit;
use crate::publisher::Publisher;
use crate::refusal;
use crate::remote::Remote;
use crate::{Error, Result};

/// A Git LFS server.
pub(crate) struct LfsServer {
    /// `https://host/user/name.git/info/lfs`
    pub(crate) url: String,
    /// What goes along with each request to it, and to nobody else: it holds a secret.
    pub(crate) header: BTreeMap<String, String>,
}

/// What `git-lfs-authenticate` says on the server's side of ssh.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

impl LfsServer {
    /// The server of a remote for `upload` or `download`, or `None` if the remote is a folder, which has
    /// none. A remote over SSH is asked for it; what it answers is good for a short time.
    ///
    /// # Errors
    /// A remote over SSH gives none, or cannot be asked.
    pub(crate) fn of(
        publisher: &Publisher,
        operation: &str,
        limit: &Limit<'_>,
    ) -> Result<Option<Self>> {
        let Publisher {
            remote, token, git, ..
        } = publisher;
        if let Some(url) = remote.lfs_url() {
            let authorization = token.as_ref().map(|token| {
                let value = token.authorization().to_owned();
                ("Authorization".to_owned(), value)
            });
            let header = authorization.into_iter().collect();
            return Ok(Some(Self { url, header }));
        }
        let Some(address) = remote.ssh_address() else {
            return Ok(None);
        };
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
                refusal::judge(&stderr, "ask for Git LFS at", remote)
            }
        })?;
        let answer: Answer = serde_json::from_slice(&said)
            .map_err(|error| no_lfs(remote, &format!("its answer is no JSON: {error}")))?;
        let url = match answer.href.trim_end_matches('/') {
            // The specification's guess.
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
        Ok(Some(Self {
            url,
            header: answer.header,
        }))
    }
}

fn no_lfs(remote: &Remote, words: &str) -> Error {
    Error::Permanent(format!(
        "the server gives no Git LFS over ssh: use the repository's https URL, or lfs = \"never\": {}: {words}",
        remote.url()
    ))
}

/// A path as one word for the shell at the other end. Plain where it can be: servers that know no shell
/// read this by themselves.
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
