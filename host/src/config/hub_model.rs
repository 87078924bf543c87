//! Names of models in git repositories, such as repositories on the Hub. The same plugin pushes checkpoints
//! to these repositories and fetches models from them.

use std::fmt;

use host_core::{Error, ErrorKind, Result};
use host_plugin::{PluginConfig, PluginSpec, Target};
use serde_json::{Map, Value};

/// The id of the plugin that fetches models.
pub(crate) const PLUGIN: &str = "hub-git";

/// The prefix of a model's name if the model is in a git repository.
const PREFIX: &str = "hub:";

/// How a URL can begin. A name that begins like this is accepted without `PREFIX`.
const URLS: [&str; 5] = ["hf://", "https://", "http://", "ssh://", "git@"];

/// The plugin's settings for reaching the server.
const REACHED_BY: [&str; 4] = ["token_env", "lfs_token_env", "ca_file", "proxy"];

/// A model name of the form `hub:REPO` or `hub:REPO@REVISION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubModel {
    /// Like the setting `repo` of hub-git: `user/name` on the Hub, or the URL or path of any git repository.
    pub(crate) repo: String,
    /// A branch, tag or commit. None: the repository's default branch.
    pub(crate) revision: Option<String>,
}

impl HubModel {
    /// Parses a name. Returns None if it does not start with `hub:`.
    ///
    /// # Errors
    /// Returns an error if the repository is empty, or if an `@` is followed by an empty revision.
    pub(crate) fn parse(name: &str) -> Result<Option<Self>> {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            return Ok(None);
        };
        let (repo, revision) = match rest[authority(rest)..].rfind('@') {
            Some(at) => {
                let (repo, revision) = rest.split_at(authority(rest) + at);
                (repo, Some(revision[1..].to_owned()))
            }
            None => (rest, None),
        };
        if repo.is_empty() || revision.as_deref() == Some("") {
            let message = format!("incomplete repository name: {name}");
            return Err(Error::new(ErrorKind::Config, message)
                .hint("write hub:USER/NAME, or hub:USER/NAME@BRANCH for a branch"));
        }
        Ok(Some(Self {
            repo: repo.to_owned(),
            revision,
        }))
    }

    /// Whether a name has the prefix `hub:` or is a URL. A URL cannot be the name of a folder.
    pub(crate) fn is_name(name: &str) -> bool {
        name.starts_with(PREFIX) || URLS.iter().any(|beginning| name.starts_with(beginning))
    }

    /// Makes the path in `hub:./…` or `hub:../…` absolute and adds `hub:` to a URL. Returns other names
    /// unchanged.
    pub(crate) fn resolved(name: &str, absolute: impl Fn(String) -> String) -> String {
        match name.strip_prefix(PREFIX) {
            None if Self::is_name(name) => format!("{PREFIX}{name}"),
            Some(path) if path.starts_with("./") || path.starts_with("../") => {
                format!("{PREFIX}{}", absolute(path.to_owned()))
            }
            _ => name.to_owned(),
        }
    }

    /// Returns the plugin that is needed to fetch a model of this name, if any.
    pub(crate) fn plugin(name: &str) -> Option<PluginSpec> {
        let model = Self::parse(name).ok()??;
        Some(model.spec(&[]))
    }

    /// Returns the same repository at a commit.
    pub(crate) fn at(&self, commit: String) -> Self {
        Self {
            repo: self.repo.clone(),
            revision: Some(commit),
        }
    }

    /// Describes the repository and the revision for users.
    pub(crate) fn describe(&self) -> String {
        match &self.revision {
            Some(revision) => format!("{} at {revision}", self.repo),
            None => self.repo.clone(),
        }
    }

    /// Returns the plugin to load for fetching. If a plugin of `specs` pushes to the same repository, copies
    /// that plugin's settings for reaching the server.
    pub(crate) fn spec(&self, specs: &[PluginSpec]) -> PluginSpec {
        let pushes_there = |spec: &&PluginSpec| {
            spec.target == Target::Id(PLUGIN.to_owned())
                && setting(spec, "repo").as_deref() == Some(&self.repo)
        };
        let alike = specs.iter().find(pushes_there);
        let mut config = Map::from_iter([("repo".to_owned(), self.repo.clone().into())]);
        for name in REACHED_BY {
            let value = alike.and_then(|spec| setting(spec, name));
            config.extend(value.map(|value| (name.to_owned(), value.into())));
        }
        PluginSpec::by_id(PLUGIN, PluginConfig::Values(config))
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.repo)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// Returns a plugin's setting if it is a string.
fn setting(spec: &PluginSpec, name: &str) -> Option<String> {
    match &spec.config {
        PluginConfig::Text(pairs) => {
            let (_, value) = pairs.iter().find(|(key, _)| key == name)?;
            Some(value.clone())
        }
        PluginConfig::Values(values) => values.get(name).and_then(Value::as_str).map(str::to_owned),
    }
}

