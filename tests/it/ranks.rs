//! Several processes train together: the result equals that of one process, and when one fails, all end with the same
//! error and can resume exactly.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::nonfinite::poisoned;
use crate::support::{Fixture, Home, Output, Process, built, curve, events_of, root};

/// Runs of several processes on one GPU are not possible.
fn is_on_cpu() -> bool {
    let is_cpu = Home::device() == "cpu";
    if !is_cpu {
        eprintln!("skipped: several ranks need several devices");
    }
    is_cpu
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Starts a process as one of several ranks, as a launcher does.
fn start_rank(home: &Home, (rank, size): (usize, usize), port: u16, args: &[&str]) -> Process {
    let (rank, size, port) = (rank.to_string(), size.to_string(), port.to_string());
    let env = [
        ("RANK", rank.as_str()),
        ("WORLD_SIZE", &size),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", &port),
    ];
    home.start_with(&env, args)
}

/// Starts all ranks of a tiny run. The first is the lead.
fn start(home: &Home, size: usize, name: &str, more: &[&str]) -> Vec<Process> {
    let args = [&["run", "tiny.toml", "--name", name], more].concat();
    let port = free_port();
    (0..size)
        .map(|rank| start_rank(home, (rank, size), port, &args))
        .collect()
}

/// Trains a tiny model on several ranks to completion. Returns the lead's output.
#[track_caller]
fn train(home: &Home, size: usize, name: &str, more: &[&str]) -> Output {
    let mut outputs = start(home, size, name, more)
        .into_iter()
        .map(Process::output);
    let lead = outputs.next().expect("a lead").succeeded();
    outputs.for_each(|output| drop(output.succeeded()));
    lead
}

/// Returns the largest difference between the weights of two checkpoints.
fn difference(one: &Path, two: &Path) -> f32 {
    let [one, two] =
        [one, two].map(|folder| fs::read(folder.join("model.safetensors")).expect("weights"));
    let [one, two] = [&one, &two].map(|bytes| SafeTensors::deserialize(bytes).expect("valid"));
    let floats = |bytes: &[u8]| -> Vec<f32> {
        let (floats, _) = bytes.as_chunks();
        floats
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    };
    let mut largest = 0.0_f32;
    for (name, tensor) in one.tensors() {
        let other = two.tensor(&name).expect("the same names");
        let pairs = floats(tensor.data()).into_iter().zip(floats(other.data()));
        largest = pairs.map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
    }
    largest
}

/// Writes a model with dropout.
fn write_model(home: &Home, ties: bool) {
    let model = format!(
        r#"{{"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128,
            "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "tie_word_embeddings": {ties}}}"#
    );
    fs::write(home.path("config.json"), model).expect("written");
}

/// With the same number of sequences per step, any number of ranks gives the weights and the evaluation of one
/// process. The evaluation set has a number of batches that the ranks cannot divide.
#[test]
fn several_ranks_train_like_one() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    for (ties, checkpointing) in [(true, "false"), (false, "false"), (true, "true")] {
        write_model(&home, ties);
        let run = |size: usize| {
            let name = format!("{ties}-{checkpointing}-{size}");
            let accumulation = (12 / size).to_string();
            let checkpointing = format!("--gradient-checkpointing={checkpointing}");
            let more = [
                "--model",
                "config.json",
                &checkpointing,
                "--train-batch-size",
                "2",
                "--gradient-accumulation-steps",
                &accumulation,
                "--save-checkpoint-steps",
                "10",
                "--valid-batch-size",
                "3",
                "--max-eval-steps",
                "-1",
                "--plugin",
                "perplexity",
                "--plugin",
                "token-accuracy",
                "--plugin",
                "bits-per-byte",
            ];
            train(&home, size, &name, &more);
            name
        };
        let one = run(1);
        for size in 2..=4 {
            let several = run(size);
            let largest = difference(&home.checkpoint(&one, 20), &home.checkpoint(&several, 20));
            assert!(largest < 5e-6, "{several}: {largest}");
            let [one, several] = [&one, &several].map(|name| home.run_dir(name));
            for metric in ["samples", "tokens", "lr"] {
                assert_eq!(curve(&one, metric), curve(&several, metric), "{metric}");
            }
            for metric in [
                "loss/train",
                "loss/eval",
                "perplexity",
                "token_accuracy",
                "bits_per_byte",
            ] {
                let (one, several) = (curve(&one, metric), curve(&several, metric));
                assert!(!one.is_empty() && one.len() == several.len(), "{metric}");
                for ((step, a), (other, b)) in one.into_iter().zip(several) {
                    assert_eq!(step, other, "{metric}");
                    let (a, b) = (f64::from_bits(a), f64::from_bits(b));
                    assert!(
                        (a - b).abs() <= 1e-5 * a.abs(),
                        "{metric} at step {step}: {a} and {b}"
                    );
                }
            }
            let sizes = curve(&several, "rank/world_size");
            assert_eq!(sizes, [(0, (size as f64).to_bits())]);
            assert_eq!(
                curve(&several, "rank/global_batch"),
                [(0, 24_f64.to_bits())]
            );
        }
    }
}

