use std::path::PathBuf;

use crate::{Error, Result};

/// The Hub, unless `HF_ENDPOINT` names another.
const HUB: &str = "https://huggingface.co";

/// Where checkpoints are pushed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    kind: Kind,
    /// What git is given. Never holds credentials.
    url: String,
    /// The user name that stood in the URL.
    user: Option<String>,
    /// Where the Hub's API is. `None` unless the remote is on the Hub.
    endpoint: Option<String>,
}

/// Where a remote over SSH is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SshAddress {
    /// `git@host`
    pub(crate) host: String,
    pub(crate) port: Option<String>,
    pub(crate) path: String,
}

/// A model on the Hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HubName<'a> {
    /// `https://huggingface.co`
    pub(crate) endpoint: &'a str,
    /// A user or an organization.
    pub(crate) owner: &'a str,
    pub(crate) name: &'a str,
}

/// What speaks at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The Hugging Face Hub, over HTTP.
    Hub,
    /// A git server over HTTP.
    Http,
    /// A git server over SSH.
    Ssh,
    /// A repository on this machine's file systems.
    Local,
}

impl Remote {
    /// Understands the `repo` of the configuration. `hub` is the value of `HF_ENDPOINT`, if set.
    ///
    /// # Errors
    /// Says what is wrong with it. A URL that holds a password is refused and not repeated.
    pub(crate) fn parse(repo: &str, hub: Option<&str>) -> Result<Self> {
        let hub = hub.unwrap_or(HUB).trim_end_matches('/');
        if repo.is_empty() || repo.starts_with('-') || repo.chars().any(char::is_control) {
            return Err(Error::Permanent(format!("{repo:?} is no git repository")));
        }
        if let Some(name) = repo.strip_prefix("hf:") {
            return if is_hub_name(name) {
                Self::on_hub(hub, name)
            } else {
                let words = format!("{name:?} is no repository of the Hub: write hf:USER/NAME");
                Err(Error::Permanent(words))
            };
        }
        match repo.split_once("://") {
            Some(("http" | "https", _)) => Self::http(repo, hub),
            Some(("ssh", rest)) => Self::ssh(repo, rest),
            Some(("file", path)) => Self::local(path),
            Some((scheme, _)) => Err(Error::Permanent(format!(
                "cannot push over {scheme}: use https, ssh, or the path of a repository"
            ))),
            None if is_hub_name(repo) => Self::on_hub(hub, repo),
            None => match repo.split_once(':') {
                // `helper::address` would let git run any program.
                Some((_, rest)) if rest.starts_with(':') => Err(Error::Permanent(format!(
                    "cannot push by a remote helper: use https, ssh, or the path of a repository: {repo}"
                ))),
                // `git@host:path`, unless a slash says that the colon is part of a path.
                Some((host, _)) if !host.contains('/') => Self::ssh(repo, repo),
                _ => Self::local(repo),
            },
        }
    }

    /// What speaks at the other end.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The URL or path, without credentials.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The user name for basic authentication. The Hub looks at the token alone.
    pub(crate) fn user(&self) -> &str {
        self.user.as_deref().unwrap_or("user")
    }

    /// `https://host:port/`: where the token may go. `None` unless the remote speaks HTTP.
    pub(crate) fn origin(&self) -> Option<&str> {
        origin(&self.url)
    }

