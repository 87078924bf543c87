//! A git server for tests: the real `git http-backend` behind basic authentication. Its Git LFS batch server
//! supports the basic transfer and the Hub's multipart transfer, and checks every sha256. Its pre-receive
//! hook makes the same checks as the Hub.
//!
//! Clients send objects to a second port, which stands for a separate object host. This port refuses requests
//! with credentials, so a client that leaks its token to the object host fails. Only `git` must be installed.
#![forbid(unsafe_code)]

mod api;
mod backend;
mod fault;
mod http;
mod lfs;
mod proxy;
mod relay;
mod repository;
mod tls;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

pub use fault::Fault;
pub use lfs::parse_pointer;
pub use proxy::TestProxy;
pub use tls::TlsDoor;

use fault::Trap;
use http::{Request, Response};
use lfs::Lfs;

/// The token with read and write access.
pub const WRITE_TOKEN: &str = "hf_WriteTokenOfTheTests0123456789";
/// The token with read access.
pub const READ_TOKEN: &str = "hf_ReadTokenOfTheTests0123456789";

/// Marker file of a public repository.
const PUBLIC: &str = "test-hub-public";

/// A running server with its repositories in a temporary folder. Dropping it stops the server and removes the
/// folder.
#[derive(Debug)]
pub struct TestHub {
    shared: Arc<Shared>,
    acceptors: Vec<(SocketAddr, JoinHandle<()>)>,
    _folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    object_host: String,
    /// 0 disables parts.
    part_bytes: AtomicU64,
    stopped: AtomicBool,
    traps: Mutex<Vec<Trap>>,
    requests: Mutex<Vec<String>>,
    /// The requests with credentials.
    with_credentials: Mutex<Vec<String>>,
    /// Whether objects are sent to the git server itself, which requires the token for them.
    objects_at_home: AtomicBool,
    connections: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
    /// Number of multipart uploads started so far.
    uploads: AtomicU64,
    url: String,
}

/// The port that a request was sent to.
#[derive(Clone, Copy)]
enum Door {
    Git,
    Objects,
}