/// The arguments of a run that a killed rank interrupts, and that is then repeated.
const REPEATED: [&str; 15] = [
    "--resume",
    "auto",
    "--max-train-steps",
    "300",
    "--save-checkpoint-steps",
    "20",
    "--lr-scheduler-type",
    "constant_with_warmup",
    "--gradient-accumulation-steps",
    "2",
    "--rank-start-secs",
    "20",
    "--plugin",
    "perplexity:mode=process",
    "--json",
];

/// Asserts that a rank ended with code 1 and an error, and returns the error.
#[track_caller]
fn error_of(output: &Output) -> String {
    let (error, hint) = output.failed_with(1);
    assert!(!hint.is_empty(), "{output}");
    error.to_owned()
}

#[test]
fn when_a_rank_is_killed_all_end_and_the_repeated_command_resumes_exactly() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    write_model(&home, true);
    let args = [&REPEATED[..], &["--model", "config.json"]].concat();
    for size in [2, 3] {
        let undisturbed = format!("undisturbed-{size}");
        train(&home, size, &undisturbed, &args);
        let whole = home.checkpoint(&undisturbed, 300).join("manifest.json");
        let whole = fs::read_to_string(whole).expect("a manifest");
        for victim in 0..size {
            let name = format!("killed-{size}-{victim}");
            let mut ranks = start(&home, size, &name, &args);
            let at = 40;
            ranks[0].event(|event| event["kind"] == "checkpoint_written" && event["step"] == at);
            ranks[victim].kill();
            let begin = Instant::now();
            let killed = ranks.remove(victim);
            let errors: Vec<String> = ranks
                .into_iter()
                .map(|rank| error_of(&rank.output()))
                .collect();
            let took = begin.elapsed();
            assert!(took < Duration::from_secs(30), "{took:?}");
            let named = match victim {
                0 => "and with it rank 0 (".to_owned(),
                _ => format!("rank {victim} ("),
            };
            assert!(errors[0].contains(&named), "{errors:?}");
            assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
            drop(killed);
            home.wait_for_no_child();

            let resumed = train(&home, size, &name, &args);
            assert!(resumed.stderr.contains("resuming from step "), "{resumed}");
            let again = home.checkpoint(&name, 300).join("manifest.json");
            assert_eq!(
                fs::read_to_string(again).expect("a manifest"),
                whole,
                "{name}"
            );
            // The run is complete, so the repeated command does nothing.
            let complete = train(&home, size, &name, &args);
            assert!(
                complete.stderr.contains("the run is complete"),
                "{complete}"
            );
        }
    }
}

