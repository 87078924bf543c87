use serde::Deserialize;

use crate::{Error, Result};

/// The sink's configuration; `config.schema.json` describes it to the host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to push: `user/name` on the Hub, or the URL or path of any git repository.
    pub repo: String,
    /// The branch; the run's name if absent.
    #[serde(default)]
    pub branch: Option<String>,
    /// Name of the environment variable that holds the token. If absent, a remote on the Hub uses
    /// `HF_TOKEN` or the Hub's token file. Any other remote uses no token, so that the Hub's token is not
    /// sent to other servers.
    #[serde(default)]
    pub token_env: Option<String>,
    /// Name of the environment variable that holds the token for a separate LFS server. It is used only if
    /// the branch's `.lfsconfig` names a server other than the remote's own.
    #[serde(default)]
    pub lfs_token_env: Option<String>,
    /// Whether to create a missing repository. It can be a repository on the Hub, or a folder.
    #[serde(default)]
    pub create: bool,
    /// Whether a repository that is created on the Hub is private. If absent, the owner's settings on the Hub
    /// apply.
    #[serde(default)]
    pub private: Option<bool>,
    /// Which files are stored with Git LFS.
    #[serde(default)]
    pub lfs: LfsMode,
    /// Whether to push the trainer state (optimizer, RNG, data cursor) too.
    #[serde(default)]
    pub trainer: bool,
    /// The name of the commits' author.
    #[serde(default)]
    pub author_name: Option<String>,
    /// The email address of the commits' author. Some servers accept only certain addresses.
    #[serde(default)]
    pub author_email: Option<String>,
    /// A PEM file of trusted certificate authorities. It replaces the authorities that the environment and
    /// the system trust.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// The proxy for all requests. It replaces the environment's proxy. Empty means no proxy.
    #[serde(default)]
    pub proxy: Option<String>,
    /// Time limit for one checkpoint, in seconds.
    #[serde(default = "default_timeout_secs")]
    pub timeout_secs: u64,
}

impl Config {
    /// Sets `branch` to its final value. For example, `refs/heads/main` becomes `main`. If `branch` is absent
    /// and the URL in `repo` is a page of a branch, that branch is used. A page of `main` or `master` does
    /// not select a branch, because servers show such a page by default.
    ///
    /// # Errors
    /// Returns an error if `branch` does not name a branch, or contradicts the page.
    pub(crate) fn settle_branch(&mut self, of_page: Option<&str>) -> Result<()> {
        let is_id = |name: &str| name.len() >= 40 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let page = of_page.filter(|name| !matches!(*name, "main" | "master") && !is_id(name));
        let named = self.branch.as_deref().map(str::trim);
        let bare = |name: &str| name.strip_prefix("refs/heads/").unwrap_or(name).to_owned();
        self.branch = match (named.map(bare), page.map(bare)) {
            (Some(branch), Some(page)) if branch != page => {
                return Err(Error::Permanent(format!(
                    "branch is {branch}, but the URL in repo is the page of branch {page}: \
                     leave out the setting branch, or set repo to the URL of the repository itself"
                )));
            }
            (branch, page) => branch.or(page),
        };
        match self.branch.as_deref() {
            Some(name) if name.starts_with("refs/") || name == "HEAD" => Err(Error::Permanent(
                format!("{name} is not a branch: set branch to the name of a branch, such as main"),
            )),
            _ => Ok(()),
        }
    }

    /// Returns the name and the email address of the commits' author.
    pub(crate) fn author(&self) -> (&str, &str) {
        (
            self.author_name.as_deref().unwrap_or("hub-git"),
            self.author_email.as_deref().unwrap_or("hub-git@localhost"),
        )
    }
}

/// Which files are stored with Git LFS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LfsMode {
    /// On the Hub, large and binary files; elsewhere, the files that the branch's `.gitattributes`
    /// selects.
    #[default]
    Auto,
    /// Large and binary files.
    Always,
    /// No files.
    Never,
}

fn default_timeout_secs() -> u64 {
    3600
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_branch_comes_from_the_setting_or_the_page() {
        let settled = |branch: Option<&str>, page: Option<&str>| {
            let config = serde_json::json!({"repo": "a/b", "branch": branch});
            let mut config: Config = serde_json::from_value(config).expect("a configuration");
            config.settle_branch(page).map(|()| config.branch)
        };
        for (branch, page, expected) in [
            (None, None, None),
            (None, Some("main"), None),
            (None, Some("run-1"), Some("run-1")),
            (Some("x"), Some("main"), Some("x")),
            (Some("refs/heads/main"), None, Some("main")),
            (Some("run-1"), Some("run-1"), Some("run-1")),
        ] {
            assert_eq!(settled(branch, page), Ok(expected.map(str::to_owned)));
        }
        for (branch, page) in [
            (Some("x"), Some("run-1")),
            (Some("refs/tags/v1"), None),
            (Some("HEAD"), None),
            (None, Some("refs/pr/1")),
        ] {
            settled(branch, page).expect_err("refused");
        }
    }
}
