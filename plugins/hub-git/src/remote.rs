use std::path::Path;
use std::sync::OnceLock;

use crate::page;
use crate::{Error, Result};

/// The Hub's URL, unless `HF_ENDPOINT` sets another.
const HUB: &str = "https://huggingface.co";

/// The Hub's host names. The second and the third redirect to the first.
const HUB_HOSTS: [&str; 3] = ["huggingface.co", "hf.co", "www.huggingface.co"];

/// Hosts that are recognized in a URL without a scheme.
const KNOWN_HOSTS: [&str; 4] = ["github.com", "gitlab.com", "bitbucket.org", "codeberg.org"];

/// The repository that checkpoints are pushed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    kind: Kind,
    /// The URL or path for git. Never contains credentials.
    url: String,
    /// The URL that the server redirected to, if the repository has moved.
    moved_to: OnceLock<String>,
    /// The user name in the configured URL.
    user: Option<String>,
    /// The base URL of the Hub's API. `None` unless the remote is on the Hub, over HTTP.
    endpoint: Option<String>,
    /// Whether the repository is on the Hub, over HTTP or SSH.
    on_hub: bool,
    /// The branch, tag or commit in the URL, as in `https://huggingface.co/me/m/tree/run-1`.
    revision: Option<String>,
}

/// The address of a remote over SSH.
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

