use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::git::{Call, Git};
use crate::limit::Limit;
use crate::refusal;
use crate::remote::{Kind, Remote};
use crate::token::Token;
use crate::{Error, Result};

/// Packs that fetches may leave before the repository is begun anew.
const MOST_PACKS: usize = 16;

/// A bare repository without a work tree, in which commits are put together for one remote.
///
/// It is a cache: it keeps no refs, and it can be thrown away at any time, since the remote has all
/// that was delivered. Whole files of a checkpoint that go as plain blobs lie in `outgoing`, an
/// object store of its own that is emptied after each delivery, so that the repository stays small.
pub(crate) struct Repository<'a> {
    git: &'a Git,
    remote: &'a Remote,
    token: Option<&'a Token>,
    limit: &'a Limit<'a>,
    dir: PathBuf,
}

/// Where the remote stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The branch's commit, if the branch exists.
    pub(crate) branch: Option<String>,
    /// The default branch's commit, if it exists: where a new branch begins.
    head: Option<String>,
}

/// A file of a tree to be.
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) blob: String,
}

/// A plain file of a commit.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) path: String,
    id: String,
    pub(crate) size: u64,
}

impl Blob {
    /// From a line of `ls-tree --long`. A blob that is not here has no size.
    fn of(line: &str) -> Option<Self> {
        let (head, path) = line.split_once('\t')?;
        let [_mode, _type, id, size] = head
            .split_ascii_whitespace()
            .collect::<Vec<&str>>()
            .try_into()
            .ok()?;
        Some(Self {
            path: path.to_owned(),
            id: id.to_owned(),
            size: size.parse().ok()?,
        })
    }
}

/// What a push came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The branch is at the commit.
    Landed,
    /// Somebody else moved the branch first, or is about to: git's words.
    Moved(String),
}

impl Tip {
    /// The commit to build on.
    pub(crate) fn base(&self) -> Option<&str> {
        self.branch.as_deref().or(self.head.as_deref())
    }
}

impl<'a> Repository<'a> {
    /// Opens the repository, or begins it. What a killed process left is cleared away: the caller
    /// has made sure that there is no other.
    pub(crate) fn open(
        git: &'a Git,
        remote: &'a Remote,
        token: Option<&'a Token>,
        state_dir: &Path,
        limit: &'a Limit<'a>,
    ) -> Result<Self> {
        let dir = state_dir.join("repo.git");
        if names(&dir.join("objects/pack"), ".pack").len() > MOST_PACKS {
            remove(&dir)?;
        }
        let repository = Self {
            git,
            remote,
            token,
            limit,
            dir,
        };
        let init = git.call(["init", "--quiet", "--bare", "--template="]);
        let init = init.env("GIT_DIR", &repository.dir).run(limit)?;
        init.success()
            .map_err(|stderr| repository.broken("init", &stderr))?;
        for lock in names(&repository.dir, ".lock") {
            let _ = fs::remove_file(lock);
        }
        let _ = fs::remove_file(repository.index());
        repository.forget_outgoing()?;
        Ok(repository)
    }

    /// Asks the remote where the branch is.
    pub(crate) fn tip(&self, branch: &str) -> Result<Tip> {
        let wanted = format!("refs/heads/{branch}");
        let call = self.call(["ls-remote", "--", self.remote.url(), "HEAD", &wanted]);
        let listed = self.ask("reach", call)?;
        let mut tip = Tip::default();
        for line in String::from_utf8_lossy(&listed).lines() {
            match line.split_once('\t') {
                Some((commit, "HEAD")) => tip.head = Some(commit.to_owned()),
                Some((commit, name)) if name == wanted => tip.branch = Some(commit.to_owned()),
                // A pattern matches the ends of longer names too.
                _ => {}
            }
        }
        Ok(tip)
    }