    /// The model that the remote is on the Hub. `None` for other remotes, data sets and spaces.
    pub(crate) fn hub_name(&self) -> Option<HubName<'_>> {
        let endpoint = self.endpoint.as_deref()?;
        let path = match self.url.strip_prefix(endpoint) {
            Some(path) => path,
            None => &self.url[self.origin()?.len()..],
        };
        let path = path.trim_matches('/').trim_end_matches(".git");
        let (owner, name) = path.split_once('/')?;
        is_hub_name(path).then_some(HubName {
            endpoint,
            owner,
            name,
        })
    }

    /// Where the remote is, if it speaks SSH.
    pub(crate) fn ssh_address(&self) -> Option<SshAddress> {
        if self.kind != Kind::Ssh {
            return None;
        }
        let (authority, path) = match self.url.strip_prefix("ssh://") {
            // git-lfs has it without the slash between host and path.
            Some(rest) => rest.split_once('/')?,
            None => {
                let (host, path) = self.url.split_once(':')?;
                return Some(SshAddress {
                    host: host.to_owned(),
                    port: None,
                    path: path.to_owned(),
                });
            }
        };
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (format!("{user}@"), host),
            None => (String::new(), authority),
        };
        // An address of IP version 6 has colons, and brackets that ssh does not want.
        let (host, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => host
                .split_once(':')
                .map_or((host, None), |(host, port)| (host, Some(port))),
        };
        Some(SshAddress {
            host: format!("{user}{host}"),
            port: port.filter(|port| !port.is_empty()).map(str::to_owned),
            path: path.to_owned(),
        })
    }

    /// The LFS server's URL by git-lfs's rule. `None` unless the remote speaks HTTP.
    pub(crate) fn lfs_url(&self) -> Option<String> {
        self.origin()?;
        let repo = self.url.trim_end_matches('/').trim_end_matches(".git");
        Some(format!("{repo}.git/info/lfs"))
    }

    fn on_hub(hub: &str, name: &str) -> Result<Self> {
        Self::http(&format!("{hub}/{name}"), hub)
    }

    fn http(url: &str, hub: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if user.is_some_and(|user| user.contains(':')) || path.contains(['?', '#']) {
            return Err(holds_password());
        }
        if host.is_empty() || path.is_empty() {
            let words = format!("no repository is named: {scheme}://{host}/{path}");
            return Err(Error::Permanent(words));
        }
        let url = format!("{scheme}://{host}/{}", path.trim_end_matches('/'));
        let on_hub = origin(&url) == origin(&format!("{hub}/"))
            || matches!(host, "huggingface.co" | "hf.co") && scheme == "https";
        let endpoint = on_hub.then_some(match host {
            // The one is a short name of the other, and only leads there.
            "hf.co" | "huggingface.co" => HUB,
            _ => hub,
        });
        Ok(Self {
            kind: if on_hub { Kind::Hub } else { Kind::Http },
            url,
            user: user.map(str::to_owned),
            endpoint: endpoint.map(str::to_owned),
        })
    }

    fn ssh(url: &str, rest: &str) -> Result<Self> {
        // ssh would take such a host for an option.
        let authority = rest.split(['/', ':']).next().unwrap_or_default();
        if authority.split('@').any(|part| part.starts_with('-')) {
            return Err(Error::Permanent(format!("{url:?} is no git repository")));
        }
        let user = rest.split_once('@').map(|(user, _)| user);
        if user.is_some_and(|user| user.contains(':')) {
            return Err(holds_password());
        }
        Ok(Self {
            kind: Kind::Ssh,
            url: url.to_owned(),
            user: None,
            endpoint: None,
        })
    }

    fn local(path: &str) -> Result<Self> {
        // Git runs in a folder of its own, so the path must not depend on where the host runs.
        let path = std::path::absolute(PathBuf::from(path))
            .map_err(|error| Error::io("resolve", path.as_ref(), &error))?;
        Ok(Self {
            kind: Kind::Local,
            url: path.to_string_lossy().into_owned(),
            user: None,
            endpoint: None,
        })
    }
}

/// `https://host:port/` of a URL over HTTP.
pub(crate) fn origin(url: &str) -> Option<&str> {
    let after = url.find("://").map(|at| at + 3)?;
    if !matches!(&url[..after], "http://" | "https://") {
        return None;
    }
    let slash = url[after..].find('/')?;
    Some(&url[..=after + slash])
}

/// `user/name`, which means the Hub; a path of that shape is written `./user/name`.
fn is_hub_name(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    text.split_once('/')
        .is_some_and(|(user, name)| part(user) && part(name))
}

