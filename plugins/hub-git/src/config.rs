use serde::Deserialize;

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
    /// Longest time for one checkpoint.
    #[serde(default = "default_timeout_secs")]
    pub timeout_secs: u64,
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