    /// The commit that a branch or a tag is at, or that the remote's own `HEAD` is.
    pub(crate) fn find(&self, revision: Option<&str>) -> Result<String> {
        let refs = self.refs()?;
        let at = |name: &str| refs.get(name).cloned();
        let found = match revision {
            None => at("HEAD"),
            // What an annotated tag points to is listed behind it.
            Some(name) => at(&format!("refs/heads/{name}"))
                .or_else(|| at(&format!("refs/tags/{name}^{{}}")))
                .or_else(|| at(&format!("refs/tags/{name}"))),
        };
        found.ok_or_else(|| {
            let (url, branches) = (self.remote.url(), branches(&refs));
            Error::Permanent(match revision {
                Some(name) => format!("there is no branch and no tag {name}{branches}: {url}"),
                None => format!("its default branch has no commit{branches}: {url}"),
            })
        })
    }

    /// `, but main, run-1`: the remote's branches, for an error.
    pub(crate) fn other_branches(&self) -> Result<String> {
        Ok(branches(&self.refs()?))
    }

    /// The remote's branches, tags and `HEAD`, with the commits that they are at.
    fn refs(&self) -> Result<BTreeMap<String, String>> {
        let url = self.remote.url();
        let call = self.call([
            "ls-remote",
            "--",
            url,
            "HEAD",
            "refs/heads/*",
            "refs/tags/*",
        ]);
        let listed = self.ask("reach", call)?;
        let listed = String::from_utf8_lossy(&listed);
        let pairs = listed.lines().filter_map(|line| line.split_once('\t'));
        Ok(pairs
            .map(|(commit, name)| (name.to_owned(), commit.to_owned()))
            .collect())
    }

    /// Makes sure that a commit of the remote's is here, with its tree, without its history.
    pub(crate) fn fetch(&self, commit: &str) -> Result<()> {
        let exists = self.call(["cat-file", "-e", &format!("{commit}^{{tree}}")]);
        if exists.run(self.limit)?.status.success() {
            return Ok(());
        }
        let args = [
            "fetch",
            "--quiet",
            "--depth=1",
            "--no-tags",
            "--no-write-fetch-head",
        ];
        let args = args
            .iter()
            .copied()
            .chain(["--", self.remote.url(), commit]);
        self.ask("fetch from", self.call(args)).map(drop)
    }

    /// Whether the commit is in the branch's history. Looks at commits alone, in a repository of its
    /// own; how far back is bounded, but far beyond what others push between two tries of ours.
    pub(crate) fn remote_has(&self, branch: &str, commit: &str) -> Result<bool> {
        let dir = self.dir.join("history.git");
        remove(&dir)?;
        let within = |args: &[&str]| self.git.call(args).env("GIT_DIR", &dir);
        self.local(
            "init",
            within(&["init", "--quiet", "--bare", "--template="]),
        )?;
        let url = format!("remote.origin.url={}", self.remote.url());
        let from = format!("refs/heads/{branch}:refs/heads/tip");
        // A promisor may leave out what the filter names; a server that knows no filter sends all.
        let mut args = vec!["-c", &url, "-c", "remote.origin.promisor=true"];
        args.extend([
            "-c",
            "remote.origin.partialCloneFilter=tree:0",
            "fetch",
            "--quiet",
        ]);
        args.extend(["--filter=tree:0", "--depth=1000", "--no-tags"]);
        if self.remote.kind() == Kind::Local {
            args.push("--upload-pack=git -c uploadpack.allowFilter=true upload-pack");
        }
        args.extend(["origin", &from]);
        self.ask("fetch from", within(&args))?;
        let commits = self.local("rev-list", within(&["rev-list", "refs/heads/tip"]))?;
        remove(&dir)?;
        Ok(commits.lines().any(|line| line == commit))
    }

    /// The plain files of a commit.
    pub(crate) fn files(&self, commit: &str) -> Result<Vec<Blob>> {
        let args = ["ls-tree", "-r", "-z", "--long", "--full-tree", commit];
        let said = self.local("ls-tree", self.call(args))?;
        // Links and submodules have other modes.
        let lines = said.split('\0').filter(|line| line.starts_with("100"));
        lines
            .map(|line| Blob::of(line).ok_or_else(|| self.broken("ls-tree", line)))
            .collect()
    }

    /// Writes a blob to a file, however large it is.
    pub(crate) fn write_to(&self, blob: &Blob, file: &fs::File) -> Result<()> {
        let call = self.call(["cat-file", "blob", &blob.id]).stdout(file);
        self.local("cat-file", call).map(drop)
    }