/// The kind of a remote.
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
    /// Parses the setting `repo`. `env` returns the value of an environment variable: `HF_ENDPOINT` sets
    /// another Hub, and `HOME` replaces `~`.
    ///
    /// # Errors
    /// Returns an error if the text is not a repository, or if it contains a password. The error does not
    /// contain the password.
    pub(crate) fn parse(repo: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let hub = env("HF_ENDPOINT").filter(|hub| !hub.is_empty());
        let hub = hub.as_deref().unwrap_or(HUB).trim_end_matches('/');
        let repo = repo.trim();
        // `hub:` is a prefix, as in `--model`. In `hub:/path`, however, `hub` is an SSH host.
        let named = repo
            .strip_prefix("hub:")
            .filter(|name| !name.starts_with('/'));
        let repo = named.unwrap_or(repo);
        if repo.is_empty() || repo.starts_with('-') || repo.chars().any(char::is_control) {
            return Err(refuse(&format!("{repo:?} is not a git repository")));
        }
        if repo.starts_with('~') {
            return Self::at_home(repo, env("HOME").as_deref());
        }
        if let Some((scheme, rest)) = repo.split_once("://") {
            return match scheme.to_ascii_lowercase().as_str() {
                "http" | "https" => Self::http(repo, hub),
                "hf" => Self::hf(rest, hub),
                "ssh" => Self::ssh(&format!("ssh://{rest}"), rest),
                "file" => Self::file(rest),
                scheme => Err(refuse(&format!(
                    "cannot push over {scheme}: use https, ssh, or the path of a repository"
                ))),
            };
        }
        if let Some(name) = repo.strip_prefix("hf:") {
            return Self::hf(name, hub);
        }
        if let Some(path) = repo.strip_prefix("file:/") {
            return Self::local(&format!("/{}", path.trim_start_matches('/')));
        }
        if let Some((host, _)) = repo.split_once('/')
            && !Path::new(repo).exists()
        {
            let is = |known: &&str| host.eq_ignore_ascii_case(known);
            if HUB_HOSTS.iter().chain(&KNOWN_HOSTS).any(is) {
                return Self::http(&format!("https://{repo}"), hub);
            }
            if host.contains('@') && !host.contains(':') {
                let (_, path) = repo.split_once('/').unwrap_or_default();
                return Err(refuse(&format!(
                    "{repo} is neither a URL nor a path: write {host}:{path} for a repository over ssh"
                )));
            }
        }
        if is_hub_name(repo.trim_end_matches('/')) {
            return Self::hf(repo, hub);
        }
        match repo.split_once(':') {
            // `helper::address` would let git run any program.
            Some((_, rest)) if rest.starts_with(':') => Err(refuse(&format!(
                "remote helpers are not supported: use https, ssh, or the path of a repository: {repo}"
            ))),
            // `git@host:path`. If a slash precedes the colon, the whole text is a path.
            Some((host, _)) if !host.contains('/') => Self::ssh(repo, repo),
            _ => Self::local(repo),
        }
    }

    /// Returns the kind of the remote.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the remote is on the Hub, over HTTP or SSH. The Hub rejects large or binary files that are not
    /// stored with Git LFS.
    pub(crate) fn is_on_hub(&self) -> bool {
        self.on_hub
    }

    /// Returns the URL or path, without credentials: the new URL if the repository has moved.
    pub(crate) fn url(&self) -> &str {
        self.moved_to.get().unwrap_or(&self.url)
    }

    /// Returns the configured URL or path, without credentials.
    pub(crate) fn configured_url(&self) -> &str {
        &self.url
    }

    /// Sets the URL that the repository has moved to.
    pub(crate) fn move_to(&self, url: String) {
        // The URL can be set only once. If the repository moves again, the next process detects it.
        let _ = self.moved_to.set(url);
    }

    /// Returns the branch, tag or commit in the configured URL.
    pub(crate) fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// Returns the user name for basic authentication. The Hub checks only the token.
    pub(crate) fn user(&self) -> &str {
        self.user.as_deref().unwrap_or("user")
    }

    /// Returns `https://host:port/`, the only origin that the token is sent to. `None` unless the remote uses
    /// HTTP.
    pub(crate) fn origin(&self) -> Option<&str> {
        origin(self.url())
    }

    /// Returns the owner and name if the remote is a model on the Hub. Returns `None` for a data set, a
    /// space, or a remote that is not on the Hub.
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

    /// Returns the address, if the remote uses SSH.
    pub(crate) fn ssh_address(&self) -> Option<SshAddress> {
        if self.kind != Kind::Ssh {
            return None;
        }
        let (authority, path) = match self.url.strip_prefix("ssh://") {
            // git-lfs passes the path without the slash after the host.
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
        // An IPv6 address contains colons and is in brackets. ssh does not accept the brackets.
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

    /// Returns the default URL of the LFS server, as git-lfs derives it. `None` unless the remote uses HTTP.
    pub(crate) fn lfs_url(&self) -> Option<String> {
        self.origin()?;
        let repo = self.url().trim_end_matches('/').trim_end_matches(".git");
        Some(format!("{repo}.git/info/lfs"))
    }

    /// Parses `~/models/m.git`.
    fn at_home(repo: &str, home: Option<&str>) -> Result<Self> {
        match (
            repo.strip_prefix("~/"),
            home.filter(|home| !home.is_empty()),
        ) {
            (Some(rest), Some(home)) => Self::local(&format!("{home}/{rest}")),
            (Some(_), None) => Err(refuse(&format!(
                "cannot expand ~, because HOME is not set: write the full path: {repo}"
            ))),
            (None, _) => Err(refuse(&format!(
                "only ~/ is supported: write the full path, or ./{repo} for a folder of that name"
            ))),
        }
    }

    /// Parses `user/name`, optionally with a kind and a revision. The caller has removed the prefix `hf:` or
    /// `hf://`.
    fn hf(name: &str, hub: &str) -> Result<Self> {
        let name = name.trim_matches('/');
        let name = name.strip_prefix("models/").unwrap_or(name);
        let (path, revision) = match name.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (name, None),
        };
        let path = path.strip_suffix(".git").unwrap_or(path);
        let of_kind = ["datasets/", "spaces/"];
        let bare = of_kind.iter().find_map(|kind| path.strip_prefix(kind));
        let revision_is_one = revision.is_none_or(|revision| !revision.is_empty());
        if !is_hub_name(bare.unwrap_or(path)) || !revision_is_one {
            return Err(refuse(&format!(
                "{name:?} is not a repository on the Hub: write USER/NAME, or hf:USER/NAME"
            )));
        }
        let mut remote = Self::http(&format!("{hub}/{path}"), hub)?;
        remote.revision = revision.map(page::decoded);
        Ok(remote)
    }

    fn http(url: &str, hub: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
        let mut scheme = scheme.to_ascii_lowercase();
        let rest = rest.split('#').next().unwrap_or(rest);
        let (rest, query) = rest
            .split_once('?')
            .map_or((rest, ""), |(rest, query)| (rest, query));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(holds_password());
        }
        let mut host = host.to_ascii_lowercase();
        let name = host.split(':').next().unwrap_or_default();
        let port = &host[name.len()..];
        if HUB_HOSTS.contains(&name) && matches!(port, "" | ":80" | ":443") {
            // The Hub's other hosts redirect to `HUB_HOSTS[0]`, and the token is not sent again after a
            // redirect.
            (scheme, host) = ("https".to_owned(), HUB_HOSTS[0].to_owned());
        }
        if host == "www.github.com" {
            "github.com".clone_into(&mut host);
        }
        let path = path.trim_matches('/');
        if host.is_empty() || path.is_empty() {
            let words = format!("the URL names no repository: {scheme}://{host}/{path}");
            return Err(refuse(&words));
        }
        let server = format!("{scheme}://{host}/");
        let hub_url = format!("{hub}/");
        let endpoint = match host == HUB_HOSTS[0] {
            true => Some(HUB),
            false => (origin(&hub_url) == Some(&server)).then_some(hub),
        };
        // A Hub's base URL may contain a path.
        let below = endpoint.and_then(|endpoint| endpoint.get(server.len()..));
        let below = below.filter(|below| path.starts_with(&format!("{below}/")));
        let (below, path) = match below {
            Some(below) => (
                format!("{below}/"),
                path[below.len()..].trim_start_matches('/'),
            ),
            None => (String::new(), path),
        };
        let site = match endpoint {
            Some(_) => page::Site::Hub,
            None => page::Site::of(&host),
        };
        let found = page::read(site, &server, path).map_err(|words| refuse(&words))?;
        if !query.is_empty() && !found.is_page {
            return Err(holds_password());
        }
        let mut repo = found.repo;
        if endpoint.is_some() && repo.ends_with(".git") {
            repo.truncate(repo.len() - ".git".len());
        }
        Ok(Self {
            kind: if endpoint.is_some() {
                Kind::Hub
            } else {
                Kind::Http
            },
            url: format!("{server}{below}{repo}"),
            moved_to: OnceLock::new(),
            user: user.map(str::to_owned),
            on_hub: endpoint.is_some(),
            endpoint: endpoint.map(str::to_owned),
            revision: found.revision,
        })
    }

    fn ssh(url: &str, rest: &str) -> Result<Self> {
        // ssh would parse a user or host that begins with `-` as an option.
        let authority = rest.split(['/', ':']).next().unwrap_or_default();
        if authority.split('@').any(|part| part.starts_with('-')) {
            return Err(refuse(&format!("{url:?} is not a git repository")));
        }
        let user = rest.split_once('@').map(|(user, _)| user);
        if user.is_some_and(|user| user.contains(':')) {
            return Err(holds_password());
        }
        if url.starts_with("ssh://") {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority
                .rsplit_once('@')
                .map_or(authority, |(_, host)| host);
            // The colons of an IPv6 address are in brackets.
            let after = host.rsplit_once(']').map_or(host, |(_, after)| after);
            if let Some((host, port)) = after.split_once(':')
                && !port.chars().all(|c| c.is_ascii_digit())
            {
                let user = user.map(|user| format!("{user}@")).unwrap_or_default();
                return Err(refuse(&format!(
                    "{port:?} is not a port: write ssh://{user}{host}/{port}/{path}, or {user}{host}:{port}/{path}"
                )));
            }
        }
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        Ok(Self {
            kind: Kind::Ssh,
            url: url.trim_end_matches('/').to_owned(),
            moved_to: OnceLock::new(),
            user: None,
            endpoint: None,
            on_hub: HUB_HOSTS.contains(&&*host.to_ascii_lowercase()),
            revision: None,
        })
    }

    /// Parses the text after `file://`: a host, which must be empty or `localhost`, and a path.
    fn file(rest: &str) -> Result<Self> {
        let path = rest.strip_prefix("localhost").unwrap_or(rest);
        if !path.starts_with('/') {
            return Err(refuse(&format!(
                "file://{rest} names another host: write file:///{rest}, or only the path"
            )));
        }
        Self::local(&page::decoded(path))
    }

    fn local(path: &str) -> Result<Self> {
        // Git runs in another folder, so the path must be absolute.
        let path = std::path::absolute(path)
            .map_err(|error| Error::io("resolve", path.as_ref(), &error))?;
        Ok(Self {
            kind: Kind::Local,
            url: path.to_string_lossy().into_owned(),
            moved_to: OnceLock::new(),
            user: None,
            endpoint: None,
            on_hub: false,
            revision: None,
        })
    }
}

