use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::git::{self, Call, Git};
use crate::limit::Limit;
use crate::moved;
use crate::refusal;
use crate::remote::{Kind, Remote};
use crate::token::Token;
use crate::{Error, Result};

/// Maximum number of packs. Each fetch can add packs. If there are more than this number, the repository is
/// recreated.
const MOST_PACKS: usize = 16;

/// A bare repository in which commits for one remote are created.
///
/// It is a cache without refs and can be deleted at any time, because the remote has all delivered
/// commits. Checkpoint files that are pushed as plain blobs are in `outgoing`, a separate object store
/// that is emptied after each delivery, so that the repository stays small.
pub(crate) struct Repository<'a> {
    git: &'a Git,
    remote: &'a Remote,
    token: Option<&'a Token>,
    limit: &'a Limit<'a>,
    dir: PathBuf,
}

/// The latest commits of the remote's branch and default branch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The branch's commit, if the branch exists.
    pub(crate) branch: Option<String>,
    /// The default branch's commit, if it exists. A new branch is based on this commit.
    head: Option<String>,
}

/// A file to add to a tree.
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) blob: String,
}

/// A regular file of a commit.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) path: String,
    id: String,
    pub(crate) size: u64,
}

impl Blob {
    /// Parses a line of `ls-tree --long`. Returns `None` if the line contains no size, because the blob is
    /// not in the repository.
    pub(crate) fn of(line: &str) -> Option<Self> {
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

/// The result of a test push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// The remote would accept the push.
    Ready,
    /// The remote requires SHA-256 ids.
    WantsSha256,
}

/// The result of a push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The branch now points to the commit.
    Landed,
    /// Another client moved the branch first or is moving it now. Contains git's message.
    Moved(String),
}

impl Tip {
    /// Parses the lines of `ls-remote`. Also returns an existing branch whose name conflicts with this
    /// branch, if there is one.
    pub(crate) fn of(listed: &str, branch: &str) -> (Self, Option<String>) {
        let wanted = format!("refs/heads/{branch}");
        let above = above(branch);
        let is_below = |name: &str| {
            name.strip_prefix(&*wanted)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        let mut tip = Self::default();
        let mut conflict = None;
        for line in listed.lines() {
            match line.split_once('\t') {
                Some((commit, "HEAD")) => tip.head = Some(commit.to_owned()),
                Some((commit, name)) if name == wanted => tip.branch = Some(commit.to_owned()),
                Some((_, name)) if is_below(name) || above.iter().any(|above| above == name) => {
                    conflict = name.strip_prefix("refs/heads/").map(str::to_owned);
                }
                // A pattern of `ls-remote` also matches the end of a longer ref name, so other refs can be
                // listed too.
                _ => {}
            }
        }
        (tip, conflict)
    }

    /// The commit to build on.
    pub(crate) fn base(&self) -> Option<&str> {
        self.branch.as_deref().or(self.head.as_deref())
    }
}

impl<'a> Repository<'a> {
    /// Opens the repository, or creates it. Removes the locks and files that a killed process left. The
    /// caller guarantees that no other process uses the repository.
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
        repository.init(None)?;
        for lock in names(&repository.dir, ".lock") {
            let _ = fs::remove_file(lock);
        }
        let _ = fs::remove_file(repository.index());
        repository.forget_outgoing()?;
        Ok(repository)
    }

    /// Creates the repository if it does not exist.
    fn init(&self, format: Option<&str>) -> Result<()> {
        let mut args = vec!["init", "--quiet", "--bare", "--template="];
        args.extend(format);
        let init = self.git.call(args).env("GIT_DIR", &self.dir);
        self.local("init", init).map(drop)
    }

    /// Recreates the repository, with SHA-256 ids.
    pub(crate) fn begin_with_sha256(&self) -> Result<()> {
        remove(&self.dir)?;
        self.init(Some("--object-format=sha256"))?;
        self.forget_outgoing()
    }

    fn has_sha256(&self) -> bool {
        fs::read_to_string(self.dir.join("config")).is_ok_and(|text| text.contains("sha256"))
    }

    /// Whether an empty remote on this machine uses SHA-256 ids. An empty remote has no commit id whose
    /// length would show the hash algorithm.
    fn remote_wants_sha256(&self) -> bool {
        if self.remote.kind() != Kind::Local {
            return false;
        }
        let dir = git::git_dir(Path::new(self.remote.url()));
        let call = self.git.call(["rev-parse", "--show-object-format=storage"]);
        let output = call.env("GIT_DIR", dir).run(self.limit);
        output.is_ok_and(|output| output.stdout.starts_with(b"sha256"))
    }

