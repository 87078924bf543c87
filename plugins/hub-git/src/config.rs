use serde::Deserialize;

use crate::{Error, Result};

/// The sink's configuration; `config.schema.json` says the same to the host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to push: `user/name` on the Hub, or the URL or path of any git repository.
    pub repo: String,
    /// The branch; the run's name if absent.
    #[serde(default)]
    pub branch: Option<String>,
    /// Name of the environment variable that holds the token. If absent, a remote on the Hub uses
    /// `HF_TOKEN` or the Hub's token file, and any other remote no token at all: the Hub's token is
    /// nobody else's business.
    #[serde(default)]
    pub token_env: Option<String>,
    /// Name of the environment variable that holds the token for the LFS server that the branch's
    /// `.lfsconfig` names, if that is another server than the remote's.
    #[serde(default)]
    pub lfs_token_env: Option<String>,
    /// Whether the repository is made if it is not there: on the Hub, or as a folder.
    #[serde(default)]
    pub create: bool,
    /// Who may see a repository that is made on the Hub: its owner alone, or everybody. If absent,
    /// the owner's settings there decide.
    #[serde(default)]
    pub private: Option<bool>,
    /// What goes by Git LFS.
    #[serde(default)]
    pub lfs: LfsMode,
    /// Whether the trainer's own state (optimizer, RNG, data cursor) is pushed too.
    #[serde(default)]
    pub trainer: bool,
    /// The name of the commits' author.
    #[serde(default)]
    pub author_name: Option<String>,
    /// The address of the commits' author, which a server may have rules for.
    #[serde(default)]
    pub author_email: Option<String>,
    /// A file of certificate authorities (PEM), instead of the environment's or the system's.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// The proxy for all requests, instead of the environment's; empty for none.
    #[serde(default)]
    pub proxy: Option<String>,
    /// Longest time for one checkpoint.
    #[serde(default = "default_timeout_secs")]
    pub timeout_secs: u64,
}

impl Config {
    /// Settles the branch: `refs/heads/main` is `main`, and who named the page of a branch meant that one.
    /// `main` is what a page shows when nobody chose.
    ///
    /// # Errors
    /// It names something that is not a branch, or another than the page.
    pub(crate) fn settle_branch(&mut self, of_page: Option<&str>) -> Result<()> {
        let is_id = |name: &str| name.len() >= 40 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let page = of_page.filter(|name| !matches!(*name, "main" | "master") && !is_id(name));
        let named = self.branch.as_deref().map(str::trim);
        let bare = |name: &str| name.strip_prefix("refs/heads/").unwrap_or(name).to_owned();
        self.branch = match (named.map(bare), page.map(bare)) {
            (Some(branch), Some(page)) if branch != page => {
                return Err(Error::Permanent(format!(
                    "branch names {branch}, and the page in repo is that of {page}: leave one out"
                )));
            }
            (branch, page) => branch.or(page),
        };
        match self.branch.as_deref() {
            Some(name) if name.starts_with("refs/") || name == "HEAD" => Err(Error::Permanent(
                format!("{name} is not a branch: write main for refs/heads/main"),
            )),
            _ => Ok(()),
        }
    }

    /// Who makes the commits: a name and an address.
    pub(crate) fn author(&self) -> (&str, &str) {
        (
            self.author_name.as_deref().unwrap_or("hub-git"),
            self.author_email.as_deref().unwrap_or("hub-git@localhost"),
        )
    }
}

/// What goes by Git LFS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LfsMode {
    /// Large and binary files if the remote is the Hub; elsewhere what the branch's
    /// `.gitattributes` names.
    #[default]
    Auto,
    /// Large and binary files.
    Always,
    /// Nothing.
    Never,
}

fn default_timeout_secs() -> u64 {
    3600
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_branch_is_settled() {
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
