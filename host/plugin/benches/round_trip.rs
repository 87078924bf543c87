//! Measures the cost of a call to a metric in a child process.
//!
//! The same library is loaded in two modes: in this process, and in a child process. Every round first calls
//! the metric in this process, and then the metric in the child process. Each call is timed separately, so
//! that percentiles can be computed. The clock is read twice for each call, which is fast compared with a
//! call into another process.
//!
//! `cargo bench -p host-plugin --bench round_trip -- [--json FILE] [--rounds N]`

mod fixture;

use std::time::Instant;

use host_core::{Dtype, MetricBatch, Need};
use host_plugin::{Mode, Plugin, PluginSpec, SearchPath, ServeCommand, serve};
use serde_json::json;

use self::fixture::{library, scalar};

/// Number of calls in a round, for each mode.
const CALLS: usize = 1_000;
const ROUNDS: usize = 50;
/// The argument that makes this program the child process.
const SERVE: &str = "--serve";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [.., mark, inherited] = &arguments[..]
        && mark == SERVE
    {
        return serve(inherited).expect("served");
    }
    let value_of = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).cloned()
    };
    let rounds = value_of("--rounds").map_or(ROUNDS, |n| n.parse().expect("--rounds N"));

    let (loss, tokens, bytes) = (2.5f64, 7i64, 31i64);
    let tensors = [
        (Need::LossSum, scalar(&loss, Dtype::F64)),
        (Need::TokenCount, scalar(&tokens, Dtype::I64)),
        (Need::ByteCount, scalar(&bytes, Dtype::I64)),
    ];
    let batch = MetricBatch {
        step: 1,
        tensors: &tensors,
    };
    let plugins = [Mode::InProcess, Mode::Process].map(load);
    let mut metrics = plugins.each_ref().map(|p| p.metric().expect("a metric"));
    let mut ns: [Vec<f64>; 2] = Default::default();
    // The first round is a warm-up.
    for round in 0..=rounds {
        for (metric, ns) in metrics.iter_mut().zip(&mut ns) {
            for _ in 0..CALLS {
                let begin = Instant::now();
                metric.update(batch).expect("updated");
                let took = begin.elapsed().as_secs_f64() * 1e9;
                if round > 0 {
                    ns.push(took);
                }
            }
        }
    }
    let computed = metrics
        .each_mut()
        .map(|metric| metric.compute().expect("computed"));
    assert_eq!(
        computed[0], computed[1],
        "the two modes counted differently"
    );
    report(ns, rounds, value_of("--json"));
}

fn report(ns: [Vec<f64>; 2], rounds: usize, file: Option<String>) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    println!("{rounds} rounds of {CALLS} updates with three scalars, load {load}; us per call");
    println!(
        "{:<42} {:>8} {:>8} {:>8} {:>8}",
        "", "min", "p50", "p99", "max"
    );
    let mut rows = serde_json::Map::new();
    for (name, mut ns) in ["in_process", "process"].into_iter().zip(ns) {
        ns.sort_by(f64::total_cmp);
        let us = |share: f64| ns[((ns.len() - 1) as f64 * share) as usize] / 1e3;
        let [least, p50, p99, most] = [0.0, 0.5, 0.99, 1.0].map(us);
        println!("{name:<42} {least:>8.2} {p50:>8.2} {p99:>8.2} {most:>8.2}");
        let row = json!({ "least_us": least, "p50_us": p50, "p99_us": p99, "most_us": most });
        rows.insert(name.to_owned(), row);
    }
    if let Some(file) = file {
        let text = json!({ "calls": CALLS, "rounds": rounds, "load": load, "modes": rows });
        std::fs::write(&file, format!("{text:#}\n")).expect("the file is written");
    }
}

fn load(mode: Mode) -> Plugin {
    let library = library();
    let spec: PluginSpec = library.to_str().expect("UTF-8").parse().expect("a path");
    let found = SearchPath::new([]).find(&spec.target).expect("the library");
    let child = ServeCommand::new("/proc/self/exe", [SERVE]);
    Plugin::load_isolated(&found, &spec.config, Some(mode), child).expect("loaded")
}