    /// The content of a small blob.
    pub(crate) fn content(&self, blob: &Blob) -> Result<Vec<u8>> {
        let call = self.call(["cat-file", "blob", &blob.id]);
        Ok(self.local("cat-file", call)?.into_bytes())
    }

    /// A file of a commit, if it is there.
    pub(crate) fn read(&self, commit: Option<&str>, path: &str) -> Result<Option<String>> {
        let Some(commit) = commit else {
            return Ok(None);
        };
        let call = self.call(["cat-file", "blob", &format!("{commit}:{path}")]);
        let output = call.run(self.limit)?;
        Ok(output
            .success()
            .ok()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Keeps a small file's content.
    pub(crate) fn write(&self, content: &[u8]) -> Result<String> {
        let call = self.call(["hash-object", "-w", "--stdin"]).stdin(content);
        Ok(self.local("hash-object", call)?.trim().to_owned())
    }

    /// Takes a file of the checkpoint as it is, until the delivery is over.
    pub(crate) fn write_outgoing(&self, file: &Path) -> Result<String> {
        let args = ["hash-object", "-w", "--no-filters", "--"].map(Path::new);
        let call = self.call(args.into_iter().chain([file]));
        let call = call.env("GIT_OBJECT_DIRECTORY", self.outgoing());
        Ok(self.local("hash-object", call)?.trim().to_owned())
    }

    /// Empties `outgoing`.
    pub(crate) fn forget_outgoing(&self) -> Result<()> {
        remove(&self.outgoing())?;
        fs::create_dir_all(self.outgoing())
            .map_err(|error| Error::io("create folder", &self.outgoing(), &error))
    }

    /// Begins a tree: that of a commit, or an empty one.
    pub(crate) fn begin_tree(&self, base: Option<&str>) -> Result<()> {
        let call = self.call(["read-tree", base.unwrap_or("--empty")]);
        self.local("read-tree", call).map(drop)
    }

    /// Adds files to the tree, in the place of what had their names.
    pub(crate) fn add(&self, entries: &[Entry]) -> Result<()> {
        let mut lines = Vec::new();
        for Entry { path, blob } in entries {
            lines.extend_from_slice(format!("100644 {blob}\t{path}\0").as_bytes());
        }
        let args = ["update-index", "--add", "--replace", "-z", "--index-info"];
        self.local("update-index", self.call(args).stdin(&lines))
            .map(drop)
    }

    /// Which of the paths go by Git LFS, as the tree's own `.gitattributes` say.
    pub(crate) fn lfs_paths(&self, paths: &[&str]) -> Result<BTreeSet<String>> {
        let mut lines = Vec::new();
        for path in paths {
            lines.extend_from_slice(path.as_bytes());
            lines.push(0);
        }
        let args = ["check-attr", "--cached", "--stdin", "-z", "filter"];
        let said = self.local("check-attr", self.call(args).stdin(&lines))?;
        let words: Vec<&str> = said.split('\0').collect();
        // Triples of path, attribute, value.
        let lfs = words.chunks_exact(3).filter(|words| words[2] == "lfs");
        Ok(lfs.map(|words| words[0].to_owned()).collect())
    }

    /// Ends the tree and says its id. Files of the base that were delivered earlier need not be here.
    pub(crate) fn end_tree(&self) -> Result<String> {
        let tree = self.local("write-tree", self.call(["write-tree", "--missing-ok"]))?;
        Ok(tree.trim().to_owned())
    }

    /// Makes a commit. The same arguments give the same id.
    pub(crate) fn commit(
        &self,
        tree: &str,
        parent: Option<&str>,
        message: &str,
        time_secs: u64,
    ) -> Result<String> {
        let mut args = vec!["commit-tree", tree, "-m", message];
        args.extend(parent.iter().flat_map(|parent| ["-p", parent]));
        let date = format!("@{time_secs} +0000");
        let call = self
            .call(args)
            .env("GIT_AUTHOR_NAME", "hub-git")
            .env("GIT_AUTHOR_EMAIL", "hub-git@localhost")
            .env("GIT_AUTHOR_DATE", &date)
            .env("GIT_COMMITTER_NAME", "hub-git")
            .env("GIT_COMMITTER_EMAIL", "hub-git@localhost")
            .env("GIT_COMMITTER_DATE", &date);
        Ok(self.local("commit-tree", call)?.trim().to_owned())
    }

    /// A commit's tree and message.
    pub(crate) fn describe(&self, commit: &str) -> Result<(String, String)> {
        let call = self.call(["show", "--no-patch", "--format=%T%n%B", commit]);
        let said = self.local("show", call)?;
        let (tree, message) = said.split_once('\n').unwrap_or((&said, ""));
        Ok((tree.to_owned(), message.trim().to_owned()))
    }

    /// Moves the remote's branch to the commit, if it is where it was. Git's exit status says less
    /// than its line about the branch, so that line is what counts.
    pub(crate) fn push(&self, branch: &str, commit: &str, tip: &Tip) -> Result<Pushed> {
        let name = format!("refs/heads/{branch}");
        let lease = tip.branch.as_deref().unwrap_or_default();
        let lease = format!("--force-with-lease={name}:{lease}");
        // No `+` before the commit: it would switch the lease off.
        let update = format!("{commit}:{name}");
        let mut args = vec!["push", "--porcelain", "--no-verify", "--no-thin", &lease];
        if self.remote.kind() == Kind::Local {
            // It would spend most of the time on compressing weights, which do not compress.
            args.push("--receive-pack=git -c core.looseCompression=0 receive-pack");
        }
        args.extend(["--", self.remote.url(), &update]);
        let call = self.call(args);
        let call = call.authorization(self.remote.origin(), self.token);
        let output = call.run(self.limit)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        refusal::judge_push(&stdout, &output.stderr, &name, self.remote)
    }

    /// Whether the remote would take a push, as far as it says before anything is sent.
    pub(crate) fn push_dry(&self, commit: &str) -> Result<()> {
        let update = format!("+{commit}:refs/heads/host-preflight");
        let args = ["push", "--dry-run", "--porcelain", "--no-verify", "--"];
        let args = args.iter().copied().chain([self.remote.url(), &update]);
        self.ask("push to", self.call(args)).map(drop)
    }

    /// A call on this repository.
    fn call<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Call<'a> {
        self.git
            .call(args)
            .env("GIT_DIR", &self.dir)
            .env("GIT_INDEX_FILE", self.index())
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", self.outgoing())
    }

    /// Runs a call that only touches this repository. If that fails, the repository is no good, and
    /// the next try begins a new one.
    fn local(&self, what: &str, call: Call<'_>) -> Result<String> {
        match call.run(self.limit)?.success() {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(stderr) => Err(self.broken(what, &stderr)),
        }
    }

    /// Runs a call that reads from the remote.
    fn ask(&self, verb: &str, call: Call<'_>) -> Result<Vec<u8>> {
        let call = call.authorization(self.remote.origin(), self.token);
        let output = call.run(self.limit)?;
        output
            .success()
            .map_err(|stderr| refusal::judge(&stderr, verb, self.remote))
    }

    fn broken(&self, what: &str, stderr: &str) -> Error {
        let _ = fs::remove_dir_all(&self.dir);
        let words = refusal::words(stderr);
        Error::Temporary(format!(
            "git {what} failed: {words}: {}",
            self.dir.display()
        ))
    }

    fn index(&self) -> PathBuf {
        self.dir.join("publish.index")
    }

    fn outgoing(&self) -> PathBuf {
        self.dir.join("outgoing")
    }
}

/// `, but main, run-1`: some of the branches among refs.
fn branches(refs: &BTreeMap<String, String>) -> String {
    const MOST: usize = 8;
    let mut names: Vec<&str> = refs
        .keys()
        .filter_map(|name| name.strip_prefix("refs/heads/"))
        .collect();
    let more = names.len().saturating_sub(MOST);
    names.truncate(MOST);
    match (names.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!(", but {}", names.join(", ")),
        (false, more) => format!(", but {} and {more} more", names.join(", ")),
    }
}

/// Removes a folder that may not be there.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", dir, &error))
        }
        _ => Ok(()),
    }
}

/// The files of a folder whose names end so; none if there is no folder.
fn names(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect()
}
