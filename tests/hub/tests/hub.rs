//! Tests that the server applies the Hub's checks.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use test_hub::{READ_TOKEN, TestHub, WRITE_TOKEN};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\nsize 3\n";
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// Commits one file and pushes it.
fn push(hub: &TestHub, token: &str, name: &str, content: &[u8]) -> Output {
    let work = tempfile::tempdir().expect("a folder");
    let git = |args: &[&str]| run(work.path(), token, args);
    assert!(git(&["init", "--quiet", "-b", "work"]).status.success());
    fs::write(work.path().join(name), content).expect("a file");
    assert!(git(&["add", "."]).status.success());
    assert!(git(&["commit", "--quiet", "-m", "x"]).status.success());
    git(&["push", &hub.repo_url("user/model"), "work:refs/heads/work"])
}

fn run(dir: &Path, token: &str, args: &[&str]) -> Output {
    let basic = BASE64_STANDARD.encode(format!("user:{token}"));
    Command::new("git")
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "http.extraHeader")
        .env(
            "GIT_CONFIG_VALUE_0",
            format!("Authorization: Basic {basic}"),
        )
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "test")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "test@localhost")))
        .output()
        .expect("git runs")
}

/// Sends a request. Returns the status and body of the response.
fn request(url: &str, method: &str, header: &str, body: &str) -> (u16, String) {
    let (address, path) = url["http://".len()..].split_once('/').expect("a path");
    let mut stream = TcpStream::connect(address).expect("connected");
    let length = body.len();
    let text =
        format!("{method} /{path} HTTP/1.1\r\nContent-Length: {length}\r\n{header}\r\n{body}");
    stream.write_all(text.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let status = answer
        .split(' ')
        .nth(1)
        .expect("a status")
        .parse()
        .expect("a number");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    (status, body.to_owned())
}

fn batch(hub: &TestHub, token: &str) -> (u16, serde_json::Value) {
    let url = format!("{}.git/info/lfs/objects/batch", hub.repo_url("user/model"));
    let basic = BASE64_STANDARD.encode(format!("user:{token}"));
    let header = format!("Authorization: Basic {basic}\r\n");
    let body = serde_json::json!({"operation": "upload", "objects": [{"oid": ABC, "size": 3}]});
    let (status, body) = request(&url, "POST", &header, &body.to_string());
    (status, serde_json::from_str(&body).unwrap_or_default())
}

#[test]
fn a_pointer_needs_its_object() {
    let hub = TestHub::start();
    hub.create_repo("user/model", &[]);
    let refused = push(&hub, WRITE_TOKEN, "model.bin", POINTER.as_bytes());
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(
        stderr.contains("pointed to a file that does not exist"),
        "{stderr}"
    );

    let (status, answer) = batch(&hub, WRITE_TOKEN);
    assert_eq!(status, 200);
    let href = answer["objects"][0]["actions"]["upload"]["href"]
        .as_str()
        .expect("a link");
    let (status, _) = request(href, "PUT", "Authorization: Basic eDp5\r\n", "abc");
    assert_eq!(status, 400, "credentials at the object host");
    let (status, _) = request(href, "PUT", "", "abd");
    assert_eq!(status, 422, "content of another sha256");
    let (unsigned, _) = href.split_once('?').expect("a signature");
    assert_eq!(request(unsigned, "PUT", "", "abc").0, 403);
    assert_eq!(request(href, "PUT", "", "abc").0, 200);
    assert_eq!(
        fs::read(hub.lfs_object("user/model", ABC)).expect("an object"),
        b"abc"
    );
    let (_, answer) = batch(&hub, WRITE_TOKEN);
    assert!(answer["objects"][0].get("actions").is_none(), "{answer}");

    let taken = push(&hub, WRITE_TOKEN, "model.bin", POINTER.as_bytes());
    assert!(
        taken.status.success(),
        "{}",
        String::from_utf8_lossy(&taken.stderr)
    );
}

#[test]
fn only_large_plain_files_are_refused() {
    let hub = TestHub::start();
    hub.create_repo("user/model", &[]);
    let refused = push(&hub, WRITE_TOKEN, "big.bin", &vec![b'x'; (10 << 20) + 1]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("larger than 10 MiB"), "{stderr}");
    assert!(
        push(&hub, WRITE_TOKEN, "big.bin", &vec![b'x'; 10 << 20])
            .status
            .success()
    );
}

#[test]
fn tokens_decide_the_permissions() {
    let hub = TestHub::start();
    hub.create_repo("user/model", &[("a", "b")]);
    let url = hub.repo_url("user/model");
    let list = |token| {
        run(Path::new("/"), token, &["ls-remote", &url])
            .status
            .success()
    };
    assert!(list(READ_TOKEN) && list(WRITE_TOKEN) && !list("hf_other"));
    assert!(!push(&hub, READ_TOKEN, "a", b"c").status.success());
    assert_eq!(batch(&hub, READ_TOKEN).0, 403);
    assert_eq!(batch(&hub, "hf_other").0, 401);
    assert!(push(&hub, WRITE_TOKEN, "a", b"c").status.success());
}
