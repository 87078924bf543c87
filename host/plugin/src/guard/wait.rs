//! A call that takes long is told of: whoever waits for it learns for what.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::under_way::{self, Call};
use crate::log::{self, Level, LogRecord};

/// How often the calls under way are looked at.
const PERIOD: Duration = Duration::from_millis(250);
/// A wait that is not told of.
const SHORT: Duration = Duration::from_secs(2);
/// How much longer a wait is when it is told of again.
const GROWTH: u32 = 5;
/// What is waited for by nobody but the sink's own worker, or is told of elsewhere.
const UNTOLD: [&str; 4] = ["publish", "preflight", "fetch", "cancel"];

/// A call that was seen under way.
#[derive(Clone, Copy, Debug)]
struct Wait {
    turn: u64,
    since: Instant,
    /// How long it must have taken to be told of next.
    told_at: Duration,
}

/// Begins to look, on a thread that lives as long as the process.
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
    // Without the thread nothing is told of, and all else is as ever.
    let _ = std::thread::Builder::new()
        .name("plugin calls".to_owned())
        .spawn(look);
}

/// The calls that are to be told of now, and how long they have taken.
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
        Some(limit) => format!("of the {} s that it has", limit.as_secs_f64()),
        None => "so far".to_owned(),
    };
    let message = format!(
        "the host waits for its {}, {} s {end}",
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
    fn a_long_call_is_told_of_now_and_then_and_a_short_one_never() {
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
            // The second thread makes one call after the other, the third delivers.
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
