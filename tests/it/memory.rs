//! The memory that a training takes.

use std::fs;

use serde_json::json;

use crate::support::{Home, curve};

/// A shape of which most of the memory is what the blocks keep for the backward pass.
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
    // Of 512 * 8 tokens a block keeps about 17 vectors of width 256, which is 70 MB, or one.
    let saved = (kept - computed_again) / 1e6;
    assert!(saved > 150.0, "{saved:.0} MB less than {kept}");
}
