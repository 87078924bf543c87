//! `host watch` in a terminal: its screens and its keys.

use host_core::{Draft, EventBody, MetricValue, Step};
use host_store::{RunRecord, Writer};

use crate::support::{Home, Process, Pty};

/// Starts a run that trains until it is stopped, and that prints its events.
fn start_endless(home: &Home, name: &str) -> Process {
    let steps = ["--json", "--max-train-steps", "1000000"];
    let saves = ["--save-checkpoint-steps", "1000000"];
    let run = home.start_training(name, &[&steps[..], &saves].concat());
    run.event(|event| event["kind"] == "run_started");
    run
}

#[test]
fn a_live_run_is_watched_controlled_and_stopped_from_a_terminal() {
    let home = Home::new();
    let run = start_endless(&home, "seen");
    let mut screen = Pty::start(&home.command(&["watch", "seen"]));
    screen.shows(&["seen  ● training", "/1000000 steps", "tokens/s"]);

    // The values of a paused run do not change during the comparison.
    screen.press("p");
    screen.shows(&["seen  ‖ paused", "pause: carried out at step "]);
    screen.press("e");
    let evaluation = run.event(|event| event["values"]["loss/eval"].is_f64());
    let loss = evaluation["values"]["loss/eval"].as_f64().expect("a loss");
    screen.shows(&[&format!("eval {loss:.4}"), "requested an evaluation"]);
    screen.press("c");
    screen.shows(&["checkpoint: carried out at step ", "checkpoint step-"]);

    // A client without an access token sees everything, but cannot control the run.
    let address = std::fs::read_to_string(home.run_dir("seen").join("grpc.addr"));
    let address = address.expect("an address");
    let mut stranger = Pty::start(&home.command(&["watch", address.trim()]));
    stranger.shows(&["seen  ‖ paused"]);
    stranger.press("p");
    stranger.shows(&["continue: no token was given", "seen  ‖ paused"]);
    stranger.press("q");
    stranger.left_with("run seen continues at step ");

    screen.press("p");
    screen.shows(&["seen  ● training"]);
    screen.press("s");
    screen.shows(&["stop seen, after a checkpoint? y/n"]);
    screen.press("y");
    let output = run.output().succeeded();
    let end = output.events();
    let end = end.last().expect("events");
    assert_eq!(end["reason"], "requested", "{output}");
    let step = end["step"].as_u64().expect("a step");
    assert_eq!(home.checkpoints("seen").last(), Some(&step));
    screen.shows(&[
        "seen  stopped as requested",
        &format!("{step}/1000000 steps"),
    ]);
    screen.press("q");
    screen.left_with(&format!("run seen stopped as requested at step {step}"));
}

#[test]
fn a_finished_run_is_shown_in_any_size_until_a_signal() {
    let home = Home::new();
    home.train("over", &["--plugin", "perplexity"]).succeeded();
    let mut screen = Pty::start(&home.command(&["watch", "over"]));
    screen.shows(&[
        "over  completed",
        "100 %  20/20 steps",
        "step 20",
        "perplexity",
    ]);
    screen.press("s");
    screen.shows(&["the run is not live"]);

    screen.resize(12, 40);
    // If a key arrives together with a new size, crossterm does not report the key until the next key
    // arrives. So wait until the new size is shown.
    screen.shows(&["Tab pane"]);
    screen.press("\t");
    screen.shows(&["─ ▸ plugins", "calls"]);
    screen.resize(40, 140);
    let large = screen.shows(&["── metrics", "── deliveries", "── log"]);
    // The curve shows the history from the first step on.
    assert!(large.contains("loss/train"), "{large}");

    screen.terminate();
    screen.left_with("run over completed at step 20");
}

#[test]
fn a_killed_run_is_shown_as_crashed_with_the_command_that_continues_it() {
    let home = Home::new();
    let run = start_endless(&home, "killed");
    let mut screen = Pty::start(&home.command(&["watch", "killed"]));
    screen.shows(&["killed  ● training"]);
    run.kill();
    screen.shows(&["killed  crashed"]);
    // Control-C is a key here, not a signal.
    screen.press("\u{3}");
    screen.left_with("`host resume killed` resumes it from its newest checkpoint");
}

#[test]
fn a_killed_run_that_is_resumed_is_followed_again() {
    let home = Home::new();
    let saves = [
        "--max-train-steps",
        "1000000",
        "--save-checkpoint-steps",
        "10",
    ];
    let run = home.start_training("again", &[&saves[..], &["--json"]].concat());
    run.event(|event| event["kind"] == "checkpoint_written");
    let mut by_name = Pty::start(&home.command(&["watch", "again"]));
    let serve = home.start(&["serve"]);
    let line = serve.printed("gRPC at ");
    let address = line.trim_start_matches("gRPC at ").split(": ").next();
    let address = address.expect("an address");
    let mut by_address = Pty::start(&home.command(&["watch", address, "--run", "again"]));
    let lines = home.start(&["watch", "again", "--plain"]);
    lines.printed("run again at step ");
    for screen in [&by_name, &by_address] {
        screen.shows(&["again  ● training"]);
    }
    run.kill();
    for screen in [&by_name, &by_address] {
        screen.shows(&["again  crashed"]);
    }
    // The plain output ends here, with the command that resumes the run.
    let lines = lines.output().succeeded();
    assert!(
        lines.stdout.contains("`host resume again` resumes it"),
        "{lines}"
    );
    assert_eq!(lines.stderr, "");

    let resumed = home.start(&["resume", "again", "--json"]);
    resumed.event(|event| event["step"].as_u64() > Some(30));
    for screen in [&by_name, &by_address] {
        screen.shows(&["again  ● training"]);
    }
    by_name.press("p");
    by_name.shows(&["again  ‖ paused"]);
    by_address.shows(&["again  ‖ paused"]);
    resumed.terminate();
    resumed.output().ended_with(143);
    by_name.shows(&["again  terminated"]);
    by_name.press("q");
    by_name.left_with("run again terminated at step ");
    by_address.press("q");
    by_address.left_with("run again terminated at step ");
}

