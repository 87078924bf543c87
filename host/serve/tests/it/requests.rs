use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use host_core::{DeliveryState, ErrorKind, EventBody, Step, StopReason};
use host_proto::tensorboard::data as tensorboard;
use host_proto::tracker::v1 as proto;
use host_serve::{Client, SelfSigned, Server, Source};
use host_store::{Reader, RunStatus};
use proto::tracker_service_client::TrackerServiceClient;
use tensorboard::tensor_board_data_provider_client::TensorBoardDataProviderClient;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::run::{NAME, Run, connect, serve};

#[test]
fn the_client_reads_the_data_of_the_store() {
    let run = Run::start();
    run.train(1..5000);
    // The run rolls back to step 4000 and continues from there.
    let superseded = EventBody::Superseded {
        from_step: Step(4000),
        generation: 1,
    };
    run.emitter.emit(Step(4000), superseded);
    run.emitter
        .emit(Step(4000), EventBody::RunStarted { generation: 1 });
    run.train(4001..4500);
    let serving = serve(run.folder());
    let client = connect(&serving);
    run.commits().wait_beyond(5500, Duration::from_secs(60));
    assert_eq!(client.run(NAME).expect("a run").status, RunStatus::Running);
    let runs_dir = run.finish();

    let reader = Reader::open(&runs_dir.path().join(NAME)).expect("a run");
    let row = client.run("").expect("the only run");
    assert_eq!(row, reader.run().expect("readable"));
    assert_eq!(row.status, RunStatus::Finished(StopReason::Completed));
    assert_eq!((row.generation, &*row.config_json), (1, r#"{"seed":1}"#));

    let series = client.series(NAME).expect("metrics");
    assert_eq!(series, reader.series().expect("readable"));
    assert_eq!(series.len(), 2);
    for metric in ["loss/train", "lr"] {
        for max_points in [1, 100, 100_000] {
            let points = client.history(NAME, metric, max_points).expect("points");
            let stored = reader.history(metric, max_points as usize);
            assert_eq!(Some(points), stored.expect("readable"));
        }
        let points = client.history(NAME, metric, 100_000).expect("points");
        let steps: Vec<u64> = points.iter().map(|point| point.step.0).collect();
        assert_eq!(steps, (1..4500).collect::<Vec<_>>());
    }
    assert!(client.history(NAME, "lr", 0).expect("points").len() <= 1000);
}

#[test]
fn the_ledger_contains_locations_and_failures() {
    let run = Run::start();
    let tell = |sink: &str, step: u64, state: DeliveryState, detail: &str, retry: Option<i64>| {
        let body = EventBody::Delivery {
            sink: sink.to_owned(),
            checkpoint: Step(step),
            state,
            detail: detail.to_owned(),
            retry_time_us: retry,
        };
        run.emitter.emit(Step(step), body);
    };
    use DeliveryState::{Delivered, Dropped, Failed, Queued, Sending};
    let receipt = r#"{"commit": "c0ffee", "manifest_sha256": "ab12"}"#;
    tell("hub-git", 10, Queued, "", None);
    tell("hub-git", 10, Sending, "", None);
    tell("hub-git", 10, Delivered, receipt, None);
    tell("hub-git", 20, Failed, "no route", Some(1_000_000));
    tell("local-disk", 10, Dropped, "step 20 took its place", None);
    let serving = serve(run.live());
    run.commits().wait_beyond(5, Duration::from_secs(60));

    let ledger = connect(&serving).deliveries(NAME).expect("a ledger");
    let told: Vec<_> = ledger
        .iter()
        .map(|entry| {
            (
                &*entry.sink,
                entry.checkpoint.0,
                entry.state,
                entry.retry_time_us,
            )
        })
        .collect();
    let expected = [
        ("hub-git", 10, Delivered, None),
        ("hub-git", 20, Failed, Some(1_000_000)),
        ("local-disk", 10, Dropped, None),
    ];
    assert_eq!(told, expected);

    asynchronously(&serving, async |channel| {
        let mut service = TrackerServiceClient::new(channel);
        let request = |sink: &str, max_entries| proto::ListDeliveriesRequest {
            run: NAME.to_owned(),
            sink: sink.to_owned(),
            max_entries,
        };
        let answer = service.list_deliveries(request("hub-git", 0)).await;
        let entries = answer.expect("a ledger").into_inner().entries;
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (&*entries[0].location, &*entries[0].manifest_sha256),
            ("c0ffee", "ab12")
        );
        assert_eq!(
            (&*entries[1].location, &*entries[1].manifest_sha256),
            ("", "")
        );
        // Only the newest checkpoints are returned.
        let answer = service.list_deliveries(request("", 1)).await;
        let entries = answer.expect("a ledger").into_inner().entries;
        let steps = entries
            .iter()
            .map(|entry| entry.delivery.as_ref().expect("one").checkpoint_step);
        assert_eq!(steps.collect::<Vec<_>>(), [20]);
        let refused = service.list_deliveries(request("", 10_001)).await;
        assert_eq!(refused.expect_err("too many").code(), Code::InvalidArgument);
    });
}

#[test]
fn runs_are_listed_in_pages_even_if_one_is_broken() {
    let run = Run::start();
    let serving = serve(run.folder());
    let runs_dir = run.crash();
    for n in 0..120 {
        let copy = runs_dir.path().join(format!("copy-{n:03}"));
        std::fs::create_dir(&copy).expect("a folder");
        let (from, to) = (runs_dir.path().join(NAME), copy.join(host_store::FILE));
        std::fs::copy(from.join(host_store::FILE), to).expect("a copy");
    }
    let broken = runs_dir.path().join("broken");
    std::fs::create_dir(&broken).expect("a folder");
    std::fs::write(broken.join(host_store::FILE), "text, not a database").expect("a file");

    let client = connect(&serving);
    let listed = client.runs().expect("a list");
    assert_eq!(listed.len(), 122);
    assert!(listed.is_sorted_by_key(|(name, _)| name.clone()));
    let (name, error) = &listed[0];
    assert_eq!(name.as_str(), "broken");
    assert!(error.is_err());
    assert!(listed[1..].iter().all(|(name, row)| {
        row.as_ref()
            .is_ok_and(|row| row.name == name.as_str() && row.status == RunStatus::Crashed)
    }));
    assert_eq!(
        client.run("broken").expect_err("broken").kind(),
        ErrorKind::System
    );
    let error = client.run("").expect_err("several runs");
    assert!(error.message().contains("several"), "{error}");
}

#[test]
fn an_invalid_request_gets_a_suitable_status() {
    let run = Run::start();
    let serving = serve(run.folder());
    // A folder whose name is not a valid run name.
    let outside = run.runs_dir.path().join(".hidden");
    std::fs::create_dir(&outside).expect("a folder");
    asynchronously(&serving, async |channel| {
        let mut tracker = TrackerServiceClient::new(channel);
        for (run, code) in [
            ("unknown", Code::NotFound),
            ("../demo", Code::InvalidArgument),
            (".hidden", Code::InvalidArgument),
            ("demo/", Code::InvalidArgument),
            ("demo\0", Code::InvalidArgument),
            ("/etc/passwd", Code::InvalidArgument),
        ] {
            let run = run.to_owned();
            let status = tracker.get_run(proto::GetRunRequest { run }).await;
            assert_eq!(status.expect_err("refused").code(), code);
        }
        let read = |metric: &str, max_points| proto::ReadMetricRequest {
            run: NAME.to_owned(),
            metric: metric.to_owned(),
            max_points,
        };
        let status = tracker.read_metric(read("loss", 10)).await;
        assert_eq!(status.expect_err("refused").code(), Code::NotFound);
        let status = tracker.read_metric(read("loss", 100_001)).await;
        assert_eq!(status.expect_err("refused").code(), Code::InvalidArgument);
        let beyond = proto::WatchEventsRequest {
            after_seq: 1_000_000,
            ..proto::WatchEventsRequest::default()
        };
        let status = tracker.watch_events(beyond).await;
        assert_eq!(status.expect_err("refused").code(), Code::OutOfRange);
        let long = "x".repeat(100_000);
        let status = tracker.read_metric(read(&long, 1)).await;
        assert_eq!(status.expect_err("refused").code(), Code::OutOfRange);
        // The next request succeeds.
        let run = String::new();
        assert!(tracker.get_run(proto::GetRunRequest { run }).await.is_ok());
    });
}

#[test]
fn health_and_reflection_answer() {
    let run = Run::start();
    let serving = serve(run.live());
    asynchronously(&serving, async |channel: Channel| {
        for service in ["", "tracker.v1.TrackerService"] {
            let service = service.to_owned();
            let answer = HealthClient::new(channel.clone())
                .check(HealthCheckRequest { service })
                .await
                .expect("an answer");
            assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
        }
        let ask = |message| ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        };
        let requests = [
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol(
                "tracker.v1.TrackerService".to_owned(),
            )),
        ];
        let mut answers = ServerReflectionClient::new(channel)
            .server_reflection_info(futures_util::stream::iter(requests))
            .await
            .expect("an answer")
            .into_inner();
        let mut answer = async || {
            let answer = answers.message().await.expect("whole").expect("an answer");
            answer.message_response.expect("a message")
        };
        let MessageResponse::ListServicesResponse(list) = answer().await else {
            panic!("no list");
        };
        let names: Vec<&str> = list.service.iter().map(|service| &*service.name).collect();
        for name in ["tracker.v1.TrackerService", "grpc.health.v1.Health"] {
            assert!(names.contains(&name), "{names:?}");
        }
        let MessageResponse::FileDescriptorResponse(files) = answer().await else {
            panic!("no file");
        };
        assert!(!files.file_descriptor_proto.is_empty());
    });
}