    /// Reads the commit of the branch from the remote.
    ///
    /// # Errors
    /// Returns an error if the remote cannot be reached, or if the branch's name conflicts with another
    /// branch of the remote. Git cannot have both `a` and `a/b`.
    pub(crate) fn tip(&self, branch: &str) -> Result<Tip> {
        let wanted = format!("refs/heads/{branch}");
        let below = format!("{wanted}/*");
        let above = above(branch);
        let mut patterns = vec!["HEAD", &wanted, &below];
        patterns.extend(above.iter().map(String::as_str));
        let listed = self.list(&patterns)?;
        let (tip, conflict) = Tip::of(&listed, branch);
        if let (Some(other), None) = (conflict, &tip.branch) {
            return Err(Error::Permanent(format!(
                "the branch {branch} conflicts with the existing branch {other}: set branch to another name, or delete {other}: {}",
                self.remote.url()
            )));
        }
        let wants_sha256 = match tip.base() {
            Some(commit) => commit.len() == 64,
            None => self.remote_wants_sha256(),
        };
        if wants_sha256 && !self.has_sha256() {
            self.begin_with_sha256()?;
        }
        Ok(tip)
    }

    /// Returns the lines of `ls-remote` for these patterns.
    fn list(&self, patterns: &[&str]) -> Result<String> {
        let program = self.server_side("upload-pack", &[]);
        let listed = self.ask("reach", |url| {
            let mut args = vec!["ls-remote"];
            args.extend(program.as_deref());
            args.extend(["--", url]);
            args.extend(patterns);
            self.call(args)
        })?;
        Ok(String::from_utf8_lossy(&listed).into_owned())
    }

    /// Returns the option of git that chooses the program to run on the remote side, if the remote is on this
    /// machine. The option also passes `config` and the user's `safe.directory` to that program, which git
    /// would not do by itself.
    fn server_side(&self, program: &str, config: &[&str]) -> Option<String> {
        if self.remote.kind() != Kind::Local {
            return None;
        }
        let mut command = format!("--{program}=git");
        let safe = self.git.network().safe_directories();
        let safe = safe.iter().map(|folder| format!("safe.directory={folder}"));
        for setting in config.iter().map(|text| (*text).to_owned()).chain(safe) {
            command += &format!(" -c '{}'", setting.replace('\'', r"'\''"));
        }
        Some(format!("{command} {program}"))
    }

    /// Returns the commit of a branch or tag, or of the remote's `HEAD` if `revision` is `None`.
    pub(crate) fn find(&self, revision: Option<&str>) -> Result<String> {
        let refs = self.refs()?;
        let at = |name: &str| refs.get(name).cloned();
        let found = match revision {
            None => at("HEAD"),
            Some(name) if name.starts_with("refs/") => at(&format!("{name}^{{}}"))
                .or_else(|| at(name))
                .or(self.find_whole(name)?),
            // The target of an annotated tag is listed as `NAME^{}`.
            Some(name) => at(&format!("refs/heads/{name}"))
                .or_else(|| at(&format!("refs/tags/{name}^{{}}")))
                .or_else(|| at(&format!("refs/tags/{name}"))),
        };
        found.ok_or_else(|| {
            let (url, branches) = (self.remote.url(), branches(&refs));
            Error::Permanent(match revision {
                Some(name) if is_short_id(name) => format!(
                    "no branch or tag {name}{branches}; to select a commit, use its full id: {url}"
                ),
                Some(name) => format!("no branch or tag {name}{branches}: {url}"),
                None => format!("the default branch has no commit{branches}: {url}"),
            })
        })
    }

    /// Returns the remote's branches for an error, as ` (branches: main, run-1)`.
    pub(crate) fn other_branches(&self) -> Result<String> {
        Ok(branches(&self.refs()?))
    }

    /// Returns the commit of a ref that is neither a branch nor a tag, such as `refs/pr/1` on the Hub.
    fn find_whole(&self, name: &str) -> Result<Option<String>> {
        let listed = self.list(&[name])?;
        let mut pairs = listed.lines().filter_map(|line| line.split_once('\t'));
        Ok(pairs
            .find(|(_, at)| *at == name)
            .map(|(id, _)| id.to_owned()))
    }