#[test]
fn control_z_returns_the_terminal_to_the_shell_and_fg_shows_the_run_again() {
    let home = Home::new();
    let run = start_endless(&home, "stopped");
    let host = home.command(&[]);
    let script =
        r#""$0" watch stopped; echo "the shell again"; read -r line; fg; echo "and again""#;
    let mut shell = std::process::Command::new("bash");
    shell
        .args(["--norc", "-m", "-c", script])
        .arg(host.get_program());
    shell.env_clear().current_dir(home.path(""));
    shell.envs(
        host.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let mut screen = Pty::start(&shell);
    screen.shows(&["stopped  ● training"]);
    screen.press("\u{1a}");
    let text = screen.shows(&["the shell again"]);
    assert!(!text.contains("training"), "{text}");
    screen.press("\n");
    screen.shows(&["stopped  ● training"]);
    screen.press("q");
    screen.left_with("and again");
    run.terminate();
    run.output().ended_with(143);

    // The dashboard ignores Ctrl-Z if there is no shell that could continue it.
    let mut alone = Pty::start(&home.command(&["watch", "stopped"]));
    alone.shows(&["stopped  terminated"]);
    alone.press("\u{1a}");
    alone.shows(&["Ctrl-Z needs a shell with job control"]);
    alone.press("q");
    alone.left_with("run stopped terminated at step ");
}

#[test]
fn a_dashboard_on_a_blocked_terminal_ends_at_a_signal() {
    let home = Home::new();
    home.train("over", &[]).succeeded();
    let mut stuck = Pty::start_stuck(&home.command(&["watch", "over"]));
    // The thread that follows the run starts just before the first screen is drawn.
    stuck.has_thread("watch");
    stuck.terminate();
    // The code is 0 if the signal arrived before the first screen was drawn.
    let code = stuck.ended();
    assert!(matches!(code, Some(0 | 143)), "{code:?}");
}

#[test]
fn colors_can_be_turned_off_and_plain_lines_chosen() {
    let home = Home::new();
    home.train("plain", &[]).succeeded();
    let mut command = home.command(&["watch", "plain"]);
    command.env("NO_COLOR", "1");
    let mut screen = Pty::start(&command);
    screen.shows(&["plain  completed"]);
    assert!(!screen.has_colors());
    screen.press("q");
    screen.left_with("run plain completed at step 20");

    let run = start_endless(&home, "lines");
    let lines = Pty::start(&home.command(&["watch", "lines", "--plain"]));
    lines.shows(&["run lines at step ", "loss "]);
    run.terminate();
    run.output().ended_with(143);
    lines.left_with("terminated");
}

#[test]
fn a_long_run_is_shown_from_its_first_step_at_once() {
    let home = Home::new();
    let dir = home.run_dir("long");
    let record = RunRecord {
        name: "long".to_owned(),
        created_us: 0,
        config_json: r#"{"max_train_steps":100000}"#.to_owned(),
    };
    std::fs::create_dir_all(&dir).expect("a folder");
    std::fs::write(dir.join("run.toml"), "").expect("written");
    let mut writer = Writer::create(&dir, &record).expect("a run");
    let steps: Vec<u64> = (1..=100_000).collect();
    for steps in steps.chunks(10_000) {
        let draft = |&step: &u64| {
            // Only the first losses are above 5.
            let loss = 5.0 + 50.0 * (0.5 - step as f64 / 1000.0).max(0.0);
            let values = vec![MetricValue::new("loss/train", loss)];
            Draft {
                time_us: step as i64 * 100_000,
                step: Step(step),
                body: EventBody::Metrics { values },
            }
        };
        writer
            .append(steps.iter().map(draft).collect())
            .expect("written");
    }
    drop(writer);

    let mut screen = Pty::start(&home.command(&["watch", "long"]));
    screen.shows(&[
        "long  crashed",
        "100000/100000 steps",
        "⠒ loss/train 5",
        "8┤",
        "20k",
    ]);
    screen.press("q");
    screen.left_with("run long crashed at step 100000");
}

#[test]
fn a_broken_connection_is_reported_and_restored() {
    let home = Home::new();
    let _run = start_endless(&home, "cut");
    let serve = home.start(&["serve"]);
    let line = serve.printed("gRPC at ");
    let address = line.trim_start_matches("gRPC at ").split(": ").next();
    let address = address.expect("an address").to_owned();
    let mut screen = Pty::start(&home.command(&["watch", &address, "--run", "cut"]));
    screen.shows(&["cut  ● training", &address, "tokens/s"]);

    serve.kill();
    screen.shows(&["reconnecting, attempt "]);
    let _serve = home.start(&["serve", "--listen", &address]);
    screen.hides("reconnecting, attempt ");
    screen.shows(&["cut  ● training", &address]);
    screen.press("q");
    screen.left_with("run cut continues at step ");
}