#[test]
fn health_can_be_watched() {
    let run = Run::start();
    let serving = serve(run.live());
    let addr = serving.addr();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let endpoint = Channel::from_shared(format!("http://{addr}")).expect("an address");
        let mut health = HealthClient::new(endpoint.connect().await.expect("connected"));
        let request = |service: &str| HealthCheckRequest {
            service: service.to_owned(),
        };
        let unknown = health.check(request("no.such.Service")).await;
        assert_eq!(unknown.expect_err("unknown").code(), Code::NotFound);
        let mut watched = Vec::new();
        for (service, first, last) in [
            ("", ServingStatus::Serving, Some(ServingStatus::NotServing)),
            (
                "tracker.v1.ControlService",
                ServingStatus::Serving,
                Some(ServingStatus::NotServing),
            ),
            // The health protocol requires that this stream stays open, because an unknown service could be
            // added later.
            ("no.such.Service", ServingStatus::ServiceUnknown, None),
        ] {
            let stream = health.watch(request(service)).await.expect("a stream");
            let mut stream = stream.into_inner();
            let now = stream.message().await.expect("whole").expect("a status");
            assert_eq!(now.status(), first, "{service}");
            watched.push((stream, last));
        }
        let stopping = tokio::task::spawn_blocking(move || serving.stop());
        for (mut stream, expected) in watched {
            let then = stream.message().await.expect("whole");
            assert_eq!(then.map(|then| then.status()), expected);
        }
        stopping.await.expect("no panic").expect("stopped");
    });
    run.finish();
}

