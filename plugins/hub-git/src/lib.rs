//! A checkpoint sink that pushes to any git remote, such as the Hugging Face Hub. It creates a branch for
//! each run, and a commit `step N` for each checkpoint. Large files are stored with Git LFS.
//!
//! Git plumbing commands create the commits in a bare repository. A built-in client streams LFS objects
//! directly from the checkpoint, so a delivery needs almost no disk space. A delivery uploads the objects,
//! creates the commit, writes the commit's id to the journal, and pushes the commit with a lease on the
//! branch. If the response to a push is lost, the next attempt finds the commit on the branch and does not
//! push again. The built-in client also downloads the files of a commit.
//!
//! Git runs without the configuration, attributes and environment variables of the user and the system. The
//! pushed commit therefore depends only on the checkpoint, the sink's settings and the branch. Only the
//! connection settings of the user and the system apply (`network.rs`). These are certificate authorities,
//! proxies, `core.sshCommand`, and the folders in `safe.directory`. They apply to git and to the built-in
//! client. `url.*.insteadOf` is ignored, because it would change where a token is sent. No token follows a
//! redirect to another server.
//!
//! When the sink's process ends for any reason, its git processes are ended too.
#![forbid(unsafe_code)]

mod attributes;
mod config;
mod creation;
mod download;
mod error;
mod fetch;
mod forward_proxy;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzzing;
mod git;
mod http;
mod journal;
mod lfs;
mod lfs_server;
mod limit;
mod model_card;
mod moved;
mod network;
mod page;
mod patience;
mod preflight;
mod proxy;
mod publisher;
mod refusal;
mod remote;
mod repository;
mod task;
mod token;
mod upload;

use host_plugin_sdk::{
    Cancel, Checkpoint, CheckpointSink, Fetch, Fetched, Host, Preflight, export_plugin,
};

pub use config::{Config, LfsMode};
pub use error::{Error, Result};
pub use fetch::{Brought, Wanted};
pub use preflight::Question;
pub use publisher::{Publisher, PushedCheckpoint, Receipt};

/// The sink that the host creates.
#[derive(Debug)]
pub struct HubGit {
    publisher: Publisher,
    host: Host,
}

impl CheckpointSink for HubGit {
    type Config = Config;

    fn create(config: Config, host: Host) -> host_plugin_sdk::Result<Self> {
        let publisher = Publisher::new(config, &|name| std::env::var(name).ok(), "git")?
            .on_warning(move |words| host.warn(words));
        Ok(Self { publisher, host })
    }

    fn publish(
        &mut self,
        checkpoint: &Checkpoint<'_>,
        cancel: &Cancel,
    ) -> host_plugin_sdk::Result<serde_json::Value> {
        let snapshot = PushedCheckpoint {
            step: checkpoint.step(),
            run: checkpoint.run(),
            dir: checkpoint.dir(),
            files: checkpoint.files(),
            metrics: checkpoint.metrics(),
            state_dir: checkpoint.state_dir(),
        };
        let receipt = self
            .publisher
            .publish(&snapshot, &|| cancel.is_requested())?;
        let Receipt {
            commit,
            branch,
            remote,
            ..
        } = &receipt;
        self.host.debug(&format!(
            "step {} was pushed to branch {branch} as {commit}: {remote}",
            snapshot.step
        ));
        Ok(serde_json::json!(receipt))
    }

    fn preflight(
        &mut self,
        preflight: &Preflight<'_>,
        cancel: &Cancel,
    ) -> host_plugin_sdk::Result<Option<String>> {
        let question = Question {
            run: preflight.run(),
            state_dir: preflight.state_dir(),
            checkpoint_bytes: preflight.checkpoint_bytes(),
            model_bytes: preflight.model_bytes(),
        };
        let found = self
            .publisher
            .preflight(&question, &|| cancel.is_requested())?;
        Ok(Some(found))
    }

    fn fetch(&mut self, fetch: &Fetch<'_>, cancel: &Cancel) -> host_plugin_sdk::Result<Fetched> {
        let wanted = Wanted {
            revision: fetch.revision(),
            for_resume: fetch.for_resume(),
            state_dir: fetch.state_dir(),
        };
        let brought = self.publisher.fetch(&wanted, &|| cancel.is_requested())?;
        Ok(Fetched::new(brought.path)
            .with("commit", brought.commit)
            .with("remote", brought.remote))
    }
}

impl From<Error> for host_plugin_sdk::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Temporary(words) => Self::temporary(words),
            Error::Permanent(words) => Self::new(words),
            Error::Cancelled => Self::cancelled(),
        }
    }
}

export_plugin! {
    description: "Pushes each checkpoint as one commit to a git remote such as the Hugging Face Hub",
    checkpoint_sink: HubGit,
    config: "config.schema.json",
}
