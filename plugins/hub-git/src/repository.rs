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

/// What came of trying a push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// The remote would take it.
    Ready,
    /// It wants commits with ids of SHA-256.
    WantsSha256,
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
    /// From the lines of `ls-remote`, with another branch that keeps this one from being made.
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
                // A pattern matches the ends of longer names too.
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
        repository.init(None)?;
        for lock in names(&repository.dir, ".lock") {
            let _ = fs::remove_file(lock);
        }
        let _ = fs::remove_file(repository.index());
        repository.forget_outgoing()?;
        Ok(repository)
    }

    /// Begins the repository, or leaves it as it is.
    fn init(&self, format: Option<&str>) -> Result<()> {
        let mut args = vec!["init", "--quiet", "--bare", "--template="];
        args.extend(format);
        let init = self.git.call(args).env("GIT_DIR", &self.dir);
        self.local("init", init).map(drop)
    }

    /// Begins the repository again, with ids of the remote's kind.
    pub(crate) fn begin_with_sha256(&self) -> Result<()> {
        remove(&self.dir)?;
        self.init(Some("--object-format=sha256"))?;
        self.forget_outgoing()
    }

    fn has_sha256(&self) -> bool {
        fs::read_to_string(self.dir.join("config")).is_ok_and(|text| text.contains("sha256"))
    }

    /// Whether an empty repository on this machine wants ids of SHA-256. It lists none to tell by.
    fn remote_wants_sha256(&self) -> bool {
        if self.remote.kind() != Kind::Local {
            return false;
        }
        let dir = git::git_dir(Path::new(self.remote.url()));
        let call = self.git.call(["rev-parse", "--show-object-format=storage"]);
        let output = call.env("GIT_DIR", dir).run(self.limit);
        output.is_ok_and(|output| output.stdout.starts_with(b"sha256"))
    }

    /// Asks the remote where the branch is.
    ///
    /// # Errors
    /// It cannot be asked, or another branch is where this one's folder would be, or the reverse: git
    /// keeps one or the other.
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
                "a branch {branch} cannot be beside the branch {other}, which is there: choose another name by branch, or delete that one: {}",
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

    /// The lines of `ls-remote` for these names.
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

    /// The option that names the other side's program, for a repository on this machine: with
    /// configuration, and with the folders of other users that this user calls safe. Git hands neither to
    /// it otherwise.
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

    /// The commit that a branch or a tag is at, or that the remote's own `HEAD` is.
    pub(crate) fn find(&self, revision: Option<&str>) -> Result<String> {
        let refs = self.refs()?;
        let at = |name: &str| refs.get(name).cloned();
        let found = match revision {
            None => at("HEAD"),
            Some(name) if name.starts_with("refs/") => at(&format!("{name}^{{}}"))
                .or_else(|| at(name))
                .or(self.find_whole(name)?),
            // What an annotated tag points to is listed behind it.
            Some(name) => at(&format!("refs/heads/{name}"))
                .or_else(|| at(&format!("refs/tags/{name}^{{}}")))
                .or_else(|| at(&format!("refs/tags/{name}"))),
        };
        found.ok_or_else(|| {
            let (url, branches) = (self.remote.url(), branches(&refs));
            Error::Permanent(match revision {
                Some(name) if is_short_id(name) => format!(
                    "there is no branch and no tag {name}{branches}; of a commit the whole id is needed: {url}"
                ),
                Some(name) => format!("there is no branch and no tag {name}{branches}: {url}"),
                None => format!("its default branch has no commit{branches}: {url}"),
            })
        })
    }

    /// `, but main, run-1`: the remote's branches, for an error.
    pub(crate) fn other_branches(&self) -> Result<String> {
        Ok(branches(&self.refs()?))
    }

    /// What a name is at that is neither a branch nor a tag, such as `refs/pr/1` on the Hub.
    fn find_whole(&self, name: &str) -> Result<Option<String>> {
        let listed = self.list(&[name])?;
        let mut pairs = listed.lines().filter_map(|line| line.split_once('\t'));
        Ok(pairs
            .find(|(_, at)| *at == name)
            .map(|(id, _)| id.to_owned()))
    }

    /// The remote's branches, tags and `HEAD`, with the commits that they are at.
    fn refs(&self) -> Result<BTreeMap<String, String>> {
        let listed = self.list(&["HEAD", "refs/heads/*", "refs/tags/*"])?;
        let pairs = listed.lines().filter_map(|line| line.split_once('\t'));
        Ok(pairs
            .map(|(commit, name)| (name.to_owned(), commit.to_owned()))
            .collect())
    }

    /// Makes sure that a commit of the remote's is here, with its tree, without its history, and with
    /// the files that are wanted: others may be large. A server that leaves none out sends all.
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
        // A server that gives commits alone.
        let sha256 = self.has_sha256().then_some("--object-format=sha256");
        remove(&self.dir)?;
        self.init(sha256)?;
        self.forget_outgoing()?;
        self.fetch_objects(false, &[commit])
    }

    /// Fetches objects by their ids, with what they are made of, but for large files if `partial`.
    fn fetch_objects(&self, partial: bool, ids: &[&str]) -> Result<()> {
        let allow = [
            "uploadpack.allowFilter=true",
            "uploadpack.allowAnySHA1InWant=true",
        ];
        let program = self.server_side("upload-pack", &allow);
        // An argument's length is bounded.
        for ids in ids.chunks(1000) {
            self.ask("fetch from", |url| {
                let url = format!("remote.origin.url={url}");
                let mut args = vec!["-c", &url];
                if partial {
                    // A promisor may leave out what the filter names.
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

    /// The ids of a commit's wanted files that are not here.
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

    /// Whether the commit is in the branch's history. Looks at commits alone, in a repository of its
    /// own; how far back is bounded, but far beyond what others push between two tries of ours.
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
            // A promisor may leave out what the filter names; a server that knows no filter sends all.
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

    /// The paths of a commit's plain files.
    pub(crate) fn paths(&self, commit: &str) -> Result<Vec<String>> {
        let args = ["ls-tree", "-r", "-z", "--full-tree", commit];
        let said = self.local("ls-tree", self.call(args))?;
        let lines = said.split('\0').filter(|line| line.starts_with("100"));
        let paths = lines.filter_map(|line| line.split_once('\t'));
        Ok(paths.map(|(_, path)| path.to_owned()).collect())
    }

    /// The plain files of a commit that are wanted, and so are here.
    pub(crate) fn files(&self, commit: &str, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Blob>> {
        let args = ["ls-tree", "-r", "-z", "--long", "--full-tree", commit];
        let said = self.local("ls-tree", self.call(args))?;
        // Links and submodules have other modes.
        let lines = said.split('\0').filter(|line| {
            let path = line.split_once('\t').map_or("", |(_, path)| path);
            line.starts_with("100") && wanted(path)
        });
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
    ///
    /// # Errors
    /// They want another filter for one of them, such as an encryption, which is not run here.
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
        // Triples of path, attribute, value.
        for words in words.chunks_exact(3) {
            match words[2] {
                "lfs" => drop(by_lfs.insert(words[0].to_owned())),
                "unspecified" | "unset" | "set" | "" => {}
                other => {
                    return Err(Error::Permanent(format!(
                        "the branch's .gitattributes want the filter {other:?} for {}, and only lfs is known here: {}",
                        words[0],
                        self.remote.url()
                    )));
                }
            }
        }
        Ok(by_lfs)
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
        let mut output = self.send(&[&lease], &[&update], &[])?;
        if refusal::wants_length(&output.stderr) {
            // The whole pack is put together before it is sent, so that its length can be said.
            let whole = [("http.postBuffer", "2147483647")];
            output = self.send(&[&lease], &[&update], &whole)?;
        }
        if refusal::wants_other_ids(&output.stderr) && !self.has_sha256() {
            self.begin_with_sha256()?;
            return Ok(Pushed::Moved("its ids are of SHA-256".to_owned()));
        }
        let stdout = String::from_utf8_lossy(&output.stdout);
        refusal::judge_push(&stdout, &output.stderr, &name, self.remote)
    }

    /// Whether the remote would take a commit on the branch: it is pushed together with a branch that
    /// cannot be beside it, both or none, so the remote asks its hooks and rules and then keeps neither.
    ///
    /// # Errors
    /// It would not, in its own words.
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
            // It keeps what git's own servers do not: each is put back where it was.
            let back = match &tip.branch {
                Some(before) => format!("+{before}:{name}"),
                None => format!(":{name}"),
            };
            self.send(&[], &[&back, &format!(":{beside}")], &[])?;
        }
        Ok(Tried::Ready)
    }

    /// Whether the remote would take a push, as far as it says before anything is sent.
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

    /// Runs `git push`, whatever comes of it.
    fn send(
        &self,
        options: &[&str],
        updates: &[&str],
        config: &[(&'static str, &'static str)],
    ) -> Result<git::Output> {
        // The other side would spend most of the time on compressing weights, which do not compress.
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

    /// Runs a call that reads from the remote, at its URL; once more if the server says that the
    /// repository is elsewhere.
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

/// The names of the branches whose folder this branch would be in.
fn above(branch: &str) -> Vec<String> {
    let ends = branch.match_indices('/').map(|(at, _)| &branch[..at]);
    ends.map(|name| format!("refs/heads/{name}")).collect()
}

/// Whether a name looks like the beginning of a commit's id.
fn is_short_id(name: &str) -> bool {
    (7..40).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Files that say how a branch is kept, and the model card: what a commit on top of another looks at.
pub(crate) fn says_how(path: &str) -> bool {
    let (_, name) = path.rsplit_once('/').unwrap_or(("", path));
    name == ".gitattributes" || matches!(path, "README.md" | ".lfsconfig")
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