/// Whenever a rank is killed, the others end soon, and the repeated command completes the run.
#[test]
fn a_rank_can_be_killed_at_any_moment() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    let more = [
        "--resume",
        "auto",
        "--max-train-steps",
        "60",
        "--save-checkpoint-steps",
        "5",
        "--rank-timeout-secs",
        "5",
        "--rank-start-secs",
        "4",
        "--lr-scheduler-type",
        "constant_with_warmup",
    ];
    let begin = Instant::now();
    train(&home, 2, "undisturbed", &more);
    let usual = begin.elapsed();
    let file = |name: &str| {
        let manifest = home.checkpoint(name, 60).join("manifest.json");
        fs::read_to_string(manifest).expect("a manifest")
    };
    for victim in [0, 1] {
        for moment in 0..10 {
            let name = format!("killed-{victim}-{moment}");
            let mut ranks = start(&home, 2, &name, &more);
            thread::sleep(usual * moment / 10);
            ranks[victim].kill();
            let begin = Instant::now();
            let killed = ranks.remove(victim);
            let survivor = ranks.remove(0).output();
            assert!(
                begin.elapsed() < Duration::from_secs(40),
                "{:?}: {survivor}",
                begin.elapsed()
            );
            // The victim can have ended before it was killed.
            if !killed.output().is_success() {
                assert!(!survivor.is_success(), "{survivor}");
            }
            train(&home, 2, &name, &more);
            assert_eq!(file(&name), file("undisturbed"), "{name}");
        }
    }
}

#[test]
fn a_stopped_rank_is_named_after_the_time_limit() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    for victim in [0, 1] {
        let name = format!("stopped-{victim}");
        let more = [
            "--max-train-steps",
            "1000000",
            "--rank-timeout-secs",
            "5",
            "--json",
        ];
        let mut ranks = start(&home, 3, &name, &more);
        ranks[0].event(|event| event["kind"] == "checkpoint_written");
        ranks[victim].signal(Signal::STOP);
        let begin = Instant::now();
        let stopped = ranks.remove(victim);
        let errors: Vec<String> = ranks
            .into_iter()
            .map(|rank| error_of(&rank.output()))
            .collect();
        let took = begin.elapsed();
        assert!(
            took >= Duration::from_secs(4) && took < Duration::from_secs(30),
            "{took:?}"
        );
        // A stopped lead also stops the store, which it serves.
        let named = match victim {
            0 => "on the machine of rank 0",
            _ => "rank 1 (",
        };
        assert!(
            errors.iter().all(|error| error.contains(named)),
            "{errors:?}"
        );
        drop(stopped);
    }
}

/// Starts ranks with different arguments. Asserts that all end with the same error, which contains `part`, and that
/// there is no run folder.
#[track_caller]
fn assert_refused(home: &Home, ranks: &[(usize, usize, &[&str])], code: i32, part: &str) {
    let port = free_port();
    let begin = Instant::now();
    let started: Vec<Process> = ranks
        .iter()
        .map(|(rank, size, more)| {
            let args = [&["run", "tiny.toml", "--name", "refused"], *more].concat();
            start_rank(home, (*rank, *size), port, &args)
        })
        .collect();
    let outputs: Vec<Output> = started.into_iter().map(Process::output).collect();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    let errors: Vec<&str> = outputs
        .iter()
        .map(|output| output.failed_with(code).0)
        .collect();
    for (error, output) in errors.iter().zip(&outputs) {
        assert!(error.contains(part), "{output}");
        assert_eq!(*error, errors[0]);
    }
    assert!(!home.run_dir("refused").exists());
}

