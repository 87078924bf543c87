//! Follows the guide for plugin authors (`plugins/README.md`) and then the reference
//! (`plugins/reference.md`), step by step.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::block::blocks;
use super::reader::{self, Reader};
use crate::support::{Fixture, curve, root};

#[test]
fn following_the_guide_gives_the_results_that_it_shows() {
    let reader = Reader::new();
    for page in ["plugins/README.md", "plugins/reference.md"] {
        let text = fs::read_to_string(root().join(page)).expect("a page");
        reader.read(&blocks(page, &text));
    }

    // Compares the values of the guide's metric, which exists in Rust and in C, with expected values. To
    // compute these, the test uses a plugin that dumps its input.
    let dump = Fixture::dump("dump").build(&reader.folder());
    let written = reader.folder().join("dump");
    let mut host = reader.command("host");
    host.args(["run", "tiny.toml", "--name", "again", "--plugin"])
        .args([&dump])
        .args(["--plugin", "./repeat-rate/target/release/librepeat_rate.so"])
        .args(["--plugin", "./repeat-rate-c/librepeat_rate_c.so"])
        .env("DUMP", &written);
    reader::succeed(&mut host);
    let expected = repeat_rates(&written);
    assert_eq!(expected.len(), 4);
    assert!(expected.iter().all(|&(_, rate)| rate > 0.0 && rate < 1.0));

    let bits: Vec<(u64, u64)> = expected
        .iter()
        .map(|&(step, rate)| (step, rate.to_bits()))
        .collect();
    for (run, metric) in [
        ("again", "repeat_rate"),
        ("again", "repeat_rate_c"),
        // The runs that the guide itself starts. They train like the run above, so the values are the same.
        ("mine", "repeat_rate"),
        ("both", "repeat_rate"),
        ("both", "repeat_rate_c"),
    ] {
        let run_dir = reader.folder().join("runs").join(run);
        assert_eq!(curve(&run_dir, metric), bits, "{metric} of {run}");
    }
    let mut host = reader.command("host");
    let shown = reader::succeed(host.args(["runs", "show", "mine", "--json"]));
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let metrics = shown["metrics"].as_array().expect("metrics");
    let rate = metrics.iter().find(|m| m["name"] == "repeat_rate");
    assert_eq!(rate.expect("the guide's metric")["value"], expected[3].1);
}

/// Computes the guide's metric from the dump, as the guide's first sentence defines it. Returns a value for
/// each step.
fn repeat_rates(dump: &Path) -> Vec<(u64, f64)> {
    let mut rates: Vec<(u64, u64, u64)> = Vec::new();
    for line in fs::read_to_string(dump).expect("a dump").lines() {
        let parts: Vec<Vec<u64>> = line
            .split(';')
            .map(|part| {
                part.split_whitespace()
                    .map(|n| n.parse().expect("a number"))
                    .collect()
            })
            .collect();
        let [step, guesses, labels] = &parts[..] else {
            panic!("no row: {line}");
        };
        if rates.last().is_none_or(|last| last.0 != step[0]) {
            rates.push((step[0], 0, 0));
        }
        let (_, repeats, count) = rates.last_mut().expect("just pushed");
        let pairs = || guesses[1..].iter().zip(labels);
        *repeats += pairs().filter(|(guess, before)| guess == before).count() as u64;
        *count += pairs().count() as u64;
    }
    // Step 0 is the trial batch before the training, not an evaluation.
    rates.retain(|rate| rate.0 > 0);
    let rate = |(step, repeats, count): (u64, u64, u64)| (step, repeats as f64 / count as f64);
    rates.into_iter().map(rate).collect()
}