/// The beginning of a repository's name can contain a user name, as in `https://user@host/path` or
/// `git@host:path`. Returns the length of this beginning. An `@` in it does not start a revision.
fn authority(repo: &str) -> usize {
    match repo.find("://") {
        Some(at) => repo[at + 3..]
            .find('/')
            .map_or(repo.len(), |end| at + 3 + end),
        None => repo
            .find(':')
            .filter(|colon| !repo[..*colon].contains('/'))
            .unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Option<HubModel> {
        HubModel::parse(name).expect("a good name")
    }

    #[test]
    fn each_way_to_name_a_model() {
        for (name, repo, revision) in [
            ("hub:ann/gpt", "ann/gpt", None),
            ("hub:ann/gpt@run-1", "ann/gpt", Some("run-1")),
            ("hub:ann/gpt@feature/x", "ann/gpt", Some("feature/x")),
            ("hub:git@hf.co:ann/gpt", "git@hf.co:ann/gpt", None),
            ("hub:git@hf.co:ann/gpt@b", "git@hf.co:ann/gpt", Some("b")),
            ("hub:https://ann@x.org/r", "https://ann@x.org/r", None),
            (
                "hub:https://ann@x.org/r@b",
                "https://ann@x.org/r",
                Some("b"),
            ),
            (
                "hub:ssh://git@x.org:22/r@b",
                "ssh://git@x.org:22/r",
                Some("b"),
            ),
            ("hub:/srv/r.git@b", "/srv/r.git", Some("b")),
        ] {
            let model = parse(name).expect(name);
            assert_eq!(model.repo, repo, "{name}");
            assert_eq!(model.revision.as_deref(), revision, "{name}");
            assert_eq!(model.to_string(), name);
        }
        for other in ["gpt2", "/models/gpt2", "./hub:x"] {
            assert_eq!(parse(other), None, "{other}");
        }
        for bad in ["hub:", "hub:@main", "hub:ann/gpt@"] {
            let error = HubModel::parse(bad).expect_err(bad);
            assert!(
                error
                    .hint_text()
                    .is_some_and(|hint| hint.contains("hub:USER/NAME"))
            );
        }
    }

    #[test]
    fn a_path_is_made_absolute_and_a_name_is_not() {
        let absolute = |path: String| format!("/here/{path}");
        for (name, expected) in [
            ("hub:./r.git@b", "hub:/here/./r.git@b"),
            ("hub:ann/gpt", "hub:ann/gpt"),
            ("hub:/srv/r.git", "hub:/srv/r.git"),
            ("hf://ann/gpt@b", "hub:hf://ann/gpt@b"),
            ("https://x.org/ann/gpt", "hub:https://x.org/ann/gpt"),
            ("git@x.org:ann/gpt", "hub:git@x.org:ann/gpt"),
            ("/srv/https://x", "/srv/https://x"),
        ] {
            assert_eq!(HubModel::resolved(name, absolute), expected);
        }
    }

    #[test]
    fn the_token_is_taken_from_the_sink_of_the_same_repository() {
        let specs = [
            "hub-git:repo=https://x.org/a,token_env=MINE",
            "hub-git:repo=ann/b",
        ];
        let specs = specs.map(|spec| spec.parse::<PluginSpec>().expect("a spec"));
        let token = |name: &str| setting(&parse(name).expect(name).spec(&specs), "token_env");
        assert_eq!(token("hub:https://x.org/a@main").as_deref(), Some("MINE"));
        assert_eq!(token("hub:ann/b"), None);
        assert_eq!(token("hub:https://x.org/c"), None);
    }
}