#[test]
fn ranks_that_differ_are_refused_before_the_run_exists() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    let plain: &[&str] = &[];
    let rate: &[&str] = &["--learning-rate", "0.5"];
    let part = "learning_rate differs between ranks: 0.5 on rank 2";
    assert_refused(
        &home,
        &[(0, 3, plain), (1, 3, plain), (2, 3, rate)],
        2,
        part,
    );

    let other: &[&str] = &["--data", "other"];
    fs::create_dir(home.path("other")).expect("made");
    for file in ["a.rs", "b.rs"] {
        fs::write(home.path("other").join(file), "fn main() {}\n".repeat(200)).expect("written");
    }
    let part = "data differs between ranks: ";
    assert_refused(&home, &[(0, 2, plain), (1, 2, other)], 2, part);

    let nowhere: &[&str] = &["--data", "nowhere"];
    let ranks = [(0, 2, plain), (1, 2, nowhere)];
    let port = free_port();
    let started = ranks.map(|(rank, size, more)| {
        let args = [&["run", "tiny.toml", "--name", "refused"], more].concat();
        start_rank(&home, (rank, size), port, &args)
    });
    let [lead, follower] = started.map(Process::output);
    let (own, _) = follower.failed_with(2);
    let told = error_of(&lead);
    assert!(
        told.starts_with("rank 1 (") && told.ends_with(&format!("failed: {own}")),
        "{told}"
    );

    let metric = Fixture::metric("probe").build(&home.path(""));
    let metric = metric.to_str().expect("UTF-8");
    let more: &[&str] = &["--plugin", metric];
    let part = "plugin probe differs between ranks: version 1.0.0";
    let part = part.split(" version").next().expect("a part");
    assert_refused(&home, &[(0, 2, plain), (1, 2, more)], 2, part);

    let soon: &[&str] = &["--rank-start-secs", "2"];
    let part = "not all ranks started within 2 s: rank 2 of 3 missing";
    assert_refused(&home, &[(0, 3, soon), (1, 3, soon)], 2, part);
    let part = "rank 1 was started twice: ";
    assert_refused(
        &home,
        &[(0, 3, plain), (1, 3, plain), (1, 3, plain)],
        2,
        part,
    );

    // Both serve the store, so one of them finds its port in use.
    let port = free_port();
    let args = ["run", "tiny.toml", "--name", "refused"];
    let leads = [(); 2].map(|()| start_rank(&home, (0, 2), port, &args));
    let mut errors = leads.map(|lead| lead.output().failed_with(2).0.to_owned());
    errors.sort_unstable();
    assert!(
        errors[0].starts_with("rank 0 was started twice: "),
        "{errors:?}"
    );
    assert!(
        errors[1].ends_with(&format!("{port}: the port is in use")),
        "{errors:?}"
    );
}

#[test]
fn a_wrong_environment_is_refused() {
    let home = Home::new();
    for (env, part) in [
        (
            &[("WORLD_SIZE", "4")][..],
            "WORLD_SIZE is set, but RANK is not",
        ),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2")],
            "WORLD_SIZE is set, but MASTER_ADDR is not",
        ),
        (
            &[("RANK", "one"), ("WORLD_SIZE", "2")],
            "RANK is not a valid number: one",
        ),
    ] {
        let output = home.host_with(env, &["run", "tiny.toml"]);
        let (error, hint) = output.failed_with(2);
        assert_eq!(error, part);
        assert!(hint.contains("unset"), "{hint}");
    }
    assert!(!home.path("runs").exists());
    let none = home.host(&["run", "tiny.toml", "--nproc", "0"]);
    assert_eq!(none.failed_with(2).0, "nproc is 0, but must be at least 1");
    let unnamed = home.host(&["run", "tiny.toml", "--resume", "auto"]);
    assert!(
        unnamed
            .failed_with(2)
            .0
            .starts_with("--resume auto needs a name"),
        "{unnamed}"
    );
}