/// Returns `https://host:port/` of an HTTP or HTTPS URL.
pub(crate) fn origin(url: &str) -> Option<&str> {
    let after = url.find("://").map(|at| at + 3)?;
    if !matches!(&url[..after], "http://" | "https://") {
        return None;
    }
    let slash = url[after..].find('/')?;
    Some(&url[..=after + slash])
}

/// Whether a text has the form `user/name`. Such a text is a repository on the Hub; a relative path must be
/// written as `./user/name`.
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

fn refuse(words: &str) -> Error {
    Error::Permanent(words.to_owned())
}

fn holds_password() -> Error {
    refuse(
        "the repository's URL contains a password or a query: \
         put the token into an environment variable and set token_env to its name",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/home/ann".to_owned())
    }

    fn hub_at(url: &str) -> impl Fn(&str) -> Option<String> {
        let url = url.to_owned();
        move |name| (name == "HF_ENDPOINT").then(|| url.clone())
    }

    fn parse(repo: &str) -> Remote {
        Remote::parse(repo, &home).expect("a remote")
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
            (
                "https://hf.co/ann/gpt/",
                Kind::Hub,
                "https://huggingface.co/ann/gpt",
            ),
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
    fn urls_from_a_browser_are_parsed() {
        const GPT: &str = "https://huggingface.co/ann/gpt";
        for (repo, url, revision) in [
            (
                "https://huggingface.co/ann/gpt/tree/main",
                GPT,
                Some("main"),
            ),
            (
                "https://huggingface.co/ann/gpt/tree/run-1",
                GPT,
                Some("run-1"),
            ),
            (
                "https://huggingface.co/ann/gpt/blob/main/config.json",
                GPT,
                Some("main"),
            ),
            (
                "https://huggingface.co/ann/gpt/resolve/refs%2Fpr%2F1/a.json",
                GPT,
                Some("refs/pr/1"),
            ),
            (
                "https://huggingface.co/ann/gpt/discussions/2?status=open#x",
                GPT,
                None,
            ),
            ("https://huggingface.co/ann/gpt/settings", GPT, None),
            ("https://huggingface.co/ann/gpt#model-card", GPT, None),
            ("https://huggingface.co/api/models/ann/gpt", GPT, None),
            ("HTTPS://HuggingFace.co/ann/gpt.git/", GPT, None),
            ("http://huggingface.co:80/ann/gpt", GPT, None),
            ("https://www.huggingface.co/ann/gpt", GPT, None),
            ("hf.co/ann/gpt", GPT, None),
            ("huggingface.co/ann/gpt/tree/main", GPT, Some("main")),
            ("hf://ann/gpt", GPT, None),
            ("hf://ann/gpt@run-1", GPT, Some("run-1")),
            ("hf://models/ann/gpt", GPT, None),
            ("hf:ann/gpt/", GPT, None),
            ("hub:ann/gpt", GPT, None),
            (" ann/gpt.git ", GPT, None),
            ("ann/gpt/", GPT, None),
            (
                "hf://datasets/ann/code",
                "https://huggingface.co/datasets/ann/code",
                None,
            ),
            (
                "https://huggingface.co/datasets/ann/code/tree/main",
                "https://huggingface.co/datasets/ann/code",
                Some("main"),
            ),
            (
                "https://github.com/ann/gpt/tree/x",
                "https://github.com/ann/gpt",
                Some("x"),
            ),
            (
                "https://github.com/ann/gpt.git",
                "https://github.com/ann/gpt.git",
                None,
            ),
            (
                "https://www.github.com/ann/gpt/pulls?q=a",
                "https://github.com/ann/gpt",
                None,
            ),
            ("github.com/ann/gpt", "https://github.com/ann/gpt", None),
            (
                "https://gitlab.example.org/a/b/c/-/tree/main?ref_type=heads",
                "https://gitlab.example.org/a/b/c",
                Some("main"),
            ),
            (
                "gitlab.com/a/b/c/-/issues",
                "https://gitlab.com/a/b/c",
                None,
            ),
            (
                "https://codeberg.org/a/b/src/branch/main",
                "https://codeberg.org/a/b",
                Some("main"),
            ),
            ("~/m.git", "/home/ann/m.git", None),
            ("file:/srv/m.git", "/srv/m.git", None),
            ("file://localhost/srv/my%20m.git", "/srv/my m.git", None),
            ("ssh://git@hf.co/ann/gpt/", "ssh://git@hf.co/ann/gpt", None),
        ] {
            let remote = parse(repo);
            assert_eq!((remote.url(), remote.revision()), (url, revision), "{repo}");
        }
        assert!(parse("git@hf.co:ann/gpt").is_on_hub());
        assert!(!parse("git@example.org:ann/gpt").is_on_hub());
        let hub = hub_at("http://127.0.0.1:80/hub");
        let page = Remote::parse("http://127.0.0.1:80/hub/ann/gpt/tree/main", &hub);
        assert_eq!(page.expect("a page").kind(), Kind::Hub);
    }

    #[test]
    fn errors_suggest_the_correction() {
        for (repo, words) in [
            ("~ann/m.git", "only ~/ is supported"),
            ("hf://ann", "write USER/NAME"),
            ("hf://buckets/ann/b", "write USER/NAME"),
            (
                "https://huggingface.co/ann/gpt/nothing",
                "write https://huggingface.co/ann/gpt",
            ),
            (
                "https://github.com/ann/gpt/tree/feature/x",
                "the branch name",
            ),
            ("ssh://git@hf.co:ann/gpt", "write ssh://git@hf.co/ann/gpt"),
            ("git@hf.co/ann/gpt", "write git@hf.co:ann/gpt"),
            ("file://srv/m.git", "write file:///srv/m.git"),
        ] {
            let error = Remote::parse(repo, &home).expect_err(repo);
            assert!(error.to_string().contains(words), "{repo}: {error}");
        }
        let error = Remote::parse("~/m.git", &|_| None).expect_err("no home");
        assert!(error.to_string().contains("HOME"), "{error}");
    }

    #[test]
    fn another_hub_is_the_hub_too() {
        let remote = Remote::parse("ann/gpt", &hub_at("http://127.0.0.1:8080/")).expect("a remote");
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
        let remote = Remote::parse("ann/gpt", &hub_at(hub)).expect("a remote");
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
    fn invalid_remotes_are_refused() {
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
            let result = Remote::parse(bad, &home);
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
            let error = Remote::parse(bad, &home).expect_err("refused");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_lfs_url_is_derived_from_the_repository() {
        let url = |repo: &str| parse(repo).lfs_url();
        let expected = Some("https://example.org/a/b.git/info/lfs".to_owned());
        assert_eq!(url("https://example.org/a/b"), expected);
        assert_eq!(url("https://example.org/a/b.git"), expected);
        assert_eq!(url("git@example.org:a/b"), None);
    }
}
