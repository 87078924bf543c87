use std::time::Duration;

use host_core::{DeliveryState, EventBody, Kind, Step, StopReason};
use host_proto::tracker::v1 as proto;
use host_serve::{Client, Server};
use host_store::{Reader, RunStatus};
use proto::tracker_service_client::TrackerServiceClient;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::run::{NAME, Run, connect, serve};

#[test]
fn what_the_client_reads_is_what_the_store_has() {
    let run = Run::start();
    run.train(1..5000);
    // Back to step 4000, and on from there.
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
fn the_ledger_says_where_each_checkpoint_is_and_why_not() {
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
        // The newest checkpoints stay.
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
fn runs_are_listed_in_pages_and_a_broken_one_hides_none() {
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
    std::fs::write(broken.join(host_store::FILE), "no database, but text").expect("a file");

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
        Kind::System
    );
    let error = client.run("").expect_err("which?");
    assert!(error.message().contains("several"), "{error}");
}

#[test]
fn a_request_that_makes_no_sense_gets_the_status_that_says_so() {
    let run = Run::start();
    let serving = serve(run.folder());
    // A store where no run's name leads.
    let outside = run.runs_dir.path().join(".hidden");
    std::fs::create_dir(&outside).expect("a folder");
    asynchronously(&serving, async |channel| {
        let mut tracker = TrackerServiceClient::new(channel);
        for (run, code) in [
            ("nobody", Code::NotFound),
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
        // And the next one is answered.
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
fn only_this_machine_may_listen() {
    let run = Run::start();
    for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let error = Server::new(addr.parse().expect("an address"), run.live())
            .start()
            .expect_err("refused");
        assert_eq!(error.kind(), Kind::Config);
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
fn where_nobody_listens_the_client_says_so() {
    let run = Run::start();
    let serving = serve(run.live());
    let addr = serving.addr().to_string();
    serving.stop().expect("stopped");
    let error = Client::connect(&addr).expect_err("nobody there");
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