/// The port of the store belongs to a run that trains. The run is not disturbed.
#[test]
fn a_port_in_use_is_an_error_for_all_ranks() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    let port = free_port();
    let first = [
        "run",
        "tiny.toml",
        "--name",
        "first",
        "--max-train-steps",
        "1000000",
        "--json",
    ];
    let first = [0, 1].map(|rank| start_rank(&home, (rank, 2), port, &first));
    first[0].event(|event| event["step"] == 5);
    let second = ["run", "tiny.toml", "--name", "second"];
    let second = [0, 1].map(|rank| start_rank(&home, (rank, 2), port, &second));
    for rank in second.map(Process::output) {
        let (error, hint) = rank.failed_with(2);
        assert!(
            error.ends_with(&format!("{port}: the port is in use")),
            "{error}"
        );
        assert!(hint.contains("MASTER_PORT"), "{hint}");
    }
    first[0].terminate();
    for rank in first {
        drop(rank.output().ended_with(143));
    }
}

/// A run continues on other numbers of ranks with the next sequences. The result is that of one process.
/// Another program has the port, and does not answer.
#[test]
fn a_port_of_another_program_is_an_error() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let args = ["run", "tiny.toml", "--rank-start-secs", "3"];
    let [lead, other] = [0, 1].map(|rank| start_rank(&home, (rank, 2), port, &args));
    let output = lead.output();
    let (error, _) = output.failed_with(2);
    assert!(error.ends_with("the port is in use"), "{error}");
    let output = other.output();
    let (error, _) = output.failed_with(2);
    assert!(error.contains("no reply of a store within 3 s"), "{error}");
}

#[test]
fn a_run_resumes_on_another_number_of_ranks() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    write_model(&home, true);
    let common = [
        "--resume",
        "auto",
        "--model",
        "config.json",
        "--train-batch-size",
        "2",
        "--lr-scheduler-type",
        "constant_with_warmup",
        "--learning-rate",
        "1e-3",
        "--save-checkpoint-steps",
        "10",
    ];
    let run = |size: usize, name: &str, accumulation: &str, last: &str| {
        let more = [
            "--gradient-accumulation-steps",
            accumulation,
            "--max-train-steps",
            last,
        ];
        train(&home, size, name, &[&common[..], &more].concat())
    };
    run(1, "whole", "4", "30");
    run(4, "changing", "1", "10");
    let two = run(2, "changing", "1", "20");
    assert!(
        two.stderr.contains("gradient_accumulation_steps is 2 instead of 1, so that a step still has 8 sequences on 2 ranks"),
        "{two}"
    );
    let args = [
        &common[..],
        &[
            "--gradient-accumulation-steps",
            "1",
            "--max-train-steps",
            "30",
        ],
    ]
    .concat();
    let port = free_port();
    let args3 = [&["run", "tiny.toml", "--name", "changing"], &args[..]].concat();
    let three: Vec<Process> = (0..3)
        .map(|rank| start_rank(&home, (rank, 3), port, &args3))
        .collect();
    for (rank, process) in three.into_iter().enumerate() {
        let output = process.output();
        let (error, hint) = output.failed_with(if rank == 0 { 2 } else { 1 });
        assert!(
            error.contains(
                "a step of this run has 8 sequences, which 3 ranks with batches of 2 cannot divide"
            ),
            "{error}"
        );
        assert!(hint.contains("1, 2, 4"), "{hint}");
    }
    // A process that no launcher started.
    let alone = home.start_training("changing", &args).output().succeeded();
    assert!(
        alone
            .stderr
            .contains("gradient_accumulation_steps is 4 instead of 1"),
        "{alone}"
    );

    let largest = difference(
        &home.checkpoint("whole", 30),
        &home.checkpoint("changing", 30),
    );
    assert!(largest < 1e-5, "{largest}");
    let [whole, changing] = ["whole", "changing"].map(|name| home.run_dir(name));
    for metric in ["samples", "tokens", "lr"] {
        assert_eq!(curve(&whole, metric), curve(&changing, metric), "{metric}");
    }
    let [whole, changing] = ["whole", "changing"].map(|name| {
        let state = home.checkpoint(name, 30).join("trainer/state.json");
        let state: Value =
            serde_json::from_slice(&fs::read(state).expect("a state")).expect("JSON");
        (state["data"].clone(), state["global_batch"].clone())
    });
    assert_eq!(whole, changing);
}

