//! The real git-lfs reads pushed checkpoints. The environment variable `GIT_LFS` contains the path of
//! git-lfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use test_hub::WRITE_TOKEN;

use crate::support::{Checkpoint, Run, bare, forms, hub_publisher, model_hub, publisher, sha256};

/// Git with git-lfs. It has the configuration that `git lfs install` creates, and a token for a server.
struct GitLfs {
    path: String,
    config: Vec<(String, String)>,
}

impl GitLfs {
    fn new(server: Option<&str>) -> Self {
        let program =
            std::env::var_os("GIT_LFS").expect("GIT_LFS is set by tests/peers/git_lfs.sh");
        let folder = PathBuf::from(program);
        let folder = folder.parent().expect("a folder").to_owned();
        let path = std::env::var("PATH").expect("a path");
        let mut config: Vec<(String, String)> = [
            ("filter.lfs.process", "git-lfs filter-process"),
            ("filter.lfs.smudge", "git-lfs smudge -- %f"),
            ("filter.lfs.clean", "git-lfs clean -- %f"),
            ("filter.lfs.required", "true"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        if let Some(server) = server {
            let [_, _, basic] = forms(WRITE_TOKEN);
            let header = format!("Authorization: Basic {basic}");
            config.push((format!("http.{server}/.extraHeader"), header));
        }
        Self {
            path: format!("{}:{path}", folder.display()),
            config,
        }
    }

    fn git(&self, dir: &Path, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command
            .args(args)
            .current_dir(dir)
            .env("PATH", &self.path)
            .env("HOME", dir)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_COUNT", self.config.len().to_string());
        for (index, (key, value)) in self.config.iter().enumerate() {
            command
                .env(format!("GIT_CONFIG_KEY_{index}"), key)
                .env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        let output = command.output().expect("git runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {args:?}: {stderr}");
        String::from_utf8(output.stdout).expect("text")
    }
}

/// Clones the branch. Compares each commit's files with the files of the corresponding checkpoint.
fn assert_cloned(git: &GitLfs, url: &str, checkpoints: &[Checkpoint]) {
    let clone = tempfile::tempdir().expect("a folder");
    let at = clone.path();
    git.git(at, &["clone", "--quiet", "--branch", "run", url, "work"]);
    let work = at.join("work");
    for (back, checkpoint) in checkpoints.iter().rev().enumerate() {
        git.git(&work, &["checkout", "--quiet", &format!("run~{back}")]);
        for (name, entry) in &checkpoint.files {
            if name.starts_with("trainer/") {
                continue;
            }
            let bytes = fs::read(work.join(name)).expect("a file");
            assert_eq!(
                sha256(&bytes),
                entry.sha256,
                "{name} of {}",
                checkpoint.step
            );
        }
        let listed = git.git(&work, &["lfs", "ls-files", "--name-only"]);
        assert_eq!(listed.trim(), "model.safetensors");
        assert_eq!(git.git(&work, &["status", "--porcelain"]), "");
    }
    git.git(&work, &["lfs", "fsck"]);
}

#[test]
fn git_lfs_clones_checkpoints_from_a_hub() {
    for part_bytes in [None, Some(900_000)] {
        let (hub, _) = model_hub();
        if let Some(bytes) = part_bytes {
            hub.set_part_bytes(bytes);
        }
        let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
        let run = Run::new("run");
        let checkpoints = [1, 2, 3].map(|step| run.checkpoint(step, 2_000_000));
        for checkpoint in &checkpoints {
            run.publish(&publisher, checkpoint).expect("published");
        }
        let git = GitLfs::new(Some(hub.url()));
        assert_cloned(&git, &hub.repo_url("user/model"), &checkpoints);
    }
}

#[test]
fn git_lfs_clones_checkpoints_from_a_folder() {
    let (_remote, url) = bare();
    let config = json!({"repo": url, "lfs": "always"});
    let publisher = publisher(config, &[]).expect("a publisher");
    let run = Run::new("run");
    let checkpoints = [1, 2].map(|step| run.checkpoint(step, 2_000_000));
    for checkpoint in &checkpoints {
        run.publish(&publisher, checkpoint).expect("published");
    }
    assert_cloned(&GitLfs::new(None), &format!("file://{url}"), &checkpoints);
}