    /// Returns the remote's branches, tags and `HEAD`, with their commits.
    fn refs(&self) -> Result<BTreeMap<String, String>> {
        let listed = self.list(&["HEAD", "refs/heads/*", "refs/tags/*"])?;
        let pairs = listed.lines().filter_map(|line| line.split_once('\t'));
        Ok(pairs
            .map(|(commit, name)| (name.to_owned(), commit.to_owned()))
            .collect())
    }

    /// Fetches the tree and the wanted files of a commit from the remote, unless they are already here. Does
    /// not fetch the history. Leaves out other large files if the server allows it.
    pub(crate) fn fetch(&self, commit: &str, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        if commit.len() == 64 && !self.has_sha256() {
            self.begin_with_sha256()?;
        }
        let exists = self.call(["cat-file", "-e", &format!("{commit}^{{tree}}")]);
        if !exists.run(self.limit)?.status.success() {
            self.fetch_objects(true, &[commit])?;
        }
        let missing = self.missing(commit, wanted)?;
        let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
        if missing.is_empty() || self.fetch_objects(true, &missing).is_ok() {
            return Ok(());
        }
        self.limit.check()?;
        // The server allows fetching only commits, not single blobs.
        let sha256 = self.has_sha256().then_some("--object-format=sha256");
        remove(&self.dir)?;
        self.init(sha256)?;
        self.forget_outgoing()?;
        self.fetch_objects(false, &[commit])
    }

    /// Fetches objects by id, and the objects that they refer to. Leaves out large files if `partial` is set.
    fn fetch_objects(&self, partial: bool, ids: &[&str]) -> Result<()> {
        let allow = [
            "uploadpack.allowFilter=true",
            "uploadpack.allowAnySHA1InWant=true",
        ];
        let program = self.server_side("upload-pack", &allow);
        // The length of a command line is limited.
        for ids in ids.chunks(1000) {
            self.ask("fetch from", |url| {
                let url = format!("remote.origin.url={url}");
                let mut args = vec!["-c", &url];
                if partial {
                    // Git allows a filter only for a promisor remote.
                    args.extend(["-c", "remote.origin.promisor=true"]);
                    args.extend(["-c", "remote.origin.partialCloneFilter=blob:limit=64k"]);
                }
                args.extend([
                    "fetch",
                    "--quiet",
                    "--depth=1",
                    "--no-tags",
                    "--no-write-fetch-head",
                ]);
                if partial {
                    args.push("--filter=blob:limit=64k");
                }
                args.extend(program.as_deref());
                args.push("origin");
                args.extend(ids);
                self.call(args)
            })?;
        }
        Ok(())
    }

