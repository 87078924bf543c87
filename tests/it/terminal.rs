//! Tests the output on stdout and stderr. The output goes to terminals, pipes and files. In some tests,
//! nothing reads it.

use std::fs::{self, File, OpenOptions};
use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use host_core::{EventBody, StopReason};
use host_store::{Reader, RunStatus};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Fixture, Home, Pty, await_event, events_of};

#[test]
fn stdout_has_only_the_summary() {
    let home = Home::new();
    let output = home.train("plain", &[]).succeeded();
    let labels: Vec<&str> = output
        .stdout
        .lines()
        .map(|line| line.split("  ").next().unwrap_or_default())
        .collect();
    assert_eq!(
        labels,
        ["run", "loss/eval", "checkpoints", "next", ""],
        "{output}"
    );
    // The TensorBoard command can be pasted into a shell.
    let said = |start: &str| {
        let line = output
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix(start));
        line.unwrap_or_else(|| panic!("no {start}: {output}"))
            .to_owned()
    };
    let address = said("gRPC at ");
    assert!(address.starts_with("127.0.0.1:"), "{output}");
    let command = said("TensorBoard: ");
    assert_eq!(
        command,
        format!("tensorboard --grpc_data_provider={address}")
    );
    // Another line contains the command that serves the runs after this run has ended.
    let afterwards = said("This address is valid only during the run. Afterwards, use ");
    let runs = fs::canonicalize(home.path("runs")).expect("a folder");
    let runs = runs.to_str().expect("UTF-8");
    assert_eq!(afterwards, format!("`host serve --runs-dir {runs}`."));
    // Without a terminal there are no escape sequences.
    assert!(!format!("{output}").contains('\u{1b}'), "{output}");
}

#[test]
fn stdout_is_empty_if_nothing_was_trained() {
    let home = Home::new();
    assert_eq!(home.train("none", &["--seq-length", "1"]).stdout, "");
}

#[test]
fn with_json_every_line_of_stdout_is_an_object_and_no_event_is_missing() {
    let home = Home::new();
    let output = home.train("json", &["--json"]).succeeded();
    let objects = output.objects();
    let (opened, events) = objects.split_first().expect("lines");
    assert_eq!(opened["kind"], "run");
    assert_eq!(opened["name"], "json");
    assert!(!output.stderr.contains("TensorBoard"), "{output}");
    let numbers: Vec<u64> = events
        .iter()
        .filter_map(|event| event["seq"].as_u64())
        .collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!(events.first().expect("events")["kind"], "run_started");
    assert_eq!(events.last().expect("events")["kind"], "run_finished");
    assert!(output.stderr.contains("host runs show"), "{output}");
}

#[test]
fn help_is_on_stdout_and_names_every_command_and_exit_code() {
    let home = Home::new();
    let help = home.host(&["--help"]).succeeded();
    for word in [
        "run", "resume", "groups", "plugin", "runs", "serve", "watch", "generate", "130", "143",
    ] {
        assert!(help.stdout.contains(word), "{word}: {help}");
    }
    assert_eq!(help.stderr, "");
}

/// Returns a pipe that is full to the last byte.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (read, mut write) = pipe().expect("a pipe");
    ioctl_fionbio(&write, true).expect("set");
    while write.write(&[b'\n'; 4096]).is_ok() {}
    ioctl_fionbio(&write, false).expect("set");
    (read, write)
}

const ENDLESS: [&str; 4] = [
    "--max-train-steps",
    "1000000",
    "--save-checkpoint-steps",
    "10",
];

fn endless<'a>(name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "tiny.toml", "--name", name], &ENDLESS[..], more].concat()
}

/// Waits until the run's store has this step.
fn await_step(home: &Home, name: &str, step: u64) {
    await_event(&home.run_dir(name), |event| event.step.0 >= step);
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("the process is there");
}

