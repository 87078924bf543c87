use std::time::Duration;

use host_core::{Event, EventBody, StopReason};
use host_serve::{Client, Server, WatchEnd};

use crate::proxy::Proxy;
use crate::run::{NAME, Run, connect, serve};

fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

/// Returns all events of the run and checks that it completed.
fn follow(client: &Client) -> Vec<Event> {
    let mut watch = client.watch(NAME, 0, true);
    let events: Vec<Event> = watch
        .by_ref()
        .map(|event| event.expect("an event"))
        .collect();
    assert_eq!(watch.end(), Some(WatchEnd::RunFinished));
    assert!(matches!(
        events.last().expect("some").body,
        EventBody::RunFinished {
            reason: StopReason::Completed,
            ..
        }
    ));
    events
}

#[test]
fn a_live_run_is_watched_to_its_end() {
    for folder in [false, true] {
        let run = Run::start();
        let serving = serve(if folder { run.folder() } else { run.live() });
        let client = connect(&serving);
        let mut watch = client.watch("", 0, true);
        // One step at a time, so that each event must arrive while the run is active.
        for step in 1..=5 {
            let event = watch.next().expect("not ended").expect("an event");
            assert_eq!((event.seq, event.step.0), (step, step - 1));
            run.train(step..step + 1);
        }
        drop(watch);
        run.train(6..3000);
        let expected: Vec<u64> = (1..=3001).collect();
        let runs_dir = run.finish();
        let events = follow(&client);
        assert_eq!(seqs(&events), expected);
        // After the run has ended, a watch can still start at an event in the middle.
        let rest: Vec<Event> = client
            .watch(NAME, 2000, false)
            .map(|event| event.expect("an event"))
            .collect();
        assert_eq!(rest, events[2000..]);
        let reader = host_store::Reader::open(&runs_dir.path().join(NAME)).expect("a run");
        assert_eq!(reader.events_after(0, 5000).expect("readable"), events);
        serving.stop().expect("stopped");
    }
}

#[test]
fn a_watch_over_a_broken_connection_gets_each_event_once() {
    let run = Run::start();
    let serving = serve(run.live());
    let proxy = Proxy::to(serving.addr(), 100_000);
    let watcher = std::thread::Builder::new()
        .spawn({
            let addr = proxy.addr.to_string();
            move || follow(&Client::connect(&addr).expect("a client"))
        })
        .expect("a thread");
    for begin in (0..12_000).step_by(1000) {
        run.train(begin..begin + 1000);
        std::thread::sleep(Duration::from_millis(20));
    }
    let _runs_dir = run.finish();
    let events = watcher.join().expect("watched to the end");
    assert_eq!(seqs(&events), (1..=12_002).collect::<Vec<_>>());
    assert!(proxy.cuts() >= 3, "{} cuts", proxy.cuts());
    serving.stop().expect("stopped");
}

#[test]
fn a_watch_continues_at_the_next_server_of_the_run() {
    let run = Run::start();
    let serving = serve(run.live());
    let addr = serving.addr();
    let client = connect(&serving);
    run.train(1..100);
    run.commits().wait_beyond(99, Duration::from_secs(60));
    let mut watch = client.watch(NAME, 0, true);
    let mut events: Vec<Event> = watch
        .by_ref()
        .take(50)
        .map(|event| event.expect("an event"))
        .collect();
    serving.stop().expect("stopped");
    run.train(100..200);
    let serving = Server::new(addr, run.live())
        .start()
        .expect("the same port again");
    let _runs_dir = run.finish();
    events.extend(watch.by_ref().map(|event| event.expect("an event")));
    assert_eq!(seqs(&events), (1..=201).collect::<Vec<_>>());
    assert_eq!(watch.end(), Some(WatchEnd::RunFinished));
    serving.stop().expect("stopped");
}

#[test]
fn a_watcher_that_does_not_read_delays_no_other_client_and_misses_no_event() {
    let run = Run::start();
    let serving = serve(run.live());
    let client = connect(&serving);
    let mut watch = client.watch(NAME, 0, true);
    assert_eq!(watch.next().expect("not ended").expect("an event").seq, 1);
    // All windows and buffers together cannot hold this many events; the emitter's queue, for example, has
    // only 256 places.
    run.train(1..100_000);
    let commits = run.commits();
    let _runs_dir = run.finish();
    assert_eq!(commits.last_seq(), 100_001);
    // While nothing reads the watch, the server still serves other clients.
    assert_eq!(
        connect(&serving).run(NAME).expect("a run").last_seq,
        100_001
    );
    let rest: Vec<Event> = watch.map(|event| event.expect("an event")).collect();
    assert_eq!(seqs(&rest), (2..=100_001).collect::<Vec<_>>());
    serving.stop().expect("stopped");
}

#[test]
fn fifty_watchers_get_each_event_once() {
    let run = Run::start();
    let serving = serve(run.live());
    let watchers: Vec<_> = (0..50)
        .map(|_| {
            let addr = serving.addr().to_string();
            std::thread::Builder::new()
                .spawn(move || seqs(&follow(&Client::connect(&addr).expect("a client"))))
                .expect("a thread")
        })
        .collect();
    for step in 0..300 {
        run.train(step..step + 1);
        std::thread::sleep(Duration::from_millis(2));
    }
    let _runs_dir = run.finish();
    for watcher in watchers {
        let seqs = watcher.join().expect("watched to the end");
        assert_eq!(seqs, (1..=302).collect::<Vec<_>>());
    }
    serving.stop().expect("stopped");
}

#[test]
fn watchers_get_the_reason_for_the_end() {
    let run = Run::start();
    let serving = serve(run.folder());
    let client = connect(&serving);
    run.train(1..10);
    run.commits().wait_beyond(9, Duration::from_secs(60));

    let mut now = client.watch(NAME, 0, false);
    assert_eq!(now.by_ref().count(), 10);
    assert_eq!(now.end(), Some(WatchEnd::CaughtUp));

    let mut crashed = client.watch(NAME, 3, true);
    assert_eq!(crashed.next().expect("not ended").expect("an event").seq, 4);
    let _runs_dir = run.crash();
    assert_eq!(crashed.by_ref().count(), 6);
    assert_eq!(crashed.end(), Some(WatchEnd::RunCrashed));
}

#[test]
fn a_stopping_server_ends_all_watches() {
    let run = Run::start();
    let serving = serve(run.live());
    let client = connect(&serving);
    let idle = connect(&serving);
    let mut watch = client.watch(NAME, 0, true).patience(Duration::ZERO);
    let mut stalled = idle.watch(NAME, 0, true);
    assert!(watch.next().expect("not ended").is_ok());
    assert!(stalled.next().expect("not ended").is_ok());
    run.train(1..200_000);
    serving.stop().expect("stopped");
    // Events in flight can still arrive. After them, the watch returns an error, whose hint contains the
    // cursor, and ends.
    let error = watch.find_map(Result::err).expect("cut off");
    let hint = error.hint_text().expect("a hint").to_owned();
    assert!(hint.contains(&watch.cursor().to_string()), "{hint}");
    assert!(watch.next().is_none());
    assert_eq!(watch.end(), None);
}
