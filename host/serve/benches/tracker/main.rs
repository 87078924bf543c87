//! Benchmarks of the tracker. They measure the cost of a log call for the training loop, the store's write
//! rate, and the response times with a million points and with a thousand runs. They also measure the cost
//! and latency of a hundred watchers that read, and the cost of a hundred watchers that never read.
//!
//! The watchers, and the service that serves a folder of runs, are separate processes. They execute this
//! program, too.
//!
//! `cargo bench -p host-serve --bench tracker -- [--json FILE] [PART…]`, where the parts are log, load,
//! history, list and watchers.
#![forbid(unsafe_code)]

mod history;
mod list;
mod log;
mod watchers;

use std::path::Path;
use std::time::Duration;

use host_core::{Draft, EventBody, MetricValue, Step};
use host_store::{RunRecord, Writer};
use serde_json::{Map, Value};

type Part = fn() -> Value;
const PARTS: [(&str, Part); 5] = [
    ("log", log::call),
    ("load", log::load),
    ("history", history::measure),
    ("list", list::measure),
    ("watchers", watchers::measure),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [watchers::WATCH, addr, count] => return watchers::watch(addr, count),
        [watchers::SERVE, runs_dir] => return watchers::serve(Path::new(runs_dir)),
        [watchers::SLEEP, addr, count] => return watchers::sleep(addr, count),
        [watchers::HOLD, count] => return watchers::hold(count),
        _ => {}
    }
    let file = words.iter().position(|word| *word == "--json");
    let file = file.and_then(|at| words.get(at + 1));
    let asked = |part: &str| words.contains(&part);
    let all = !PARTS.iter().any(|(part, _)| asked(part));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load {}", load.split(' ').next().unwrap_or_default());
    let mut report = Map::new();
    for (part, measure) in PARTS {
        if all || asked(part) {
            report.insert(part.to_owned(), measure());
        }
    }
    if let Some(file) = file {
        let report = format!("{:#}\n", Value::Object(report));
        std::fs::write(file, report).expect("the report");
    }
}

/// Creates an empty run.
fn new_run(dir: &Path) -> Writer {
    let record = RunRecord {
        name: "bench".to_owned(),
        created_us: 1_700_000_000_000_000,
        config_json: r#"{"learning_rate":0.0005,"model":"demo","seed":1,"seq_length":256}"#
            .to_owned(),
    };
    Writer::create(dir, &record).expect("a run")
}

/// Creates the four values of a step.
fn four_values(step: u64) -> EventBody {
    let names = ["loss/train", "lr", "samples", "steps"];
    let value = |name| MetricValue::new(name, 3.0 + (step % 1000) as f64 / 7.0);
    EventBody::Metrics {
        values: names.map(value).to_vec(),
    }
}

fn draft(step: u64, body: EventBody) -> Draft {
    let time_us = 1_700_000_000_000_000 + i64::try_from(step).expect("small") * 50_000;
    let step = Step(step);
    Draft {
        time_us,
        step,
        body,
    }
}

/// Sorts the values and returns a percentile. `share` is the percentile as a fraction.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values[at.clamp(1, values.len()) - 1]
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
