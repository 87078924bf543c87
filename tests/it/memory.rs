//! The memory that a run uses.

use std::fs;

use serde_json::json;

use crate::support::{Home, Output, Process, curve};

/// With this shape, the values that the blocks keep for the backward pass take most of the memory.
#[test]
fn gradient_checkpointing_takes_less_memory() {
    let home = Home::new();
    let shape = json!({
        "model_type": "gpt2", "n_layer": 8, "n_embd": 256, "n_head": 4, "n_positions": 512,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    });
    fs::write(home.path("deep.json"), shape.to_string()).expect("written");
    let [kept, computed_again] = ["false", "true"].map(|checkpointing| {
        let name = format!("checkpointing-{checkpointing}");
        home.train(
            &name,
            &[
                ["--model", "deep.json"],
                ["--seq-length", "512"],
                ["--train-batch-size", "8"],
                ["--valid-batch-size", "1"],
                ["--max-eval-steps", "1"],
                ["--max-train-steps", "1"],
                ["--threads", "2"],
                ["--gradient-checkpointing", checkpointing],
            ]
            .concat(),
        )
        .succeeded();
        let peak = curve(&home.run_dir(&name), "peak_memory_bytes");
        f64::from_bits(peak.last().expect("a peak").1)
    });
    // For each of the 512 * 8 tokens, a block keeps about 17 vectors of width 256. This is 70 MB per block.
    // With gradient checkpointing, a block keeps only one vector for each token.
    let saved = (kept - computed_again) / 1e6;
    assert!(saved > 150.0, "{saved:.0} MB less than {kept}");
}

/// Returns the number of bytes that a run needs by its own estimate. The run prints the estimate as text:
/// "needs about 1.2 GB of 24.0 GB of memory".
fn estimated(output: &Output) -> f64 {
    let (_, after) = output
        .stderr
        .split_once("needs about ")
        .expect("an estimate");
    let mut words = after.split(' ');
    let number: f64 = words.next().expect("a number").parse().expect("a number");
    match words.next() {
        Some("GB") => number * 1e9,
        Some("MB") => number * 1e6,
        unit => panic!("a unit of memory: {unit:?}"),
    }
}

/// The larger presets are measured for the documentation but not tested: they take gigabytes and minutes.
#[test]
fn the_estimate_is_close_to_what_a_training_uses() {
    let home = Home::new();
    for (model, length, batch) in [
        ("tiny", "128", "4"),
        ("demo", "256", "4"),
        ("demo", "256", "16"),
    ] {
        for checkpointing in ["false", "true"] {
            let name = format!("{model}-{batch}-{checkpointing}");
            let output = home
                .train(
                    &name,
                    &[
                        ["--model", model],
                        ["--seq-length", length],
                        ["--train-batch-size", batch],
                        ["--max-train-steps", "2"],
                        ["--gradient-accumulation-steps", "2"],
                        ["--threads", "2"],
                        ["--gradient-checkpointing", checkpointing],
                    ]
                    .concat(),
                )
                .succeeded();
            let peak = curve(&home.run_dir(&name), "peak_memory_bytes");
            let ratio = estimated(&output) / f64::from_bits(peak.last().expect("a peak").1);
            assert!((0.85..1.15).contains(&ratio), "{name}: {ratio:.3}");
        }
    }
}

/// The address space is limited, so that the largest preset does not fit on any machine.
#[test]
fn a_training_that_cannot_fit_is_rejected_before_a_run_is_created() {
    let home = Home::new();
    let host = home.command(&[
        "run",
        "tiny.toml",
        "--name",
        "large",
        "--model",
        "codeparrot",
        "--gradient-checkpointing",
    ]);
    let mut limited = std::process::Command::new("sh");
    limited
        .args(["-c", "ulimit -v 20000000 && exec \"$@\"", "sh"])
        .arg(host.get_program())
        .args(host.get_args())
        .current_dir(home.path(""))
        .env_clear();
    for (name, value) in host.get_envs() {
        limited.env(name, value.unwrap_or_default());
    }
    let output = Process::start(&mut limited).output();
    let (error, hint) = output.failed_with(2);
    assert!(error.contains("the training needs about "), "{error}");
    assert!(
        error.contains(" are free (limited by ulimit -v)"),
        "{error}"
    );
    assert!(hint.contains("use --model "), "{hint}");
    assert!(!home.path("runs").exists() || !home.run_dir("large").exists());
}
