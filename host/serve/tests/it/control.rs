//! Requests to a training loop: the access tokens that they need, and the server's responses.

use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use host_core::{Ask, Event, EventBody, Request, Step};
use host_proto::tracker::v1 as proto;
use host_serve::{Access, Client, Limits, Remote, SelfSigned, Server, Token, Trust};
use proto::tracker_service_client::TrackerServiceClient;
use tonic::transport::Endpoint;

use crate::run::{NAME, Run, connect, serve};

fn ask(request: Request) -> Ask {
    Ask {
        request,
        reason: "because".to_owned(),
    }
}

fn client(addr: &str, token: &str) -> Client {
    Client::connect_to(&Remote {
        token: Some(token.to_owned()),
        ..Remote::at(addr)
    })
    .expect("a client")
}

fn tokens() -> Access {
    Access {
        read: Some(Token::new("reading")),
        control: Some(Token::new("controlling")),
    }
}

fn guarded(run: &Run) -> Server {
    Server::new("127.0.0.1:0".parse().expect("an address"), run.live()).access(tokens())
}

#[test]
fn a_request_returns_its_event_s_place_once_it_is_carried_out() {
    let mut run = Run::start();
    let serving = guarded(&run).start().expect("a server");
    run.play_loop();
    let client = client(&serving.addr().to_string(), "controlling");
    let wishes = [
        Request::Pause,
        Request::SetLearningRate { factor: 2.5 },
        Request::Evaluate,
        Request::Checkpoint,
        Request::Continue,
        Request::Stop,
    ];
    let done = wishes.map(|wish| client.ask(NAME, "ann", ask(wish)).expect("carried out"));
    let events: Vec<Event> = client
        .watch("", 0, false)
        .map(|event| event.expect("an event"))
        .collect();
    for (wish, done) in wishes.into_iter().zip(done) {
        let event = events
            .iter()
            .find(|event| event.seq == done.seq)
            .expect("on record");
        assert_eq!(event.step, done.step);
        let (by, reason) = ("client:ann".to_owned(), "because".to_owned());
        let body = EventBody::Request {
            by,
            request: wish,
            reason,
        };
        assert_eq!(event.body, body);
    }
    drop(serving);
    run.finish();
}

#[test]
fn the_token_decides_what_a_client_may_do() {
    let mut run = Run::start();
    let serving = guarded(&run).start().expect("a server");
    run.play_loop();
    let addr = serving.addr().to_string();
    let refusal = |token: &str| {
        let refused = client(&addr, token).ask("", "", ask(Request::Pause));
        refused.expect_err("refused").message().to_owned()
    };
    assert!(refusal("reading").contains("permits reading"));
    assert!(refusal("wrong").contains("unknown token"));
    let nobody = Client::connect(&addr).expect("a client");
    let message =
        |result: host_core::Result<_>| result.map(drop).expect_err("refused").message().to_owned();
    assert!(message(nobody.run("")).contains("no token"));
    assert!(client(&addr, "wrong").run("").is_err());
    for token in ["reading", "controlling"] {
        assert_eq!(client(&addr, token).run("").expect("a run").name, NAME);
    }
    drop(serving);
    run.finish();
}

#[test]
fn without_tokens_every_client_can_read_and_none_can_control() {
    let run = Run::start();
    let serving = serve(run.live());
    let client = connect(&serving);
    assert!(client.run("").is_ok());
    assert!(client.ask("", "", ask(Request::Stop)).is_err());
    drop((client, serving));
    run.finish();
}

#[test]
fn an_invalid_request_is_rejected_before_it_reaches_the_loop() {
    let run = Run::start();
    let serving = guarded(&run).start().expect("a server");
    let client = client(&serving.addr().to_string(), "controlling");
    let refusal = |run: &str, by: &str, ask: Ask| {
        let refused = client.ask(run, by, ask).expect_err("refused");
        assert_eq!(refused.kind(), host_core::ErrorKind::Config, "{refused}");
        refused.message().to_owned()
    };
    for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let said = refusal("", "", ask(Request::SetLearningRate { factor }));
        assert!(said.contains("learning rate"), "{said}");
    }
    assert!(refusal("", "two words", ask(Request::Stop)).contains("`by` must"));
    assert!(refusal("", &"x".repeat(65), ask(Request::Stop)).contains("`by` must"));
    let long = Ask {
        request: Request::Stop,
        reason: "x".repeat(1025),
    };
    assert!(refusal("", "", long).contains("`reason` must"));
    let lines = Ask {
        request: Request::Stop,
        reason: "a\nb".to_owned(),
    };
    assert!(refusal("", "", lines).contains("a single line"));
    assert!(refusal("other", "", ask(Request::Stop)).contains("other"));
    assert!(refusal("../demo", "", ask(Request::Stop)).contains("invalid run name"));
    drop((client, serving));
    run.finish();
}

#[test]
fn waiting_requests_fail_when_training_ends() {
    let mut run = Run::start();
    let serving = guarded(&run).start().expect("a server");
    let addr = serving.addr().to_string();
    let (asking, begun) = sync_channel(1);
    let waiting = thread::Builder::new()
        .name("asking".to_owned())
        .spawn(move || {
            let client = client(&addr, "controlling");
            asking.send(()).expect("the test waits");
            client.ask("", "", ask(Request::Evaluate))
        });
    let waiting = waiting.expect("a thread");
    begun.recv().expect("the thread starts");
    let requests = run.requests.take().expect("not taken yet");
    // Wait at most 200 ms until the request is queued. A request that arrives later finds the queue closed,
    // and fails with the same message as a queued one.
    requests.wait(Duration::from_millis(200));
    drop(requests);
    let told = waiting.join().expect("no panic").expect_err("ended");
    assert!(told.message().contains("has ended"), "{told}");
    drop(serving);
    run.finish();
}