#[test]
fn a_signal_to_any_rank_ends_all_after_one_checkpoint() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    let more = [
        "--max-train-steps",
        "1000000",
        "--save-checkpoint-steps",
        "0",
        "--json",
    ];
    for (target, code) in [(0, 143), (1, 143)] {
        let name = format!("ended-{target}");
        let ranks = start(&home, 2, &name, &more);
        ranks[0].event(|event| event["step"] == 5);
        ranks[target].terminate();
        for rank in ranks {
            drop(rank.output().ended_with(code));
        }
        let steps = home.checkpoints(&name);
        assert_eq!(steps.len(), 1, "{steps:?}");
    }
}

#[test]
fn nproc_starts_the_ranks_and_passes_signals_on() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    let run = home.train("started", &["--nproc", "2"]).succeeded();
    assert!(
        run.stderr
            .contains("2 ranks on 1 machine; 8 sequences per step"),
        "{run}"
    );
    assert_eq!(home.checkpoints("started"), [5, 10, 15, 20]);

    let more = [
        "--nproc",
        "2",
        "--max-train-steps",
        "1000000",
        "--save-checkpoint-steps",
        "0",
    ];
    let run = home.start_training("interrupted", &[&more[..], &["--json"]].concat());
    run.event(|event| event["step"] == 5);
    run.interrupt();
    drop(run.output().ended_with(130));
    assert_eq!(home.checkpoints("interrupted").len(), 1);

    // The exit code is that of the ranks' own error.
    let refused = home
        .train("refused", &["--nproc", "2", "--data", "nowhere"])
        .ended_with(2);
    assert!(refused.stderr.contains("error: "), "{refused}");
}

/// A pause of the lead can be longer than the time limit of the ranks.
#[test]
fn a_pause_has_no_time_limit() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    let more = [
        "--max-train-steps",
        "1000000",
        "--rank-timeout-secs",
        "5",
        "--json",
    ];
    let ranks = start(&home, 2, "paused", &more);
    ranks[0].event(|event| event["step"] == 5);
    home.host(&["control", "paused", "pause"]).succeeded();
    thread::sleep(Duration::from_secs(8));
    home.host(&["control", "paused", "continue"]).succeeded();
    home.host(&["control", "paused", "checkpoint"]).succeeded();
    home.host(&["control", "paused", "stop"]).succeeded();
    for rank in ranks {
        rank.output().succeeded();
    }
    let events = events_of(&home.run_dir("paused"));
    assert!(
        events
            .iter()
            .any(|event| format!("{event:?}").contains("Pause")),
        "{events:?}"
    );
}

/// Observers run on the lead, and clients connect to it. What they request, all ranks do.
#[test]
fn all_ranks_follow_the_requests_of_observers_and_clients() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    // The loss is sometimes not finite, and the observer restores the last checkpoint.
    let poisoned = poisoned();
    let guard = "loss-guard:action=roll_back,max_roll_backs=1000";
    for period in ["3", "1"] {
        let name = format!("guarded-{period}");
        let more = [
            "--model",
            "model",
            "--on-nonfinite",
            "skip",
            "--lr-scheduler-type",
            "constant",
            "--save-checkpoint-steps",
            period,
            "--plugin",
            guard,
        ];
        train(&poisoned, 2, &name, &more);
        let events = format!("{:?}", events_of(&poisoned.run_dir(&name)));
        assert!(
            events.contains("RollBack") && events.contains("Superseded"),
            "{events}"
        );
        assert_eq!(poisoned.checkpoints(&name).last(), Some(&20));
    }

    let more = ["--max-train-steps", "1000000", "--json"];
    let ranks = start(&home, 2, "controlled", &more);
    ranks[0].event(|event| event["step"] == 5);
    for request in [
        &["set-lr", "0.5"][..],
        &["evaluate"],
        &["checkpoint"],
        &["stop"],
    ] {
        home.host(&[&["control", "controlled"], request].concat())
            .succeeded();
    }
    for rank in ranks {
        rank.output().succeeded();
    }
    // The factor is part of the checkpoint, so all ranks have it after a resume.
    let last = home.checkpoints("controlled").pop().expect("a checkpoint") + 6;
    let last = last.to_string();
    train(
        &home,
        2,
        "controlled",
        &["--resume", "auto", "--max-train-steps", &last],
    );
}

