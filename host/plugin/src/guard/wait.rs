//! Reports calls that take long, so that the user can see why the host is waiting.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::under_way::{self, Call};
use crate::log::{self, Level, LogRecord};

/// How often the running calls are checked.
const PERIOD: Duration = Duration::from_millis(250);
/// Shorter waits are not reported.
const SHORT: Duration = Duration::from_secs(2);
/// A wait is reported again when it has grown by this factor.
const GROWTH: u32 = 5;
/// Calls that are not reported here. For some of them, only the sink's worker waits. The others are reported
/// elsewhere.
const UNTOLD: [&str; 4] = ["publish", "preflight", "fetch", "cancel"];

/// A call that was still running at the last check.
#[derive(Clone, Copy, Debug)]
struct Wait {
    turn: u64,
    since: Instant,
    /// The next report is due when the call has lasted this long.
    told_at: Duration,
}

/// Starts the checks on a thread that lives as long as the process.
pub(super) fn watch() {
    let look = || {
        let mut waits = HashMap::new();
        loop {
            sleep(PERIOD);
            for (call, waited) in long(&mut waits, under_way::everywhere(), Instant::now()) {
                tell(&call, waited);
            }
        }
    };
    // If the thread cannot be started, long calls are not reported. Nothing else depends on this thread.
    let _ = std::thread::Builder::new()
        .name("plugin calls".to_owned())
        .spawn(look);
}

/// Returns the calls to report now, with their durations.
fn long(
    waits: &mut HashMap<usize, Wait>,
    calls: Vec<(usize, Call)>,
    now: Instant,
) -> Vec<(Call, Duration)> {
    waits.retain(|place, wait| {
        let mut calls = calls.iter();
        calls.any(|(number, call)| number == place && call.turn == wait.turn)
    });
    let mut long = Vec::new();
    for (place, call) in calls {
        let wait = waits.entry(place).or_insert(Wait {
            turn: call.turn,
            since: now,
            told_at: SHORT,
        });
        let waited = now.duration_since(wait.since);
        if waited >= wait.told_at && !UNTOLD.contains(&call.name) {
            wait.told_at = waited * GROWTH;
            long.push((call, waited));
        }
    }
    long
}

fn tell(call: &Call, waited: Duration) {
    let end = match call.limit {
        Some(limit) => format!("of at most {} s", limit.as_secs_f64()),
        None => "so far".to_owned(),
    };
    let message = format!(
        "the host is waiting for the plugin's {}: {} s {end}",
        call.name,
        waited.as_secs()
    );
    log::write(&LogRecord {
        level: Level::Warn,
        plugin: call.plugin,
        target: log::HOST,
        message: &message,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::name_of;

    #[test]
    fn only_long_calls_are_reported_at_growing_intervals() {
        let call = |turn, name| Call {
            turn,
            plugin: name_of("x"),
            name,
            is_remote: false,
            limit: None,
        };
        let mut waits = HashMap::new();
        let begin = Instant::now();
        let mut told = Vec::new();
        for tick in 0..240u32 {
            // The second thread makes many short calls, and the third thread delivers a checkpoint.
            let calls = vec![
                (0, call(1, "create")),
                (1, call(u64::from(tick) * 2 + 1, "update")),
                (2, call(1, "publish")),
            ];
            for (call, waited) in long(&mut waits, calls, begin + PERIOD * tick) {
                told.push((call.name, waited.as_secs()));
            }
        }
        assert_eq!(told, [("create", 2), ("create", 10), ("create", 50)]);
        assert!(long(&mut waits, Vec::new(), begin).is_empty());
        assert!(waits.is_empty());
    }
}
