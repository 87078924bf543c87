//! A live run under attack: its last checkpoint has the same content as without an attack, and its watchers
//! miss no event.

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
/// Numbers of connections that an attack attempts at once: the first number applies while the run is paused,
/// the second while it trains.
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

    // Every attack is made once while the run is paused, and once while it trains.
    let before = resident_bytes(run.id());
    attack(&address, CONNECTIONS[0]);
    ask(Request::Continue).expect("continued");
    attack(&address, CONNECTIONS[1]);
    let grown = resident_bytes(run.id()).saturating_sub(before);
    assert!(grown < 512 << 20, "its memory grew by {grown} bytes");

    let steps = ask(Request::Stop).expect("stopped").step.0;
    run.output().succeeded();
    let (seen, end) = watcher.join().expect("no panic");
    assert_eq!(end, Some(WatchEnd::RunFinished));
    assert_eq!(seen, events_of(&home.run_dir("attacked")));

    // Another run trains for the same number of steps, without attacks.
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

/// Returns a message in gRPC's framing: the compression flag, the length and the bytes.
fn message(length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[0], &length.to_be_bytes()[..], bytes].concat()
}

/// Opens connections to several services, and makes many calls on each connection. Each call sends only a
/// part of its message.
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
        // Unlike the messages above, these are within the services' size limits.
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
        // The server must end the calls within seconds, while the client is still connected.
        client.wait_for_end(&calls);
        client
    };
    services.iter().map(begin).collect()
}

/// Makes many `ReadScalars` calls for all data, and does not read the answers.
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
    // Wait until the server rejects each call or closes the connection.
    client.wait_for_end(&calls);
    client
}

/// Creates a run with a long history: 100,000 points of each of eight metrics.
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
fn resources_used_by_clients_without_a_token_are_bounded() {
    let home = Home::new();
    long_run(&home.run_dir("long"));
    let server = home.start(&["serve"]);
    let line = server.printed("gRPC at ");
    let address = line.split([' ', ',']).nth(2).expect("an address");
    let address = address.trim_end_matches(':').to_owned();
    // The memory is measured after an ordinary call, so that the memory for ordinary calls is not counted as
    // growth.
    let client = Client::connect(&address).expect("connected");
    client.history("long", "metric/0", 1000).expect("a history");
    let before = resident_bytes(server.id());

    let clients = (unfinished(&address), unread(&address));
    let most = memory(server.id(), "VmHWM:").saturating_sub(before);
    assert!(most < 400 << 20, "its memory grew by {most} bytes");
    // Other clients are served at the same time.
    assert_eq!(client.series("long").expect("metrics").len(), 8);
    drop(clients);
    // The memory is returned to the system.
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
fn a_client_with_the_control_token_is_served_when_all_connections_are_taken() {
    let home = Home::new();
    let run = start(&home, "crowded", 1_000_000_000);
    let opened = run.event(|event| event["kind"] == "run");
    let address = opened["listen"].as_str().expect("an address").to_owned();
    run.event(|event| event["values"]["loss/train"].is_number());

    // More idle HTTP/2 clients than the server accepts.
    raise_open_files();
    let _idle: Vec<Http2> = (0..1100).map(|_| Http2::connect(&address, 0)).collect();
    let refused = Client::connect(&address).and_then(|client| client.run(""));
    assert!(refused.is_err(), "a client without a token was served");
    for verb in ["pause", "continue", "stop"] {
        home.host(&["control", "crowded", verb]).succeeded();
    }
    run.output().succeeded();
}

/// Sends bytes that are not HTTP/2, and bytes that only begin like HTTP/2.
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
        // The server closes or resets the connection.
        while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
    }
}

/// Opens connections that send only a part of the HTTP/2 preface.
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

/// Opens streams that are cancelled after one event, and streams that are no longer read after one event.
fn cancelled(address: &str) {
    let client = Client::connect(address).expect("connected");
    for _ in 0..100 {
        let mut watch = client.watch("", 0, true);
        watch.next().expect("an event").expect("an event");
    }
    // Each stream has its own connection, because unread data can fill the window of a connection and block
    // its other streams.
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

/// Opens more connections than the server has room for.
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

/// Raises the limit on open files to its maximum.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Without permission, fewer connections are opened.
    let _ = setrlimit(Resource::Nofile, raised);
}

fn resident_bytes(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(which));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kibibytes.expect("a size").parse::<u64>().expect("a number") << 10
}