/// A metric that fails on one rank has no value anywhere. The lead applies its policy.
#[test]
fn a_metric_that_fails_on_one_rank_has_no_value() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    let metric = Fixture::metric("partial").build(&home.path(""));
    let run = |name: &str, failing: &str, policy: &str| -> Vec<Output> {
        let plugin = format!("{}:on_error={policy}", metric.display());
        let args = ["run", "tiny.toml", "--name", name, "--plugin", &plugin];
        let port = free_port().to_string();
        let start = |rank: &str| {
            let env = [
                ("RANK", rank),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", &port),
                ("FAIL_ON_RANK", failing),
            ];
            home.start_with(&env, &args)
        };
        let ranks = ["0", "1"].map(start);
        ranks.into_iter().map(Process::output).collect()
    };
    for output in run("sound", "none", "warn") {
        drop(output.succeeded());
    }
    assert_eq!(curve(&home.run_dir("sound"), "loss/mean").len(), 4);
    for failing in ["0", "1"] {
        let name = format!("failing-{failing}");
        for output in run(&name, failing, "disable_after=2") {
            drop(output.succeeded());
        }
        let folder = home.run_dir(&name);
        assert_eq!(curve(&folder, "loss/eval").len(), 4);
        let events = format!("{:?}", events_of(&folder));
        assert!(!events.contains("loss/mean"), "{events}");
        let whom = if failing == "1" { ", on rank 1 (" } else { "" };
        let fault = format!("update fails on this rank{whom}");
        assert_eq!(events.matches(&fault).count(), 2, "{events}");
        assert!(events.contains("it failed 2 times in a row"), "{events}");
    }
    let [lead, follower] = &run("ended", "1", "fail")[..] else {
        panic!("two ranks");
    };
    let (error, _) = lead.failed_with(3);
    assert!(
        error.contains("update fails on this rank, on rank 1 ("),
        "{error}"
    );
    assert!(
        error_of(follower).starts_with("rank 0 ended the run"),
        "{follower}"
    );
    assert_eq!(home.checkpoints("ended"), [5]);
}

/// Runs the Slurm script with programs in place of `srun` and `scontrol`. `srun` gives the ranks Slurm's variables.
#[test]
fn the_slurm_script_resumes_after_the_time_limit() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    let config = fs::read_to_string(home.path("tiny.toml")).expect("a configuration");
    let config = config.replace("max_train_steps = 20", "max_train_steps = 400");
    fs::write(home.path("train.toml"), config).expect("written");
    let bin = home.path("bin");
    fs::create_dir(&bin).expect("made");
    let write = |name: &str, script: &str| {
        fs::write(bin.join(name), script).expect("written");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(bin.join(name), mode).expect("set");
    };
    write(
        "srun",
        r#"#!/usr/bin/env bash
export SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost
shift
for rank in 0 1; do
	SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
	ranks[rank]=$!
done
trap 'kill -USR1 "${ranks[@]}"' USR1
code=0
for rank in 0 1; do
	while kill -0 "${ranks[rank]}" 2>/dev/null; do wait "${ranks[rank]}"; last=$?; done
	[ "$last" -le "$code" ] || code=$last
done
exit "$code"
"#,
    );
    write("scontrol", "#!/bin/sh\necho \"$@\" > requeued\n");
    let script = root().join("examples/cluster/slurm.sh");
    let path = format!(
        "{}:{}:{}",
        bin.display(),
        built("host").parent().expect("a folder").display(),
        std::env::var("PATH").expect("a path")
    );
    let job = (u32::from(free_port()) + 20_000).to_string();
    let start = || {
        let mut bash = std::process::Command::new("bash");
        bash.arg(&script)
            .current_dir(home.path(""))
            .env_clear()
            .env("HOME", home.path(""));
        Process::start(bash.env("PATH", &path).env("SLURM_JOB_ID", &job))
    };
    let run = format!("job-{job}");
    let first = start();
    let begin = Instant::now();
    while !home.checkpoint(&run, 50).exists() {
        assert!(begin.elapsed() < Duration::from_secs(100), "no checkpoint");
        thread::sleep(Duration::from_millis(10));
    }
    // Slurm signals the processes of the step, which here are children of `srun`.
    let srun = child_of(first.id(), "srun");
    kill_process(srun, Signal::USR1).expect("it runs");
    drop(first.output().ended_with(0));
    let requeued = fs::read_to_string(home.path("requeued")).expect("requeued");
    assert_eq!(requeued, format!("requeue {job}\n"));
    let second = start().output().succeeded();
    assert!(second.stderr.contains("resuming from step "), "{second}");
    assert_eq!(home.checkpoints(&run).last(), Some(&400));
}