fn holds_password() -> Error {
    Error::Permanent(
        "the repository's URL holds a password or a query: \
         put the token into an environment variable and name it by token_env"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(repo: &str) -> Remote {
        Remote::parse(repo, None).expect("a remote")
    }

    #[test]
    fn each_way_to_write_a_remote() {
        for (repo, kind, url) in [
            ("ann/gpt", Kind::Hub, "https://huggingface.co/ann/gpt"),
            (
                "hf:ann/gpt.2",
                Kind::Hub,
                "https://huggingface.co/ann/gpt.2",
            ),
            ("https://hf.co/ann/gpt/", Kind::Hub, "https://hf.co/ann/gpt"),
            (
                "https://ann@example.org/r.git",
                Kind::Http,
                "https://example.org/r.git",
            ),
            ("http://[::1]:80/r", Kind::Http, "http://[::1]:80/r"),
            ("git@example.org:a/b", Kind::Ssh, "git@example.org:a/b"),
            (
                "ssh://git@example.org/a",
                Kind::Ssh,
                "ssh://git@example.org/a",
            ),
            ("file:///srv/r.git", Kind::Local, "/srv/r.git"),
            ("/srv/a:b", Kind::Local, "/srv/a:b"),
        ] {
            let remote = parse(repo);
            assert_eq!((remote.kind(), remote.url()), (kind, url), "{repo}");
        }
        let relative = parse("./ann/gpt");
        assert_eq!(relative.kind(), Kind::Local);
        assert!(relative.url().starts_with('/'));
        assert_eq!(parse("https://ann@example.org/r").user(), "ann");
    }

    #[test]
    fn another_hub_is_the_hub_too() {
        let remote = Remote::parse("ann/gpt", Some("http://127.0.0.1:8080/")).expect("a remote");
        assert_eq!(remote.kind(), Kind::Hub);
        assert_eq!(remote.url(), "http://127.0.0.1:8080/ann/gpt");
        assert_eq!(remote.origin(), Some("http://127.0.0.1:8080/"));
    }

    #[test]
    fn a_model_on_the_hub_has_an_owner_and_a_name() {
        let hub = "http://127.0.0.1:80/hub";
        for (repo, expected) in [
            ("ann/gpt", Some((HUB, "ann", "gpt"))),
            ("https://hf.co/ann/gpt.git", Some((HUB, "ann", "gpt"))),
            ("https://huggingface.co/datasets/ann/code", None),
            ("https://example.org/ann/gpt", None),
            ("/srv/ann/gpt", None),
        ] {
            let remote = parse(repo);
            let name = remote.hub_name();
            let name = name.map(|name| (name.endpoint, name.owner, name.name));
            assert_eq!(name, expected, "{repo}");
        }
        let remote = Remote::parse("ann/gpt", Some(hub)).expect("a remote");
        let name = remote.hub_name().expect("a name");
        assert_eq!((name.endpoint, name.owner, name.name), (hub, "ann", "gpt"));
    }

    #[test]
    fn a_remote_over_ssh_has_an_address() {
        for (repo, expected) in [
            ("git@hf.co:ann/gpt", ("git@hf.co", None, "ann/gpt")),
            ("hub:/srv/gpt.git", ("hub", None, "/srv/gpt.git")),
            ("ssh://git@hf.co/ann/gpt", ("git@hf.co", None, "ann/gpt")),
            ("ssh://hf.co:2222/a.git", ("hf.co", Some("2222"), "a.git")),
            ("ssh://git@[::1]:22/a/b", ("git@::1", Some("22"), "a/b")),
        ] {
            let address = parse(repo).ssh_address().expect("an address");
            let port = address.port.as_deref();
            let found = (&*address.host, port, &*address.path);
            assert_eq!(found, expected, "{repo}");
        }
        assert_eq!(parse("ann/gpt").ssh_address(), None);
    }

    #[test]
    fn what_is_no_remote_is_refused() {
        for bad in [
            "",
            "-u",
            "a\nb",
            "hf:gpt",
            "https://example.org",
            "ext::sh -c x",
            "ftp://x/y",
            "ssh://-oProxyCommand=x/y",
            "git@-oProxyCommand=x:y",
        ] {
            let result = Remote::parse(bad, None);
            assert!(matches!(result, Err(Error::Permanent(_))), "{bad}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for bad in [
            "https://ann:hunter2@example.org/r",
            "https://example.org/r?token=hunter2",
            "ssh://ann:hunter2@example.org/r",
        ] {
            let error = Remote::parse(bad, None).expect_err("refused");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_lfs_server_lies_beside_the_repository() {
        let url = |repo: &str| parse(repo).lfs_url();
        let expected = Some("https://example.org/a/b.git/info/lfs".to_owned());
        assert_eq!(url("https://example.org/a/b"), expected);
        assert_eq!(url("https://example.org/a/b.git"), expected);
        assert_eq!(url("git@example.org:a/b"), None);
    }
}
