//! Interprets the error output of git and remotes. Determines the message to show, and whether a retry can
//! help.

use crate::remote::{Kind, Remote};
use crate::repository::Pushed;
use crate::{Error, Result};

/// Maximum number of characters of a shown message. Longer messages of git and the remote are cut.
const LONGEST: usize = 2000;

/// Parses the output of `git push --porcelain`: `FLAG \t FROM:TO \t SUMMARY (REASON)`.
pub(crate) fn judge_push(
    stdout: &str,
    stderr: &str,
    name: &str,
    remote: &Remote,
) -> Result<Pushed> {
    let line = stdout.lines().find_map(|line| {
        let mut fields = line.splitn(3, '\t');
        let (flag, refs, summary) = (fields.next()?, fields.next()?, fields.next()?);
        (refs.rsplit_once(':')?.1 == name).then_some((flag, summary))
    });
    let Some((flag, summary)) = line else {
        return Err(judge(stderr, "push to", remote));
    };
    if flag != "!" {
        return Ok(Pushed::Landed);
    }
    let has = |words: &[&str]| words.iter().any(|word| summary.contains(word));
    if summary.starts_with("[rejected]")
        || has(&[
            "cannot lock ref",
            "failed to update ref",
            "incorrect old value",
            "already exists",
            "atomic transaction failed",
            "atomic push fail",
        ])
        || has(&[
            "fetch first",
            "non-fast-forward",
            "stale info",
            "reference already exists",
        ])
    {
        return Ok(Pushed::Moved(summary.to_owned()));
    }
    let way_out = match has(&["currently checked out"]) {
        true => ": push to a bare repository, or to a branch that is not checked out there",
        false => "",
    };
    let said = format!(
        "{} refused the push: {summary}{way_out}: {}",
        remote.url(),
        words(stderr)
    );
    let may_pass = has(&["unpacker error"]) || is_closed_for_now(stderr);
    if summary.starts_with("[remote rejected]") && !may_pass {
        Err(Error::Permanent(said))
    } else {
        Err(Error::Temporary(said))
    }
}

/// Whether the remote's lines report that the remote is temporarily read-only.
fn is_closed_for_now(stderr: &str) -> bool {
    let mut lines = stderr.split(['\n', '\r']).map(str::trim);
    lines.any(|line| line.strip_prefix("remote:").is_some_and(is_closed))
}

/// Whether a server's message reports that the server is temporarily read-only. Messages about archived
/// repositories and read-only tokens do not count, because these stay read-only.
pub(crate) fn is_closed(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    let closed = ["read-only", "readonly", "read only", "maintenance"];
    closed.iter().any(|word| words.contains(word))
        && ![
            "archived",
            "only access",
            "access only",
            "only token",
            "only key",
            "deploy key",
        ]
        .iter()
        .any(|word| words.contains(word))
}

/// Whether git received a redirect, which it does not follow.
pub(crate) fn is_redirect(stderr: &str) -> bool {
    ["301", "302", "303", "307", "308"]
        .iter()
        .any(|status| stderr.contains(&format!("URL returned error: {status}")))
}

/// Whether the server requires a `Content-Length`, which git sends only for small pushes.
pub(crate) fn wants_length(stderr: &str) -> bool {
    stderr.contains("URL returned error: 411") || stderr.contains("HTTP 411")
}

/// Whether the remote uses a different hash algorithm than the local repository. An empty remote does not
/// report its algorithm before a push.
pub(crate) fn wants_other_ids(stderr: &str) -> bool {
    stderr.contains("does not support this repository's hash algorithm")
}

/// Returns the message if a test push failed for an unintended reason. The intended reason is a conflict.
pub(crate) fn trouble(stderr: &str) -> Option<String> {
    let why = [
        "Unable to create",
        "unable to write",
        "ermission denied",
        "ead-only file system",
    ];
    why.iter()
        .any(|word| stderr.contains(word))
        .then(|| words(stderr))
}

/// Returns the error for a failed git call whose output has no line about the branch.
pub(crate) fn judge(stderr: &str, verb: &str, remote: &Remote) -> Error {
    let has = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
    let url = remote.url();
    let words = words(stderr);
    if is_closed_for_now(stderr) {
        return Error::Temporary(format!("cannot {verb} {url}: {words}"));
    }
    if is_redirect(stderr) {
        return Error::Temporary(format!(
            "cannot {verb} {url}: the repository has moved: {words}"
        ));
    }
    let why = if has(&["error: 413", "HTTP 413"]) {
        Some(
            "the push is too large for this server: set lfs = \"always\" to send large files one by one",
        )
    } else if has(&[
        "Authentication failed",
        "could not read Username",
        "error: 401",
    ]) {
        let way_out = match remote.kind() {
            Kind::Hub => "the token was not accepted",
            _ => {
                "the token was not accepted or is missing: set token_env to the name of the variable that contains it"
            }
        };
        Some(way_out)
    } else if has(&[
        "error: 403",
        "Permission denied (publickey",
        "Write access to repository",
    ]) {
        Some("the token or key lacks permission")
    } else if has(&["dubious ownership"]) {
        Some(
            "the repository belongs to another user of this machine: \
              to trust it, run git config --global --add safe.directory PATH",
        )
    } else if has(&[
        "not found",
        "error: 404",
        "does not appear to be a git repository",
        "does not exist",
        "not a git repository",
    ]) && !has(&["Could not resolve", "error: 5"])
    {
        Some("no such repository, or the token has no access")
    } else if has(&[
        "Host key verification failed",
        "certificate",
        "unable to find remote helper",
    ]) {
        Some("cannot connect securely")
    } else {
        None
    };
    match why {
        Some(why) => Error::Permanent(format!("cannot {verb} {url}: {why}: {words}")),
        None => Error::Temporary(format!("cannot {verb} {url}: {words}")),
    }
}