impl TestHub {
    /// Starts a server without repositories.
    ///
    /// # Panics
    /// Panics if there is no temporary folder or no free port.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let git = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let objects = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = |listener: &TcpListener| listener.local_addr().expect("a bound port");
        let shared = Arc::new(Shared {
            root: folder.path().to_owned(),
            object_host: format!("http://{}", address(&objects)),
            part_bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            traps: Mutex::default(),
            requests: Mutex::default(),
            with_credentials: Mutex::default(),
            objects_at_home: AtomicBool::new(false),
            connections: Mutex::default(),
            uploads: AtomicU64::new(0),
            url: format!("http://{}", address(&git)),
        });
        let acceptors = [(git, Door::Git), (objects, Door::Objects)]
            .into_iter()
            .map(|(listener, door)| {
                let shared = Arc::clone(&shared);
                let at = address(&listener);
                let thread = std::thread::Builder::new()
                    .name("test-hub accept".to_owned())
                    .spawn(move || accept(&shared, &listener, door))
                    .expect("a thread");
                (at, thread)
            })
            .collect();
        Self {
            shared,
            acceptors,
            _folder: folder,
        }
    }

    /// Returns the server's URL: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Returns the URL of a repository: `http://127.0.0.1:PORT/user/model`.
    pub fn repo_url(&self, name: &str) -> String {
        format!("{}/{name}", self.url())
    }

    /// Creates the repository `name`, for example `user/model`. As on the Hub, its `main` has one commit with
    /// the given files (name, text). If no files are given, the repository is empty.
    ///
    /// # Panics
    /// Panics if git does not exist or fails.
    pub fn create_repo(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let repo = self.repo_path(name);
        repository::make(&repo, files);
        repo
    }

    /// Returns the path of the bare repository.
    pub fn repo_path(&self, name: &str) -> PathBuf {
        self.shared.root.join(format!("{name}.git"))
    }

    /// Returns the path of an LFS object in a repository. The file exists only if the object was uploaded.
    pub fn lfs_object(&self, name: &str, sha256: &str) -> PathBuf {
        lfs::object_path(&self.repo_path(name), sha256)
    }

    /// From now on, makes clients send objects in parts of this many bytes. An object that is not larger than
    /// one part is sent as a whole.
    pub fn set_part_bytes(&self, bytes: u64) {
        self.shared.part_bytes.store(bytes, Ordering::SeqCst);
    }

    /// Injects a fault into the next `times` requests whose request line contains `matching`. A request line
    /// is, for example, `POST /user/model/info/…?query`.
    pub fn fault(&self, matching: &str, fault: Fault, times: usize) {
        lock(&self.shared.traps).push(Trap {
            matching: matching.to_owned(),
            fault,
            times,
        });
    }

    /// Makes a repository public: it can be read without a token.
    ///
    /// # Panics
    /// Panics if the repository does not exist.
    pub fn make_public(&self, name: &str) {
        std::fs::write(self.repo_path(name).join(PUBLIC), "").expect("the repository");
    }

    /// Whether a repository was created as private.
    pub fn is_private(&self, name: &str) -> bool {
        self.repo_path(name).join(api::PRIVATE).exists()
    }

    /// From now on, makes clients send objects to the git server itself. The server requires the token for
    /// objects, but does not tell clients so.
    pub fn keep_objects_at_home(&self) {
        self.shared.objects_at_home.store(true, Ordering::SeqCst);
    }

    /// Returns the request lines of all requests with credentials so far.
    pub fn requests_with_credentials(&self) -> Vec<String> {
        lock(&self.shared.with_credentials).clone()
    }

    /// Returns the request lines of all requests so far, to both ports. The form of a line is
    /// `METHOD /path?query`.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for TestHub {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for (address, thread) in self.acceptors.drain(..) {
            // The acceptor checks the flag only after a connection, so this connection makes it stop.
            let _ = TcpStream::connect(address);
            let _ = thread.join();
        }
        for (stream, thread) in lock(&self.shared.connections).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, door: Door) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(handle) = stream.try_clone() else {
            continue;
        };
        let for_thread = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name("test-hub connection".to_owned())
            .spawn(move || {
                // A client that disconnects early is not an error of the server.
                let _ = serve(&for_thread, stream, door);
            })
            .expect("a thread");
        let mut connections = lock(&shared.connections);
        connections.retain(|(_, thread)| !thread.is_finished());
        connections.push((handle, thread));
    }
}

fn serve(shared: &Shared, stream: TcpStream, door: Door) -> io::Result<()> {
    let Some(mut request) = Request::read(stream)? else {
        return Ok(());
    };
    let mut line = format!("{} {}", request.method, request.path);
    if !request.query.is_empty() {
        line += &format!("?{}", request.query);
    }
    lock(&shared.requests).push(line.clone());
    if request.header("authorization").is_some() {
        lock(&shared.with_credentials).push(line.clone());
    }
    let fault = fault::take(&mut lock(&shared.traps), &line);
    match fault {
        Some(Fault::Cut(bytes)) => request.cut_after(bytes),
        Some(Fault::Slow(bytes_per_sec)) => request.slow_down(bytes_per_sec),
        Some(Fault::Wait(ref go)) => shared.wait_until(|| go.load(Ordering::SeqCst)),
        _ => {}
    }
    let says_length = request.header("transfer-encoding") != Some("chunked");
    let mut answer = || match door {
        Door::Git => git_request(shared, &mut request),
        Door::Objects => objects_request(shared, &mut request),
    };
    match fault {
        Some(Fault::Json(value)) => request.reply(&Response::json(200, &value), usize::MAX),
        Some(Fault::WantLength) if !says_length => {
            request.reply(&Response::text(411, "a length is required"), usize::MAX)
        }
        None | Some(Fault::Slow(_) | Fault::Wait(_) | Fault::CutReply(_) | Fault::WantLength) => {
            let response = answer().unwrap_or_else(|error| Response::text(500, &error.to_string()));
            let most = match fault {
                Some(Fault::CutReply(bytes)) => bytes,
                _ => usize::MAX,
            };
            request.reply(&response, most)
        }
        Some(Fault::Hang) => {
            shared.wait_until(|| false);
            Ok(())
        }
        Some(Fault::Close) => request.hang_up(),
        Some(Fault::Cut(_)) => {
            // The server handles the cut body like a broken connection: it stores nothing.
            let _ = answer();
            request.hang_up()
        }
        Some(Fault::LoseReply) => {
            answer()?;
            request.hang_up()
        }
        Some(Fault::Echo(status)) => {
            let given = request.header("authorization").unwrap_or_default();
            let password = password(&request).unwrap_or_default();
            let text = format!("refused: {given}: {password}");
            request.reply(&Response::text(status, &text), usize::MAX)
        }
        Some(Fault::Status(status, headers)) => {
            let mut response = Response::text(status, "an injected fault");
            response.headers.extend(headers);
            request.reply(&response, usize::MAX)
        }
    }
}