#[test]
fn a_server_that_does_not_train_returns_the_address_of_the_one_that_does() {
    let run = Run::start();
    let address = run
        .runs_dir
        .path()
        .join(NAME)
        .join(host_serve::ADDRESS_FILE);
    std::fs::write(&address, "127.0.0.1:4242\n").expect("written");
    let serving = serve(run.folder());
    let client = connect(&serving);
    let refused = client
        .ask(NAME, "", ask(Request::Stop))
        .expect_err("refused");
    assert!(refused.message().contains("127.0.0.1:4242"), "{refused}");
    let runs_dir = run.finish();
    let refused = client
        .ask(NAME, "", ask(Request::Stop))
        .expect_err("refused");
    assert!(refused.message().contains("not live"), "{refused}");
    drop((client, serving, runs_dir));
}

#[test]
fn a_client_reads_over_tls_if_it_can_verify_the_server() {
    let run = Run::start();
    let made = SelfSigned::new(&[]).expect("made");
    let identity = made.identity().expect("an identity");
    let fingerprint = identity.fingerprint();
    let serving = guarded(&run).tls(Some(identity)).start().expect("a server");
    let addr = serving.addr();
    let to = |host: &str, trust| {
        Client::connect_to(&Remote {
            addr: format!("https://{host}:{}", addr.port()),
            token: Some("reading".to_owned()),
            trust,
        })
    };
    let pinned = to("127.0.0.1", Some(Trust::Fingerprint(fingerprint))).expect("pinned");
    assert_eq!(pinned.run("").expect("a run").name, NAME);
    let authority = Trust::Authorities(made.certificate.into_bytes());
    let vouched = to("localhost", Some(authority)).expect("vouched for");
    assert_eq!(vouched.run("").expect("a run").name, NAME);

    let other = SelfSigned::new(&[]).expect("made");
    let other = other.identity().expect("an identity").fingerprint();
    assert!(to("127.0.0.1", Some(Trust::Fingerprint(other))).is_err());
    let unknown = to("127.0.0.1", None).expect_err("not verified");
    assert!(
        unknown
            .hint_text()
            .expect("a hint")
            .contains("--tls-fingerprint")
    );
    assert!(
        Client::connect(&addr.to_string())
            .and_then(|plain| plain.run(""))
            .is_err()
    );
    drop((pinned, vouched, serving));
    run.finish();
}

#[test]
fn too_many_calls_streams_and_connections_are_refused_and_the_others_are_served() {
    let run = Run::start();
    let limits = Limits {
        connections: 2,
        watchers: 1,
        // High enough for all calls of this test.
        calls_per_second: 1000,
        ..Limits::default()
    };
    let server = Server::new("127.0.0.1:0".parse().expect("an address"), run.live());
    let serving = server.limits(limits).start().expect("a server");
    let [one, two] = [(); 2].map(|()| connect(&serving));
    let mut watch = one.watch("", 0, true);
    watch.next().expect("an event").expect("an event");
    let mut more = two.watch("", 0, true).patience(Duration::ZERO);
    let refused = more.next().expect("an answer").expect_err("refused");
    assert!(refused.message().contains("too many streams"), "{refused}");
    let third = Client::connect(&serving.addr().to_string()).and_then(|third| third.run(""));
    assert!(third.is_err());
    assert_eq!(two.run("").expect("a run").name, NAME);
    drop((more, watch));
    drop((one, two, serving));
    run.finish();
}

#[test]
fn a_watcher_that_reads_nothing_gets_its_cursor() {
    let run = Run::start();
    // This many events of 8 KiB are more than the buffers of a connection can hold.
    let count = 4_000;
    for step in 1..count {
        let message = "x".repeat(8 << 10);
        run.emitter.emit(Step(step), EventBody::Warning { message });
    }
    let stored = |last_seq| last_seq >= count;
    while !stored(
        run.commits()
            .wait_beyond(count - 1, Duration::from_secs(10)),
    ) {}
    let limits = Limits {
        stall: Duration::from_millis(50),
        watchers: 1,
        ..Limits::default()
    };
    let server = Server::new("127.0.0.1:0".parse().expect("an address"), run.live());
    let serving = server.limits(limits).start().expect("a server");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (cursor, reason) = runtime.block_on(async {
        let endpoint: Endpoint = format!("http://{}", serving.addr())
            .parse()
            .expect("an address");
        let mut service = TrackerServiceClient::new(endpoint.connect().await.expect("connected"));
        let request = proto::WatchEventsRequest {
            run: NAME.to_owned(),
            after_seq: 0,
            follow: false,
        };
        let response = service.watch_events(request.clone()).await;
        let mut pieces = response.expect("a stream").into_inner();
        // Read nothing until the server has ended the stream and the stream's permit is free again.
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            match service.watch_events(request.clone()).await {
                Ok(_) => break,
                Err(refused) => assert_eq!(refused.code(), tonic::Code::ResourceExhausted),
            }
        }
        loop {
            let piece = pieces.message().await.expect("a piece").expect("an end");
            if let Some(end) = piece.end {
                break (piece.cursor, end.reason());
            }
        }
    });
    assert_eq!(reason, proto::WatchEndReason::TooSlow);
    assert!((1..count).contains(&cursor), "{cursor}");

    // From the cursor, the client gets the remaining events.
    let client = connect(&serving);
    let rest: Vec<u64> = client
        .watch("", cursor, false)
        .map(|event| event.expect("an event").seq)
        .collect();
    assert_eq!(rest, (cursor + 1..=count).collect::<Vec<_>>());
    drop((client, serving));
    run.finish();
}
