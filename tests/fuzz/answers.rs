//! Input from servers: the output of git, repository addresses, and the responses of a Git LFS server.
//!
//! The first byte selects which of these three the other bytes are. LFS responses are complete HTTP responses
//! separated by zero bytes. A proxy on a real socket sends them, and receives every request. For any
//! response, the secret must go to the LFS server only, and a successful download must have the requested
//! content.
#![no_main]

mod folder;
mod sha256;

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use folder::Folder;
use hub_git::fuzzing::{LFS_SERVER, Object, SECRET, move_object, read_address, read_git};
use libfuzzer_sys::fuzz_target;
use sha256::sha256;

const CONTENT: &[u8] = b"the content of a file of a checkpoint\n";

static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);
static PROXY: LazyLock<String> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::Builder::new()
        .name("proxy".to_owned())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // Ignores a broken connection, which the client must handle.
                let _ = answer(&stream);
            }
        })
        .expect("a thread");
    format!("http://{address}")
});
/// The responses that the proxy has not sent yet.
static ANSWERS: Mutex<VecDeque<Vec<u8>>> = Mutex::new(VecDeque::new());
/// Set when no response is left, or when the client starts to wait.
static IS_OVER: AtomicBool = AtomicBool::new(false);
/// Set when the secret went to a server other than the LFS server. The fuzz target checks this, because a
/// panic on the proxy's thread would not fail the test.
static IS_LEAKED: AtomicBool = AtomicBool::new(false);

fuzz_target!(|input: &[u8]| {
    let Some((chosen, bytes)) = input.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(bytes);
    match chosen % 4 {
        0 => {
            let (stdout, stderr) = text.split_once('\0').unwrap_or((&text, &text));
            read_git(stdout, stderr);
        }
        1 => read_address(&text),
        _ => ask_lfs(bytes),
    }
});

fn ask_lfs(answers: &[u8]) {
    let answers = answers.split(|&byte| byte == 0).map(<[u8]>::to_vec);
    *ANSWERS.lock().expect("answers") = answers.take(8).collect();
    IS_OVER.store(false, Ordering::Relaxed);
    let sha256 = sha256(CONTENT);
    let target = FOLDER.write("target", b"");
    let object = Object {
        path: &FOLDER.write("source", CONTENT),
        sha256: &sha256,
        size: CONTENT.len() as u64,
        target: &target,
    };
    let is_over = || IS_OVER.load(Ordering::Relaxed);
    let on_wait = || IS_OVER.store(true, Ordering::Relaxed);
    let (_, is_downloaded) = move_object(&PROXY, &object, &is_over, &on_wait);
    if is_downloaded {
        assert_eq!(fs::read(&target).expect("the download"), CONTENT);
    }
    assert!(
        !IS_LEAKED.load(Ordering::Relaxed),
        "the secret went to another server"
    );
}

/// Reads one request and sends the next response.
fn answer(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let (mut first, mut length, mut has_secret) = (String::new(), 0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        has_secret |= line.contains(SECRET);
        if first.is_empty() {
            first = line;
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    let url = first.split(' ').nth(1).unwrap_or_default();
    let is_home = url
        .strip_prefix(LFS_SERVER)
        .or_else(|| url.strip_prefix("HTTP://HUB.TEST"))
        .is_some_and(|rest| rest.starts_with(['/', '?']) || rest.starts_with(":80/"));
    if has_secret && !is_home {
        eprintln!("the secret went to {url}");
        IS_LEAKED.store(true, Ordering::Relaxed);
    }
    let next = ANSWERS.lock().expect("answers").pop_front();
    match next {
        Some(answer) => {
            let mut stream = stream;
            stream.write_all(&answer)?;
        }
        None => IS_OVER.store(true, Ordering::Relaxed),
    }
    stream.shutdown(Shutdown::Both)
}