/// Returns the relevant lines of git's standard error, with the remote's lines first. Leaves out progress,
/// advice and empty lines.
pub(crate) fn words(stderr: &str) -> String {
    let lines = || {
        stderr
            .split(['\n', '\r'])
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let remote = lines()
        .filter_map(|line| line.strip_prefix("remote:"))
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.ends_with("done."));
    let own = lines().filter(|line| {
        ["fatal:", "error:", "ssh:"]
            .iter()
            .any(|start| line.starts_with(start))
            && !line.contains("failed to push some refs")
    });
    let mut said: Vec<&str> = remote.chain(own).collect();
    if said.is_empty() {
        said = lines().filter(|line| !line.starts_with("hint:")).collect();
    }
    let mut text = said.join("; ");
    if text.is_empty() {
        text.push_str("no output from git");
    }
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "refs/heads/run";

    fn remote() -> Remote {
        Remote::parse("https://example.org/r", &|_| None).expect("a remote")
    }

    fn push(summary: &str, stderr: &str) -> Result<Pushed> {
        let stdout = format!("To https://example.org/r\n{summary}\nDone\n");
        judge_push(&stdout, stderr, NAME, &remote())
    }

    #[test]
    fn the_line_of_the_branch_decides() {
        let landed = "*\tabc:refs/heads/run\t[new branch]";
        assert_eq!(push(landed, "error: update_ref failed"), Ok(Pushed::Landed));
        assert_eq!(
            push("=\tabc:refs/heads/run\t[up to date]", ""),
            Ok(Pushed::Landed)
        );
        for moved in [
            "[rejected] (stale info)",
            "[rejected] (fetch first)",
            "[remote rejected] (cannot lock ref 'x')",
        ] {
            let line = format!("!\tabc:refs/heads/run\t{moved}");
            assert_eq!(push(&line, ""), Ok(Pushed::Moved(moved.to_owned())));
        }
        let other = push(
            "*\tabc:refs/heads/x/run\t[new branch]",
            "fatal: the remote end hung up",
        );
        assert!(matches!(other, Err(Error::Temporary(_))), "{other:?}");
    }

    #[test]
    fn a_hooks_refusal_is_final_and_says_why() {
        let line = "!\tabc:refs/heads/run\t[remote rejected] (pre-receive hook declined)";
        let stderr = "remote: Compressing: 100%, done.\nremote: too large: model.bin\t\nerror: failed to push some refs to 'x'\n";
        let error = push(line, stderr).expect_err("refused");
        let expected = "https://example.org/r refused the push: \
            [remote rejected] (pre-receive hook declined): too large: model.bin";
        assert_eq!(error, Error::Permanent(expected.to_owned()));
    }

    #[test]
    fn temporary_errors_are_distinguished_from_permanent_ones() {
        for (stderr, permanent) in [
            (
                "fatal: could not read Username for 'https://example.org': terminal prompts disabled",
                true,
            ),
            (
                "fatal: unable to access 'https://example.org/r/': The requested URL returned error: 403",
                true,
            ),
            ("fatal: repository 'https://example.org/r/' not found", true),
            (
                "error: RPC failed; HTTP 413 curl 22 The requested URL returned error: 413",
                true,
            ),
            (
                "remote: This repository was archived so it is read-only.\nfatal: unable to access 'x': The requested URL returned error: 403",
                true,
            ),
            (
                "remote: You can't push code to a read-only GitLab instance.\nfatal: unable to access 'x': The requested URL returned error: 403",
                false,
            ),
            (
                "fatal: '/srv/r' does not appear to be a git repository",
                true,
            ),
            (
                "fatal: detected dubious ownership in repository at '/srv/r'",
                true,
            ),
            (
                "fatal: unable to access 'https://example.org/r/': The requested URL returned error: 503",
                false,
            ),
            (
                "fatal: unable to access 'https://example.org/r/': The requested URL returned error: 429",
                false,
            ),
            (
                "fatal: unable to access 'x': Failed to connect to example.org port 443",
                false,
            ),
            (
                "fatal: unable to access 'x': Could not resolve host: example.org",
                false,
            ),
            (
                "ssh: Could not resolve hostname example.org: Name or service not known",
                false,
            ),
            (
                "fatal: unable to access 'x': Operation too slow. Less than 1000 bytes/sec",
                false,
            ),
            ("", false),
        ] {
            let error = judge(stderr, "reach", &remote());
            assert_eq!(matches!(error, Error::Permanent(_)), permanent, "{error}");
        }
    }
}