    /// Returns the ids of a commit's wanted files that are not in the repository.
    fn missing(&self, commit: &str, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let args = ["ls-tree", "-r", "-z", "--full-tree", commit];
        let said = self.local("ls-tree", self.call(args))?;
        let lines = said.split('\0').filter(|line| line.starts_with("100"));
        let mut ids = String::new();
        for line in lines {
            if let Some((head, path)) = line.split_once('\t')
                && let Some(id) = head.split(' ').nth(2)
                && wanted(path)
            {
                ids += id;
                ids.push('\n');
            }
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let call = self
            .call(["cat-file", "--batch-check"])
            .stdin(ids.as_bytes());
        let said = self.local("cat-file", call)?;
        let lines = said
            .lines()
            .filter_map(|line| line.strip_suffix(" missing"));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Whether the commit is in the branch's history. Fetches only commits, into a temporary repository.
    /// Reads only the last 1000 commits, which is far more than other clients push between two attempts.
    pub(crate) fn remote_has(&self, branch: &str, commit: &str) -> Result<bool> {
        let dir = self.dir.join("history.git");
        remove(&dir)?;
        let within = |args: &[&str]| self.git.call(args).env("GIT_DIR", &dir);
        let mut init = vec!["init", "--quiet", "--bare", "--template="];
        if commit.len() == 64 {
            init.push("--object-format=sha256");
        }
        self.local("init", within(&init))?;
        let from = format!("refs/heads/{branch}:refs/heads/tip");
        let program = self.server_side("upload-pack", &["uploadpack.allowFilter=true"]);
        self.ask("fetch from", |url| {
            let url = format!("remote.origin.url={url}");
            // Git allows a filter only for a promisor remote. A server without filters sends all objects.
            let mut args = vec!["-c", &url, "-c", "remote.origin.promisor=true"];
            args.extend(["-c", "remote.origin.partialCloneFilter=tree:0"]);
            args.extend([
                "fetch",
                "--quiet",
                "--filter=tree:0",
                "--depth=1000",
                "--no-tags",
            ]);
            args.extend(program.as_deref());
            args.extend(["origin", &from]);
            within(&args)
        })?;
        let commits = self.local("rev-list", within(&["rev-list", "refs/heads/tip"]))?;
        remove(&dir)?;
        Ok(commits.lines().any(|line| line == commit))
    }

    /// Returns the paths of a commit's regular files.
    pub(crate) fn paths(&self, commit: &str) -> Result<Vec<String>> {
        let args = ["ls-tree", "-r", "-z", "--full-tree", commit];
        let said = self.local("ls-tree", self.call(args))?;
        let lines = said.split('\0').filter(|line| line.starts_with("100"));
        let paths = lines.filter_map(|line| line.split_once('\t'));
        Ok(paths.map(|(_, path)| path.to_owned()).collect())
    }

    /// Returns the wanted regular files of a commit. They must have been fetched.
    pub(crate) fn files(&self, commit: &str, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Blob>> {
        let args = ["ls-tree", "-r", "-z", "--long", "--full-tree", commit];
        let said = self.local("ls-tree", self.call(args))?;
        // Symbolic links and submodules have other modes.
        let lines = said.split('\0').filter(|line| {
            let path = line.split_once('\t').map_or("", |(_, path)| path);
            line.starts_with("100") && wanted(path)
        });
        lines
            .map(|line| Blob::of(line).ok_or_else(|| self.broken("ls-tree", line)))
            .collect()
    }

    /// Writes a blob of any size to a file.
    pub(crate) fn write_to(&self, blob: &Blob, file: &fs::File) -> Result<()> {
        let call = self.call(["cat-file", "blob", &blob.id]).stdout(file);
        self.local("cat-file", call).map(drop)
    }

    /// Returns the content of a small blob.
    pub(crate) fn content(&self, blob: &Blob) -> Result<Vec<u8>> {
        let call = self.call(["cat-file", "blob", &blob.id]);
        Ok(self.local("cat-file", call)?.into_bytes())
    }

    /// Reads a file of a commit. Returns `None` if the commit or the file does not exist.
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

    /// Stores the content of a small file as a blob and returns its id.
    pub(crate) fn write(&self, content: &[u8]) -> Result<String> {
        let call = self.call(["hash-object", "-w", "--stdin"]).stdin(content);
        Ok(self.local("hash-object", call)?.trim().to_owned())
    }

    /// Stores a file of the checkpoint unchanged in `outgoing` and returns the blob's id.
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

    /// Fills the index with the tree of a commit, or empties the index if there is no commit.
    pub(crate) fn begin_tree(&self, base: Option<&str>) -> Result<()> {
        let call = self.call(["read-tree", base.unwrap_or("--empty")]);
        self.local("read-tree", call).map(drop)
    }

    /// Adds files to the index, replacing those with the same names.
    pub(crate) fn add(&self, entries: &[Entry]) -> Result<()> {
        let mut lines = Vec::new();
        for Entry { path, blob } in entries {
            lines.extend_from_slice(format!("100644 {blob}\t{path}\0").as_bytes());
        }
        let args = ["update-index", "--add", "--replace", "-z", "--index-info"];
        self.local("update-index", self.call(args).stdin(&lines))
            .map(drop)
    }

    /// Returns those of the paths that `.gitattributes` in the index assigns to Git LFS.
    ///
    /// # Errors
    /// Returns an error if a path has a filter other than LFS, such as encryption.
    pub(crate) fn lfs_paths(&self, paths: &[&str]) -> Result<BTreeSet<String>> {
        let mut lines = Vec::new();
        for path in paths {
            lines.extend_from_slice(path.as_bytes());
            lines.push(0);
        }
        let args = ["check-attr", "--cached", "--stdin", "-z", "filter"];
        let said = self.local("check-attr", self.call(args).stdin(&lines))?;
        let words: Vec<&str> = said.split('\0').collect();
        let mut by_lfs = BTreeSet::new();
        // The output consists of triples: path, attribute, value.
        for words in words.chunks_exact(3) {
            match words[2] {
                "lfs" => drop(by_lfs.insert(words[0].to_owned())),
                "unspecified" | "unset" | "set" | "" => {}
                other => {
                    return Err(Error::Permanent(format!(
                        "the branch's .gitattributes sets the filter {other:?} for {}, but only lfs is supported: {}",
                        words[0],
                        self.remote.url()
                    )));
                }
            }
        }
        Ok(by_lfs)
    }

    /// Writes the index as a tree and returns its id. A missing blob is not an error, because the repository
    /// can lack the blobs of files that were delivered earlier.
    pub(crate) fn end_tree(&self) -> Result<String> {
        let tree = self.local("write-tree", self.call(["write-tree", "--missing-ok"]))?;
        Ok(tree.trim().to_owned())
    }

    /// Creates a commit and returns its id. The same arguments give the same id.
    pub(crate) fn commit(
        &self,
        tree: &str,
        parent: Option<&str>,
        message: &str,
        author: (&str, &str),
        time_secs: u64,
    ) -> Result<String> {
        let mut args = vec!["commit-tree", tree, "-m", message];
        args.extend(parent.iter().flat_map(|parent| ["-p", parent]));
        let date = format!("@{time_secs} +0000");
        let (name, email) = author;
        let call = self
            .call(args)
            .env("GIT_AUTHOR_NAME", name)
            .env("GIT_AUTHOR_EMAIL", email)
            .env("GIT_AUTHOR_DATE", &date)
            .env("GIT_COMMITTER_NAME", name)
            .env("GIT_COMMITTER_EMAIL", email)
            .env("GIT_COMMITTER_DATE", &date);
        Ok(self.local("commit-tree", call)?.trim().to_owned())
    }

    /// Returns a commit's tree and message.
    pub(crate) fn describe(&self, commit: &str) -> Result<(String, String)> {
        let call = self.call(["show", "--no-patch", "--format=%T%n%B", commit]);
        let said = self.local("show", call)?;
        let (tree, message) = said.split_once('\n').unwrap_or((&said, ""));
        Ok((tree.to_owned(), message.trim().to_owned()))
    }

    /// Moves the remote's branch to the commit if the branch is still at `tip`. The result is taken from
    /// git's line about the branch, which is more precise than git's exit status.
    pub(crate) fn push(&self, branch: &str, commit: &str, tip: &Tip) -> Result<Pushed> {
        let name = format!("refs/heads/{branch}");
        let lease = tip.branch.as_deref().unwrap_or_default();
        let lease = format!("--force-with-lease={name}:{lease}");
        // There is no `+` before the commit, because it would disable the lease.
        let update = format!("{commit}:{name}");
        let mut output = self.send(&[&lease], &[&update], &[])?;
        if refusal::wants_length(&output.stderr) {
            // With a large buffer, git builds the whole pack before it sends it, and so can send its length.
            let whole = [("http.postBuffer", "2147483647")];
            output = self.send(&[&lease], &[&update], &whole)?;
        }
        if refusal::wants_other_ids(&output.stderr) && !self.has_sha256() {
            self.begin_with_sha256()?;
            return Ok(Pushed::Moved("the remote uses SHA-256 ids".to_owned()));
        }
        let stdout = String::from_utf8_lossy(&output.stdout);
        refusal::judge_push(&stdout, &output.stderr, &name, self.remote)
    }

    /// Tests whether the remote would accept a commit on the branch. In one atomic push, sends the commit to
    /// this branch and to a second branch. The names of the two branches conflict. The remote runs its hooks
    /// and rules, and then rejects both updates because of the conflict.
    ///
    /// # Errors
    /// Returns an error if the remote rejects the push for another reason. The error contains the remote's
    /// message.
    pub(crate) fn try_push(&self, branch: &str, commit: &str, tip: &Tip) -> Result<Tried> {
        let name = format!("refs/heads/{branch}");
        let beside = format!("{name}/host-preflight");
        let updates = [format!("{commit}:{name}"), format!("{commit}:{beside}")];
        let updates = updates.each_ref().map(String::as_str);
        let output = self.send(&["--atomic"], &updates, &[])?;
        let stderr = &*output.stderr;
        if refusal::wants_other_ids(stderr) {
            return Ok(Tried::WantsSha256);
        }
        if stderr.contains("does not support --atomic") {
            self.push_dry(updates[0])?;
            return Ok(Tried::Ready);
        }
        let stdout = String::from_utf8_lossy(&output.stdout);
        let landed = match refusal::judge_push(&stdout, stderr, &name, self.remote)? {
            Pushed::Landed => true,
            Pushed::Moved(_) => {
                if let Some(words) = refusal::trouble(stderr) {
                    let url = self.remote.url();
                    return Err(Error::Temporary(format!("cannot push to {url}: {words}")));
                }
                false
            }
        };
        if landed {
            // Unlike git's own server, this server accepted both updates: undo them.
            let back = match &tip.branch {
                Some(before) => format!("+{before}:{name}"),
                None => format!(":{name}"),
            };
            self.send(&[], &[&back, &format!(":{beside}")], &[])?;
        }
        Ok(Tried::Ready)
    }

    /// Tests a push with `--dry-run`, which sends no objects.
    fn push_dry(&self, update: &str) -> Result<()> {
        let program = self.server_side("receive-pack", &[]);
        self.ask("push to", |url| {
            let mut args = vec!["push", "--dry-run", "--porcelain", "--no-verify"];
            args.extend(program.as_deref());
            args.extend(["--", url, update]);
            self.call(args)
        })
        .map(drop)
    }

    /// Runs `git push`. Returns `Ok` for any exit status.
    fn send(
        &self,
        options: &[&str],
        updates: &[&str],
        config: &[(&'static str, &'static str)],
    ) -> Result<git::Output> {
        // Without this setting, a push to a remote on this machine would spend most of its time compressing
        // weights.
        let program = self.server_side("receive-pack", &["core.looseCompression=0"]);
        let config: Vec<String> = config
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let mut args: Vec<&str> = config.iter().flat_map(|setting| ["-c", setting]).collect();
        args.extend(["push", "--porcelain", "--no-verify", "--no-thin"]);
        args.extend(options);
        args.extend(program.as_deref());
        args.extend(["--", self.remote.url()]);
        args.extend(updates);
        let call = self.call(args);
        call.authorization(self.remote.origin(), self.token)
            .run(self.limit)
    }

    /// Returns a git call that uses this repository.
    fn call<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Call<'a> {
        self.git
            .call(args)
            .env("GIT_DIR", &self.dir)
            .env("GIT_INDEX_FILE", self.index())
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", self.outgoing())
    }

    /// Runs a call that uses only this repository. On failure, removes the repository, so that the next
    /// attempt creates a new one.
    fn local(&self, what: &str, call: Call<'_>) -> Result<String> {
        match call.run(self.limit)?.success() {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(stderr) => Err(self.broken(what, &stderr)),
        }
    }

    /// Runs a call with the remote's URL. If the remote repository has moved, runs the call again with the
    /// new URL.
    fn ask<'c>(&'c self, verb: &str, call: impl Fn(&str) -> Call<'c>) -> Result<Vec<u8>> {
        let ask = || {
            let call = call(self.remote.url());
            let call = call.authorization(self.remote.origin(), self.token);
            Ok(call.run(self.limit)?.success())
        };
        let mut said = ask()?;
        if let Err(stderr) = &said
            && refusal::is_redirect(stderr)
            && moved::follow(self.git.network(), self.remote, self.token, self.limit)?
        {
            said = ask()?;
        }
        said.map_err(|stderr| refusal::judge(&stderr, verb, self.remote))
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

/// Returns the refs that conflict with this branch because they are parent folders of its name.
fn above(branch: &str) -> Vec<String> {
    let ends = branch.match_indices('/').map(|(at, _)| &branch[..at]);
    ends.map(|name| format!("refs/heads/{name}")).collect()
}

/// Whether a name looks like an abbreviated commit id.
fn is_short_id(name: &str) -> bool {
    (7..40).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether this file of the previous commit is needed to create a new commit. The needed files are the
/// attributes, the LFS configuration and the model card.
pub(crate) fn says_how(path: &str) -> bool {
    let (_, name) = path.rsplit_once('/').unwrap_or(("", path));
    name == ".gitattributes" || matches!(path, "README.md" | ".lfsconfig")
}

/// Returns the first branches of `refs` for an error, as ` (branches: main, run-1)`.
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
        (false, 0) => format!(" (branches: {})", names.join(", ")),
        (false, more) => format!(" (branches: {} and {more} more)", names.join(", ")),
    }
}

/// Removes a folder if it exists.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", dir, &error))
        }
        _ => Ok(()),
    }
}

/// Returns the files of a folder whose names end with `ending`. Returns no files if the folder does not
/// exist.
fn names(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect()
}