fn wait(child: &mut Child) -> ExitStatus {
    let ends = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if Instant::now() >= ends {
            child.kill().expect("a child");
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asserts that the store contains this reason for the run's end. Also asserts that the run's last step has a
/// checkpoint.
#[track_caller]
fn assert_ended(home: &Home, name: &str, reason: StopReason) {
    let row = Reader::open(&home.run_dir(name)).and_then(|reader| reader.run());
    let row = row.expect("a run");
    assert_eq!(row.status, RunStatus::Finished(reason));
    assert_eq!(home.checkpoints(name).last(), Some(&row.last_step.0));
}

#[test]
fn a_run_in_a_blocked_terminal_continues_and_ends_at_a_signal() {
    let home = Home::new();
    let mut stuck = Pty::start_stuck(&home.command(&endless("stuck", &[])));
    await_step(&home, "stuck", 200);
    stuck.terminate();
    assert_eq!(stuck.ended(), Some(143));
    assert_ended(&home, "stuck", StopReason::Terminated);

    // A run that completes or fails does not wait for the blocked terminal, either.
    let mut done = Pty::start_stuck(&home.command(&["run", "tiny.toml", "--name", "done"]));
    assert_eq!(done.ended(), Some(0));
    assert_ended(&home, "done", StopReason::Completed);
    let mut failed = Pty::start_stuck(&home.command(&["run", "tiny.toml", "--name", "done"]));
    assert_eq!(failed.ended(), Some(2));
}

#[test]
fn a_run_with_full_pipes_continues_and_two_signals_end_it_at_once() {
    let home = Home::new();
    for (name, json) in [("plain", false), ("json", true)] {
        let (_stderr, full) = full_pipe();
        let (_stdout, full_too) = full_pipe();
        let json: &[&str] = if json { &["--json"] } else { &[] };
        // The run writes its only checkpoint when it ends. The sink hangs when it receives this checkpoint,
        // so that the first signal does not end the process.
        let hangs = Fixture::sink("hangs").build(&home.path(""));
        let hangs = format!("{}:how=hang", hangs.display());
        let more = [
            json,
            &[
                "--plugin",
                &hangs,
                "--preflight",
                "off",
                "--save-checkpoint-steps",
                "1000000",
            ],
        ]
        .concat();
        let mut host = home
            .command(&endless(name, &more))
            .stdin(Stdio::null())
            .stdout(full_too)
            .stderr(full)
            .spawn()
            .expect("started");
        await_step(&home, name, 50);
        send(&host, Signal::INT);
        await_event(&home.run_dir(name), |event| {
            matches!(&event.body, EventBody::CheckpointWritten { .. })
        });
        send(&host, Signal::INT);
        assert_eq!(wait(&mut host).code(), Some(130), "{name}");
    }
}

#[test]
fn a_slow_reader_of_json_gets_every_event_and_delays_nothing() {
    let home = Home::new();
    let (mut stdout, full) = full_pipe();
    let mut host = home
        .command(&[
            "run",
            "tiny.toml",
            "--name",
            "slow",
            "--max-train-steps",
            "2000",
            "--json",
        ])
        .stdin(Stdio::null())
        .stdout(full)
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let is_end = |body: &EventBody| matches!(body, EventBody::RunFinished { .. });
    await_event(&home.run_dir("slow"), |event| is_end(&event.body));
    let mut text = String::new();
    stdout.read_to_string(&mut text).expect("read");
    assert_eq!(wait(&mut host).code(), Some(0));
    let seqs: Vec<u64> = text
        .lines()
        .filter(|line| !line.is_empty())
        .skip(1)
        .map(|line| {
            let event: Value = serde_json::from_str(line).expect("JSON");
            event["seq"].as_u64().expect("a number")
        })
        .collect();
    let events = events_of(&home.run_dir("slow"));
    assert_eq!(seqs, (1..=events.len() as u64).collect::<Vec<_>>());
}

#[test]
fn ending_a_run_does_not_wait_for_the_reader_of_json_and_reports_missing_events() {
    let home = Home::new();
    let (_stdout, full) = full_pipe();
    let said = home.path("said");
    let mut host = home
        .command(&endless("unread", &["--json"]))
        .stdin(Stdio::null())
        .stdout(full)
        .stderr(File::create(&said).expect("a file"))
        .spawn()
        .expect("started");
    await_step(&home, "unread", 50);
    send(&host, Signal::TERM);
    assert_eq!(wait(&mut host).code(), Some(143));
    assert_ended(&home, "unread", StopReason::Terminated);
    let said = fs::read_to_string(said).expect("text");
    let lacks = "warning: events after 0 are missing on stdout: ";
    assert!(said.lines().any(|line| line.starts_with(lacks)), "{said}");
    assert!(
        said.contains("`host watch unread --json --after 0`"),
        "{said}"
    );
}

#[test]
fn a_full_disk_behind_stdout_is_an_error_and_a_closed_pipe_is_not() {
    let home = Home::new();
    home.train("a", &[]).succeeded();
    let full = || {
        OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("a device")
    };
    let (read, closed) = pipe().expect("a pipe");
    drop(read);
    let checkpoint = home.checkpoint("a", 20);
    let checkpoint = checkpoint.to_str().expect("UTF-8");
    let commands: [&[&str]; 12] = [
        &["runs", "list"],
        &["runs", "list", "--json"],
        &["runs", "show", "a"],
        &["runs", "compare", "a", "a"],
        &["runs", "export", "a", "--out", "-"],
        &["runs", "export", "a", "--out", "-", "--format", "parquet"],
        &["plugin", "list"],
        &["plugin", "info", "perplexity"],
        &["groups", "tiny.toml"],
        &["generate", checkpoint, "--max-new-tokens", "4"],
        &["watch", "a", "--plain"],
        &["--help"],
    ];
    for command in commands {
        let run = |stdout: Stdio| {
            let command = &mut home.command(command);
            let output = command.stdin(Stdio::null()).stdout(stdout).output();
            let output = output.expect("started");
            let said = String::from_utf8(output.stderr).expect("text");
            (output.status, said)
        };
        let (status, said) = run(full().into());
        assert_eq!(status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.contains("error: cannot write to stdout: No space"),
            "{command:?}: {said}"
        );
        let (status, said) = run(closed.try_clone().expect("a pipe").into());
        assert_eq!(
            (status.code(), status.signal()),
            (Some(0), None),
            "{command:?}: {said}"
        );
        assert!(!said.contains("error"), "{command:?}: {said}");
    }
    // A run whose events are printed to a full disk completes its training, but the command fails.
    let output = home
        .command(&["run", "tiny.toml", "--name", "b", "--json"])
        .stdout(full())
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_ended(&home, "b", StopReason::Completed);
}

#[test]
fn a_terminal_that_cannot_draw_gets_every_line() {
    let home = Home::new();
    for (number, (term, ci)) in [
        (Some("dumb"), None),
        (None, None),
        (Some("xterm"), Some("true")),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("run-{number}");
        let args = [
            "run",
            "tiny.toml",
            "--name",
            &name,
            "--plugin",
            "perplexity",
        ];
        let mut command = home.command(&args);
        command.envs(ci.map(|ci| ("CI", ci)));
        let screen = Pty::start_as(&command, term);
        let lines = [
            "plugin perplexity",
            "gRPC at 127.0.0.1:",
            "TensorBoard: tensorboard --grpc_data_provider=",
            "step 20      loss/eval ",
            "checkpoint step-000020: ",
            "step 20      completed",
            "loss/eval    ",
        ];
        screen.shows(&lines);
        screen.left_with("host runs show");

        let mut command = home.command(&["watch", &name]);
        command.envs(ci.map(|ci| ("CI", ci)));
        let screen = Pty::start_as(&command, term);
        screen.shows(&[&format!("run {name} at step 20"), "step 20      loss/eval "]);
        screen.left_with("step 20      completed");
    }
}

#[test]
fn text_from_elsewhere_contains_no_control_characters() {
    let home = Home::new();
    let dir = home.run_dir("odd");
    let odd = "a\u{1b}[2J\u{9b}31m\u{202e}\r\nstep 1  b";
    let record = host_store::RunRecord {
        name: "odd".to_owned(),
        created_us: 0,
        config_json: serde_json::json!({ "max_train_steps": 1, "model": odd }).to_string(),
    };
    fs::create_dir_all(&dir).expect("a folder");
    fs::write(dir.join("run.toml"), "model = \"a\\u001b[2J\u{9b}\"\n").expect("written");
    let mut writer = host_store::Writer::create(&dir, &record).expect("a run");
    let draft = |body| host_core::Draft {
        time_us: 1,
        step: host_core::Step(1),
        body,
    };
    let values = vec![host_core::MetricValue::new(odd, 1.0)];
    let delivery = |state, detail: &str| EventBody::Delivery {
        sink: odd.to_owned(),
        checkpoint: host_core::Step(1),
        state,
        detail: detail.to_owned(),
        retry_time_us: None,
    };
    let place = serde_json::json!({ "path": odd }).to_string();
    let bodies = [
        EventBody::RunStarted { generation: 0 },
        EventBody::Metrics { values },
        EventBody::Warning {
            message: odd.to_owned(),
        },
        EventBody::CheckpointWritten {
            name: odd.to_owned(),
            bytes: 1,
            stall_secs: 0.0,
            write_secs: 0.0,
        },
        delivery(host_core::DeliveryState::Failed, odd),
        delivery(host_core::DeliveryState::Delivered, &place),
        EventBody::RunFinished {
            reason: StopReason::Failed,
            message: odd.to_owned(),
        },
    ];
    writer
        .append(bodies.into_iter().map(draft).collect())
        .expect("written");
    drop(writer);
    let commands: [&[&str]; 8] = [
        &["runs", "list"],
        &["runs", "list", "--json"],
        &["runs", "show", "odd"],
        &["runs", "show", "odd", "--json"],
        &["runs", "compare", "odd", "odd"],
        &["watch", "odd", "--plain"],
        &["watch", "odd", "--json"],
        &["runs", "show", "a\u{1b}[2Jb"],
    ];
    for command in commands {
        let output = home.host(command);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(!said.is_empty(), "{command:?}");
        let moves = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!said.contains(moves), "{command:?}: {said:?}");
        // The text cannot imitate a line of the program's output.
        assert!(
            !said.lines().any(|line| line.starts_with("step 1  b")),
            "{command:?}: {said}"
        );
    }
    let shown = home
        .host(&["runs", "show", "odd", "--json"])
        .succeeded()
        .json();
    assert_eq!(shown["metrics"][0]["name"], odd);
}

#[test]
fn a_plugins_warning_reaches_the_terminal_the_store_and_json() {
    let home = Home::new();
    let warns = Fixture::metric("warns").build(&home.path(""));
    let warns = format!("{}:how=warn", warns.display());
    let is_warning = |text: &str| text == "warns: a warning of the fixture";
    let plain = home.train("plain", &["--plugin", &warns]).succeeded();
    let shown = plain
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("warning: "));
    let shown = shown.filter(|line| is_warning(line)).count();
    let stored = events_of(&home.run_dir("plain"));
    let stored = stored.iter().filter(|event| match &event.body {
        EventBody::Warning { message } => is_warning(message),
        _ => false,
    });
    assert!(shown > 0, "{plain}");
    assert_eq!(stored.count(), shown, "{plain}");
    let json = home
        .train("json", &["--plugin", &warns, "--json"])
        .succeeded();
    let told = json.events();
    let told = told
        .iter()
        .filter(|event| event["message"].as_str().is_some_and(is_warning));
    assert_eq!(told.count(), shown, "{json}");
    assert!(!json.stderr.contains("a warning of the fixture"), "{json}");

    let groups = [
        "groups",
        "tiny.toml",
        "--json",
        "--plugin",
        "weight-decay:no_decay=[LayerNorm]",
    ];
    let groups = home.host(&groups).succeeded();
    let warnings = groups.json()["warnings"].clone();
    assert_eq!(warnings.as_array().map(Vec::len), Some(1), "{groups}");
}
