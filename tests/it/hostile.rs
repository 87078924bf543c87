//! A live training under attack: it comes to the same bytes, and who watches it misses nothing.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use host_core::{Ask, Draft, Event, EventBody, MetricValue, Request, Step};
use host_serve::{Client, Remote, WatchEnd};
use host_store::{RunRecord, Writer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Home, Http2, Process, events_of, manifest_of};

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
    let unfinished = unfinished(address);
    let unread = unread(address);
    let slow = slow_loris(address);
    wrong_tokens(address);
    oversize(address);
    cancelled(address);
    drop(crowd(address, connections));
    drop((slow, unfinished, unread));
}

/// A message as gRPC sends it: whether it is compressed, its length, and itself.
fn message(length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[0], &length.to_be_bytes()[..], bytes].concat()
}

/// Calls of every service whose messages never end, on one connection each.
fn unfinished(address: &str) -> Vec<Http2> {
    let services = [
        ("/grpc.health.v1.Health/Check", 4 << 20),
        ("/grpc.health.v1.Health/Watch", 4 << 20),
        (
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            4 << 20,
        ),
        ("/tracker.v1.TrackerService/GetRun", 4 << 20),
        (
            "/tensorboard.data.TensorBoardDataProvider/ReadScalars",
            4 << 20,
        ),
        ("/no.such.Service/Call", 4 << 20),
        // Not longer than the services take.
        ("/grpc.health.v1.Health/Check", 60 << 10),
        (
            "/tensorboard.data.TensorBoardDataProvider/ReadScalars",
            1 << 20,
        ),
    ];
    let begin = |&(path, most): &(&str, u32)| {
        let mut client = Http2::connect(address, 0);
        let announced = message(most, &[0; 4]);
        let calls: Vec<u32> = (0..256)
            .map(|_| client.call(path, &announced, false))
            .collect();
        client.fill(&calls, most as usize - 16);
        // In seconds, and not when the client is gone.
        client.wait_for_end(&calls);
        client
    };
    services.iter().map(begin).collect()
}

/// `ReadScalars` of all that there is, many times over, of which no answer is taken.
fn unread(address: &str) -> Http2 {
    let request = b"\x12\x09\x0a\x07scalars\x22\x04\x08\xa0\x8d\x06";
    let length = u32::try_from(request.len()).expect("short");
    let mut client = Http2::connect(address, 0);
    let calls: Vec<u32> = (0..150)
        .map(|_| {
            let path = "/tensorboard.data.TensorBoardDataProvider/ReadScalars";
            client.call(path, &message(length, request), true)
        })
        .collect();
    // Until each is refused or the server hangs up.
    client.wait_for_end(&calls);
    client
}

/// A run with a long history: 100,000 points of each of eight metrics.
fn long_run(run_dir: &Path) {
    let record = RunRecord {
        name: "long".to_owned(),
        created_us: 1_700_000_000_000_000,
        config_json: "{}".to_owned(),
    };
    let mut writer = Writer::create(run_dir, &record).expect("a run");
    let names: Vec<String> = (0..8).map(|n| format!("metric/{n}")).collect();
    for thousand in 0..100 {
        let draft = |n: u32| {
            let values = names
                .iter()
                .map(|name| MetricValue::new(&**name, f64::from(n)));
            Draft {
                time_us: 1_700_000_000_000_000 + i64::from(n),
                step: Step(n.into()),
                body: EventBody::Metrics {
                    values: values.collect(),
                },
            }
        };
        let drafts = (thousand * 1000..(thousand + 1) * 1000).map(draft);
        writer.append(drafts.collect()).expect("written");
    }
}

#[test]
fn what_clients_without_a_token_take_is_bounded() {
    let home = Home::new();
    long_run(&home.run_dir("long"));
    let server = home.start(&["serve"]);
    let line = server.printed("gRPC at ");
    let address = line.split([' ', ',']).nth(2).expect("an address");
    let address = address.trim_end_matches(':').to_owned();
    // What it takes for itself.
    let client = Client::connect(&address).expect("connected");
    client.history("long", "metric/0", 1000).expect("a history");
    let before = resident_bytes(server.id());

    let clients = (unfinished(&address), unread(&address));
    let most = memory(server.id(), "VmHWM:").saturating_sub(before);
    assert!(most < 400 << 20, "it grew by {most} bytes");
    // It serves the others meanwhile.
    assert_eq!(client.series("long").expect("metrics").len(), 8);
    drop(clients);
    // The memory goes back to the system.
    let began = Instant::now();
    while resident_bytes(server.id()).saturating_sub(before) > 32 << 20 {
        let kept = resident_bytes(server.id()).saturating_sub(before) >> 20;
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{kept} MiB are kept"
        );
        thread::sleep(Duration::from_millis(100));
    }
    server.interrupt();
    server.output().succeeded();
}

#[test]
fn whoever_has_the_control_token_is_served_when_all_connections_are_taken() {
    let home = Home::new();
    let run = start(&home, "crowded", 1_000_000_000);
    let opened = run.event(|event| event["kind"] == "run");
    let address = opened["listen"].as_str().expect("an address").to_owned();
    run.event(|event| event["values"]["loss/train"].is_number());

    // All places, and then those beyond them, by clients that speak HTTP/2 and call nothing.
    raise_open_files();
    let _idle: Vec<Http2> = (0..1100).map(|_| Http2::connect(&address, 0)).collect();
    let refused = Client::connect(&address).and_then(|client| client.run(""));
    assert!(refused.is_err(), "there is a place without a token");
    for verb in ["pause", "continue", "stop"] {
        home.host(&["control", "crowded", verb]).succeeded();
    }
    run.output().succeeded();
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
    // Each over a connection of its own: what waits unread on one stream keeps the others of its connection
    // waiting, once it fills the connection's window.
    let clients = || Client::connect(address).expect("connected");
    let clients: Vec<Client> = std::iter::repeat_with(clients).take(100).collect();
    let mut unread: Vec<_> = clients
        .iter()
        .map(|client| client.watch("", 0, true))
        .collect();
    for watch in &mut unread {
        watch.next().expect("an event").expect("an event");
    }
}

/// More connections than there is room for.
fn crowd(address: &str, connections: u64) -> Vec<TcpStream> {
    raise_open_files();
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = connections.min(files.saturating_sub(files / 4));
    let crowd: Vec<TcpStream> = (0..count)
        .map_while(|_| TcpStream::connect(address).ok())
        .collect();
    eprintln!("{} connections at once", crowd.len());
    crowd
}

/// As many as there may be.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Where that is not allowed, there are fewer.
    let _ = setrlimit(Resource::Nofile, raised);
}

fn resident_bytes(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is busy");
    let line = status.lines().find_map(|line| line.strip_prefix(which));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kibibytes.expect("a size").parse::<u64>().expect("a number") << 10
}