/// Returns the child of a process with this program.
fn child_of(parent: u32, program: &str) -> Pid {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.expect("the process runs");
    let is_it = |pid: &&str| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.contains(program)
    };
    let found = children.split_whitespace().find(is_it).expect("a child");
    Pid::from_raw(found.parse().expect("a number")).expect("not 0")
}

/// Runs the command of the Kubernetes manifest, with its environment, as each of its pods.
#[test]
fn the_command_of_the_kubernetes_manifest_trains() {
    if !is_on_cpu() {
        return;
    }
    let home = Home::new();
    fs::copy(home.path("tiny.toml"), home.path("train.toml")).expect("copied");
    let manifest = root().join("examples/cluster/kubernetes.yaml");
    let manifest = fs::read_to_string(manifest).expect("a manifest");
    let value = |line: &str| {
        let (_, value) = line.split_once(": ").expect("a value");
        value.trim_matches('"').to_owned()
    };
    let (_, env) = manifest.split_once(" env:\n").expect("an environment");
    let (env, _) = env.split_once("volumeMounts").expect("an end");
    let lines: Vec<&str> = env.lines().filter(|line| line.contains(": ")).collect();
    let port = free_port().to_string();
    let env: Vec<(String, String)> = lines
        .chunks(2)
        .map(|pair| {
            let (name, given) = (value(pair[0]), value(pair[1]));
            let here = match name.as_str() {
                // The name and the port exist only in the cluster.
                "MASTER_ADDR" => "127.0.0.1".to_owned(),
                "MASTER_PORT" => port.clone(),
                _ => given,
            };
            (name, here)
        })
        .collect();
    assert_eq!(env.len(), 3, "{env:?}");
    let command = manifest
        .lines()
        .find(|line| line.contains("command: "))
        .expect("a command");
    let (_, list) = command.split_once("command: ").expect("a list");
    let words: Vec<String> = serde_json::from_str(list).expect("a list");
    let path = format!(
        "{}:{}",
        built("host").parent().expect("a folder").display(),
        std::env::var("PATH").expect("a path")
    );
    let pods: Vec<Process> = (0..2)
        .map(|index: usize| {
            let mut pod = std::process::Command::new(&words[0]);
            pod.args(&words[1..])
                .current_dir(home.path(""))
                .env_clear()
                .env("HOME", home.path(""))
                .env("PATH", &path)
                .envs(env.iter().map(|(name, value)| (name, value)))
                .env("JOB_COMPLETION_INDEX", index.to_string());
            Process::start(&mut pod)
        })
        .collect();
    for pod in pods {
        drop(pod.output().succeeded());
    }
    assert_eq!(home.checkpoints("train").last(), Some(&20));
}
