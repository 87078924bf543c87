//! A live training under attack: it comes to the same bytes, and who watches it misses nothing.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use host_core::{Ask, Event, Request};
use host_serve::{Client, Remote, WatchEnd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Home, Process, events_of, manifest_of};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that are tried at once, while the loop stands still and while it trains.
const CONNECTIONS: [u64; 2] = [10_000, 2_000];

fn start(home: &Home, name: &str, steps: u64) -> Process {
    let steps = steps.to_string();
    let flags = [
        "--max-train-steps",
        &steps,
        "--lr-scheduler-type",
        "constant",
        "--save-checkpoint-steps",
        "0",
        "--json",
    ];
    home.start_training(name, &flags)
}

#[test]
fn hostile_clients_change_nothing() {
    let home = Home::new();
    let run = start(&home, "attacked", 1_000_000_000);
    let opened = run.event(|event| event["kind"] == "run");
    let address = opened["listen"].as_str().expect("an address").to_owned();
    let token = fs::read_to_string(home.run_dir("attacked").join("control.token"));
    let owner = Remote {
        token: Some(token.expect("a token")),
        ..Remote::at(&address)
    };
    let owner = Client::connect_to(&owner).expect("connected");
    let ask = |request| {
        let reason = String::new();
        owner.ask("", "test", Ask { request, reason })
    };
    ask(Request::Pause).expect("paused");
    let watcher = {
        let address = address.clone();
        let watch = move || {
            let client = Client::connect(&address).expect("connected");
            let mut watch = client.watch("", 0, true);
            let seen: Vec<Event> = watch
                .by_ref()
                .map(|event| event.expect("an event"))
                .collect();
            (seen, watch.end())
        };
        thread::Builder::new()
            .name("watcher".to_owned())
            .spawn(watch)
    };
    let watcher = watcher.expect("a thread");

    // Every attack while it stands still, and again while it trains.
    let before = resident_bytes(run.id());
    attack(&address, CONNECTIONS[0]);
    ask(Request::Continue).expect("it goes on");
    attack(&address, CONNECTIONS[1]);
    let grown = resident_bytes(run.id()).saturating_sub(before);
    assert!(grown < 512 << 20, "it grew by {grown} bytes");

    let steps = ask(Request::Stop).expect("it stops").step.0;
    run.output().succeeded();
    let (seen, end) = watcher.join().expect("no panic");
    assert_eq!(end, Some(WatchEnd::RunFinished));
    assert_eq!(seen, events_of(&home.run_dir("attacked")));

    // As many steps that nobody disturbs.
    start(&home, "quiet", steps).output().succeeded();
    let [quiet, attacked] =
        ["quiet", "attacked"].map(|name| manifest_of(&home.checkpoint(name, steps)).files);
    assert_eq!(quiet, attacked);
}

fn attack(address: &str, connections: u64) {
    garbage(address);
    let slow = slow_loris(address);
    wrong_tokens(address);
    oversize(address);
    cancelled(address);
    crowd(address, connections);
    drop(slow);
}

/// What is no HTTP/2, and what only begins like it.
fn garbage(address: &str) {
    let junk: Vec<u8> = (0..4096_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    for said in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &junk,
        &[PREFACE, &junk].concat(),
    ] {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a socket");
        let _ = stream.write_all(said);
        // It is hung up on, in order or not.
        while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
    }
}

/// Who begins to speak and does not go on.
fn slow_loris(address: &str) -> Vec<TcpStream> {
    let begin = |length: usize| {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream.write_all(&PREFACE[..length]).expect("written");
        stream
    };
    (0..PREFACE.len()).cycle().take(100).map(begin).collect()
}

fn wrong_tokens(address: &str) {
    for token in ["", "wrong", &"x".repeat(4000)] {
        let remote = Remote {
            token: Some(token.to_owned()),
            ..Remote::at(address)
        };
        let client = Client::connect_to(&remote).expect("connected");
        let ask = Ask {
            request: Request::Stop,
            reason: String::new(),
        };
        client.ask("", "", ask).expect_err("refused");
    }
}

fn oversize(address: &str) {
    let client = Client::connect(address).expect("connected");
    client.run(&"x".repeat(8 << 20)).expect_err("refused");
}

/// Streams that are begun and left, and some that are begun and never read.
fn cancelled(address: &str) {
    let client = Client::connect(address).expect("connected");
    for _ in 0..100 {
        let mut watch = client.watch("", 0, true);
        watch.next().expect("an event").expect("an event");
    }
    let mut unread: Vec<_> = (0..100).map(|_| client.watch("", 0, true)).collect();
    for watch in &mut unread {
        watch.next().expect("an event").expect("an event");
    }
}

/// More connections than there is room for.
fn crowd(address: &str, connections: u64) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Where that is not allowed, there are fewer.
    let _ = setrlimit(Resource::Nofile, raised);
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = connections.min(files.saturating_sub(files / 4));
    let crowd: Vec<TcpStream> = (0..count)
        .map_while(|_| TcpStream::connect(address).ok())
        .collect();
    eprintln!("{} connections at once", crowd.len());
}

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is busy");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kibibytes.expect("a size").parse::<u64>().expect("a number") << 10
}