#[test]
fn a_client_that_does_not_use_grpc_gets_a_readable_message() {
    let run = Run::start();
    let serving = serve(run.live());
    let made = SelfSigned::new(&[]).expect("made");
    let identity = made.identity().expect("an identity");
    let any_port = "127.0.0.1:0".parse().expect("an address");
    let with_tls = Server::new(any_port, run.live()).tls(Some(identity));
    let with_tls = with_tls.start().expect("a server");
    let answer = |addr: SocketAddr, said: &[u8]| {
        let mut stream = TcpStream::connect(addr).expect("connected");
        stream.write_all(said).expect("written");
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .expect("an answer, and its end");
        String::from_utf8_lossy(&answer).into_owned()
    };
    for said in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /tracker.v1.TrackerService/GetRun HTTP/1.1\r\nHost: x\r\n\r\n{}",
        "PUT / HTTP/1.0\r\n\r\n",
    ] {
        let plain = answer(serving.addr(), said.as_bytes());
        assert!(plain.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{plain}");
        assert!(
            plain.contains("this port serves gRPC,") && plain.contains("host watch"),
            "{plain}"
        );
        let tls = answer(with_tls.addr(), said.as_bytes());
        assert!(tls.contains("this port serves gRPC over TLS"), "{tls}");
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let tls = answer(with_tls.addr(), preface);
    assert!(tls.contains("this port needs TLS"), "{tls}");
    drop((serving, with_tls));
    run.finish();
}

#[test]
fn reading_from_a_damaged_store_is_an_error() {
    let run = Run::start();
    run.train(1..3000);
    let runs_dir = run.finish();
    let store = runs_dir.path().join(NAME).join(host_store::FILE);
    let good = std::fs::read(&store).expect("a store");
    let file = rusqlite::Connection::open(&store).expect("the file");
    // Rows are missing, but the database pages are intact.
    file.execute_batch(
        "PRAGMA foreign_keys = OFF; DELETE FROM chunks; DELETE FROM events WHERE frame IS NOT NULL",
    )
    .expect("deleted");
    drop(file);
    let emptied = std::fs::read(&store).expect("a store");
    let mut zeroed = good.clone();
    zeroed[4096..].fill(0);
    for bytes in [&emptied, &zeroed, &good[..good.len() / 2].to_vec()] {
        std::fs::write(&store, bytes).expect("written");
        let serving = serve(Source::Folder(runs_dir.path().to_owned()));
        asynchronously(&serving, async |channel| {
            let mut tracker = TrackerServiceClient::new(channel.clone());
            let run = NAME.to_owned();
            let metric = "loss/train".to_owned();
            let read = proto::ReadMetricRequest {
                run: run.clone(),
                metric: metric.clone(),
                max_points: 10,
            };
            let lost = |status: Status| assert_eq!(status.code(), Code::DataLoss, "{status}");
            lost(tracker.read_metric(read).await.expect_err("damaged"));
            let list = proto::ListMetricsRequest { run: run.clone() };
            lost(tracker.list_metrics(list).await.expect_err("damaged"));
            let compare = proto::CompareRunsRequest {
                runs: vec![run.clone()],
                metrics: vec![metric],
                ..Default::default()
            };
            lost(tracker.compare_runs(compare).await.expect_err("damaged"));
            let watch = proto::WatchEventsRequest {
                run,
                ..Default::default()
            };
            match tracker.watch_events(watch).await {
                Err(status) => lost(status),
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    let status = loop {
                        match stream.message().await {
                            Ok(piece) => assert!(piece.is_some_and(|piece| piece.end.is_none())),
                            Err(status) => break status,
                        }
                    };
                    lost(status);
                }
            }
            let mut tensorboard = TensorBoardDataProviderClient::new(channel);
            let read = tensorboard::ReadScalarsRequest {
                plugin_filter: Some(tensorboard::PluginFilter {
                    plugin_name: "scalars".to_owned(),
                }),
                downsample: Some(tensorboard::Downsample { num_points: 10 }),
                ..Default::default()
            };
            lost(tensorboard.read_scalars(read).await.expect_err("damaged"));
        });
    }
}

#[test]
fn without_tls_and_a_token_only_loopback_is_allowed() {
    let run = Run::start();
    for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let error = Server::new(addr.parse().expect("an address"), run.live())
            .start()
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.hint_text().expect("a hint").contains("ssh -L"));
    }
    let serving = serve(run.live());
    let taken = Server::new(serving.addr(), run.live())
        .start()
        .expect_err("in use");
    assert!(
        taken.message().starts_with("cannot listen on 127.0.0.1"),
        "{taken}"
    );
}

#[test]
fn a_client_without_a_server_gets_an_error() {
    let run = Run::start();
    let serving = serve(run.live());
    let addr = serving.addr().to_string();
    serving.stop().expect("stopped");
    let error = Client::connect(&addr).expect_err("no server");
    assert!(error.message().contains("refused"), "{error}");
    assert!(Client::connect("not an address").is_err());
}

fn asynchronously(serving: &host_serve::Serving, test: impl AsyncFnOnce(Channel)) {
    let uri = format!("http://{}", serving.addr());
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async {
            let endpoint = Channel::from_shared(uri).expect("an address");
            test(endpoint.connect().await.expect("connected")).await;
        });
}
