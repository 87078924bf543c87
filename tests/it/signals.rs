//! The signals that end a run, and when they are handled.

use std::io::{self, Write as _};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use host_core::{EventBody, StopReason};
use host_store::{Reader, RunStatus};

use crate::support::{Fixture, Home, Process, await_event, events_of, takes};

#[test]
fn signals_are_handled_before_an_address_is_printed() {
    let home = Home::new();
    std::fs::create_dir(home.path("runs")).expect("made");
    let endless = ["run", "tiny.toml", "--max-train-steps=1000000", "--json"];
    for (args, code) in [(&["serve"][..], 0), (&endless, 143)] {
        // The pipe is full, so printing blocks until the pipe is read. A program that prints before it
        // installs its signal handlers would not handle the signal.
        let (mut read, mut full) = io::pipe().expect("a pipe");
        let stdout = full.try_clone().expect("a pipe");
        let filling = thread::Builder::new()
            .name("filling".to_owned())
            .spawn(move || full.write_all(&vec![b'\n'; 1 << 20]))
            .expect("a thread");
        let mut host = home
            .command(args)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let both = [Signal::INT, Signal::TERM];
        let end = Instant::now() + Duration::from_secs(60);
        while !both.iter().all(|&signal| takes(host.id(), signal)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        kill_process(Pid::from_child(&host), Signal::TERM).expect("the process is there");
        io::copy(&mut read, &mut io::sink()).expect("read");
        filling.join().expect("a thread").expect("filled");
        let status = host.wait().expect("a child");
        assert_eq!(status.code(), Some(code), "{args:?}: {status}");
    }
}

/// Starts an endless run through the program `env`. `signals` is an option of `env`. It overrides the signal
/// handling that the run would inherit.
fn start_endless(home: &Home, name: &str, signals: &str, more: &[&str]) -> Process {
    let mut command = home.command(&[]);
    let host = command.get_program().to_owned();
    let mut env = std::process::Command::new("env");
    env.arg(signals).arg(host);
    env.args(["run", "tiny.toml", "--name", name, "--json"]);
    env.args([
        "--max-train-steps",
        "1000000",
        "--save-checkpoint-steps",
        "1000000",
    ]);
    env.args(more).env_clear().current_dir(home.path(""));
    env.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    command = env;
    let run = Process::start(&mut command);
    run.event(|event| event["step"].as_u64() > Some(3));
    run
}

#[test]
fn a_signal_that_ends_a_run_leaves_a_checkpoint_and_its_own_exit_code() {
    let home = Home::new();
    for (name, signal, code) in [
        ("hup", Signal::HUP, 129),
        ("int", Signal::INT, 130),
        ("quit", Signal::QUIT, 131),
        ("usr1", Signal::USR1, 138),
        ("usr2", Signal::USR2, 140),
        ("term", Signal::TERM, 143),
    ] {
        let run = start_endless(&home, name, "--default-signal", &[]);
        run.signal(signal);
        let output = run.output();
        match signal {
            Signal::QUIT => assert_eq!(output.signal(), Some(signal.as_raw()), "{output}"),
            _ => drop(output.ended_with(code)),
        }
        let events = events_of(&home.run_dir(name));
        let end = events.last().expect("events");
        let EventBody::RunFinished { reason, message } = &end.body else {
            panic!("{name}: {end:?}");
        };
        let (expected, said) = match signal {
            Signal::INT => (StopReason::Interrupted, String::new()),
            Signal::TERM => (StopReason::Terminated, String::new()),
            _ => (
                StopReason::Terminated,
                format!("SIG{}", name.to_uppercase()),
            ),
        };
        assert_eq!((reason, message), (&expected, &said));
        assert_eq!(home.checkpoints(name), [end.step.0], "{name}");
        assert!(!home.run_dir(name).join("grpc.addr").exists(), "{name}");
    }
}

#[test]
fn a_repeated_hangup_does_not_end_the_run_at_once() {
    let home = Home::new();
    // Each delivery of this sink waits until it is cancelled.
    let hangs = Fixture::sink("hangs").build(&home.path(""));
    let hangs = format!("{}:how=wait", hangs.display());
    let more = ["--plugin", &hangs, "--preflight", "off"];
    let run = start_endless(&home, "warned", "--default-signal", &more);
    // Both signals are SIGHUP, because two different signals that arrive together can be handled in either
    // order, and the first one determines the exit code.
    run.signal(Signal::HUP);
    run.signal(Signal::HUP);
    run.said("press Ctrl-C to stop waiting");
    let dir = home.run_dir("warned");
    await_event(&dir, |event| {
        matches!(event.body, EventBody::CheckpointWritten { .. })
    });
    run.signal(Signal::USR1);
    run.signal(Signal::HUP);
    // Unlike the signals above, SIGTERM is a request to end the run. The first such request cancels the
    // deliveries, and the run ends normally.
    run.terminate();
    run.output().ended_with(129);
    let row = Reader::open(&dir)
        .and_then(|reader| reader.run())
        .expect("a run");
    assert_eq!(row.status, RunStatus::Finished(StopReason::Terminated));
}

#[test]
fn a_hangup_that_was_ignored_stays_ignored() {
    let home = Home::new();
    let run = start_endless(&home, "nohup", "--ignore-signal=HUP", &[]);
    assert!(!takes(run.id(), Signal::HUP) && takes(run.id(), Signal::USR1));
    run.signal(Signal::HUP);
    let now = events_of(&home.run_dir("nohup"))
        .last()
        .expect("events")
        .step;
    await_event(&home.run_dir("nohup"), |event| event.step.0 > now.0 + 20);
    run.terminate();
    run.output().ended_with(143);

    let serve = |signals: &str| {
        let command = home.command(&[]);
        let mut env = std::process::Command::new("env");
        env.arg(signals).arg(command.get_program()).arg("serve");
        env.env_clear().current_dir(home.path(""));
        env.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        let serve = Process::start(&mut env);
        serve.printed("gRPC at ");
        serve
    };
    let stays = serve("--ignore-signal=HUP");
    assert!(!takes(stays.id(), Signal::HUP));
    stays.terminate();
    stays.output().succeeded();
    let ends = serve("--default-signal");
    ends.signal(Signal::HUP);
    ends.output().succeeded();
}