fn git_request(shared: &Shared, request: &mut Request) -> io::Result<Response> {
    if request.path.starts_with("/api/") {
        return api::answer(shared, request);
    }
    if let Some(path) = request.path.strip_prefix(lfs::AT_HOME) {
        if password(request).as_deref() != Some(WRITE_TOKEN) {
            return Ok(Response::text(401, "who are you?"));
        }
        let (name, _) = path.rsplit_once('/').unwrap_or_default();
        let name = name.to_owned();
        return shared.lfs(&shared.repo(&name), &name).stored(request);
    }
    let cut = ["/info/", "/git-", "/HEAD", "/objects/"]
        .iter()
        .filter_map(|part| request.path.find(part))
        .min()
        .unwrap_or(request.path.len());
    let (name, rest) = request.path.split_at(cut);
    let (name, rest) = (name.trim_end_matches(".git").to_owned(), rest.to_owned());
    let repo = shared.repo(&name);
    let writes = request.path.ends_with("/git-receive-pack")
        || request.query.contains("service=git-receive-pack");
    let may_write = match password(request).as_deref() {
        Some(WRITE_TOKEN) => true,
        Some(READ_TOKEN) => false,
        None if !writes && repo.join(PUBLIC).exists() => false,
        _ => {
            let response = Response::text(401, "Invalid username or password.");
            return Ok(response.with_header("WWW-Authenticate", "Basic realm=\"test hub\""));
        }
    };
    if writes && !may_write {
        return Ok(may_not_write());
    }
    if !repo.is_dir() {
        return Ok(Response::text(404, "Repository not found"));
    }
    if request.path.contains("/info/lfs/") {
        return shared.lfs(&repo, &name).batch(request, may_write);
    }
    backend::answer(&shared.root, &format!("{name}.git{rest}"), request)
}

fn may_not_write() -> Response {
    let message = "You have read access only: this token may not write.";
    Response::json(403, &serde_json::json!({"message": message}))
}

fn objects_request(shared: &Shared, request: &mut Request) -> io::Result<Response> {
    let (name, _) = request.path.rsplit_once('/').unwrap_or_default();
    let name = name.to_owned();
    let repo = shared.repo(&name);
    shared.lfs(&repo, &name).object_request(request)
}

impl Shared {
    /// Waits until `done` returns true or the server stops.
    fn wait_until(&self, done: impl Fn() -> bool) {
        while !self.stopped.load(Ordering::SeqCst) && !done() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn repo(&self, name: &str) -> PathBuf {
        self.root
            .join(format!("{}.git", name.trim_start_matches('/')))
    }

    fn lfs<'a>(&'a self, repo: &'a Path, name: &'a str) -> Lfs<'a> {
        let part_bytes = self.part_bytes.load(Ordering::SeqCst);
        Lfs {
            repo,
            name,
            object_host: match self.objects_at_home.load(Ordering::SeqCst) {
                true => format!("{}{}", self.url, lfs::AT_HOME),
                false => self.object_host.clone(),
            },
            part_bytes: (part_bytes > 0).then_some(part_bytes),
            uploads: &self.uploads,
        }
    }
}

/// Returns the password of basic authentication. As on the Hub, the password is the token, and any user name
/// is accepted.
fn password(request: &Request) -> Option<String> {
    let encoded = request.header("authorization")?.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    decoded
        .split_once(':')
        .map(|(_, password)| password.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
