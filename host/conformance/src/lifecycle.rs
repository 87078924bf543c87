//! Tests that instances are created and destroyed without leaks, and do not affect each other.

use std::time::{Duration, Instant};

use host_plugin_abi::HostEvent;

use crate::batch::{Form, Tokens};
use crate::groups::Request;
use crate::process::{settled, threads};
use crate::setup::Setup;
use crate::subject::{Subject, tolerate};
use crate::test::{Stop, Test, Topic, Verdict, fault, skip, warning};
use host_plugin::PluginKind;

const TOPIC: Topic = Topic {
    name: "lifecycle",
    kinds: &[],
};
/// The topic of the test that runs only for metrics and observers. Instances of these kinds receive data.
const OF_FED: Topic = Topic {
    kinds: &[PluginKind::Metric, PluginKind::Observer],
    ..TOPIC
};
/// How many instances are created one after the other.
const MANY: usize = 1000;
/// Time limit for creating the instances. If `create` is slow, for example because it starts programs, fewer
/// instances are created.
const LONG: Duration = Duration::from_millis(600);
/// Growth of the resident memory, in KiB, that causes a warning. It is measured over the second half of the
/// instances.
const MUCH_KIB: u64 = 2048;

pub(super) const TESTS: &[Test] = &[
    TOPIC.test(
        "destroy-unused",
        "an instance that was never called can be destroyed",
        destroy_unused,
    ),
    TOPIC.test(
        "no-growth-in-descriptors",
        "up to 1000 instances leave no file open",
        no_growth_in_descriptors,
    ),
    TOPIC.test(
        "no-growth-in-threads",
        "up to 1000 instances leave no thread running",
        no_growth_in_threads,
    ),
    TOPIC.test(
        "no-growth-in-memory",
        "up to 1000 instances leave little memory allocated",
        no_growth_in_memory,
    ),
    OF_FED.test(
        "instances-share-nothing",
        "using one instance does not change another",
        instances_share_nothing,
    ),
];

/// Creates an instance of each kind, calls it once, and destroys it.
pub(super) fn exercise(setup: &Setup, subject: &Subject) -> Verdict {
    for (kind, ..) in subject.makers() {
        match kind {
            PluginKind::Metric => {
                let tokens = Tokens::random(&mut setup.random(), 2, 3);
                let batch = tokens.batch(&subject.manifest().needs, &Form::default())?;
                // Ignores the result, because another test checks whether the call succeeds.
                let _ = subject.metric()?.update(batch.raw(), "an ordinary batch");
            }
            PluginKind::ParamGroups => {
                let params = super::groups::gpt2(1);
                let request = Request::new(&params, 0);
                let _ = subject
                    .grouper()?
                    .group(request.raw(), &params, "a GPT-2's parameters");
            }
            // Publishing has its own tests.
            PluginKind::CheckpointSink => subject.sink()?.cancel(),
            PluginKind::Observer => {
                let event = HostEvent::new(host_plugin_abi::HOST_EVENT_RUN_STARTED, 0);
                let _ = subject.observer()?.observe(&event, "the run's start");
            }
        }
    }
    Ok(())
}

fn destroy_unused(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    for maker in subject.makers() {
        drop(
            subject
                .create_from(maker, subject.config.as_bytes())
                .result?,
        );
    }
    Ok(())
}

/// Creates and destroys instances for a limited time. Returns two numbers for the second half of this work:
/// the growth of the measured value, and the number of instances. The first half is ignored, so that one-time
/// allocations do not count as growth.
fn grown(setup: &Setup, measure: fn() -> u64) -> Result<(u64, usize), Stop> {
    let subject = Subject::load(setup)?;
    let start = Instant::now();
    let mut half = 0;
    let mut made = 0;
    for n in 0..MANY {
        if n == MANY / 2 || half == 0 && start.elapsed() > LONG / 2 {
            half = measure();
            made = 0;
        }
        exercise(setup, &subject)?;
        made += 1;
        if start.elapsed() > LONG && half > 0 {
            break;
        }
    }
    let growth = settled(half, measure).saturating_sub(half);
    Ok((growth, made))
}

fn no_growth_in_descriptors(setup: &Setup) -> Verdict {
    let descriptors = || std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count() as u64);
    match grown(setup, descriptors)? {
        (0, _) => Ok(()),
        (growth, made) => Err(fault(
            format!("left {growth} open files after {made} instances"),
            "destroy releases everything that the instance acquired",
            "close the files in destroy, and also in create before it returns an error",
        )),
    }
}

fn no_growth_in_threads(setup: &Setup) -> Verdict {
    match grown(setup, threads)? {
        (0, _) => Ok(()),
        (growth, made) => Err(fault(
            format!("left {growth} threads running after {made} instances"),
            "destroy joins the instance's threads",
            "stop and join each thread in destroy",
        )),
    }
}

fn no_growth_in_memory(setup: &Setup) -> Verdict {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        number.unwrap_or(1)
    };
    match grown(setup, resident)? {
        (growth, _) if growth < MUCH_KIB => Ok(()),
        (growth, made) => Err(warning(
            format!("used {growth} KiB more memory after {made} instances"),
            "destroy frees everything that the instance allocated",
            "check what create and the calls allocate, for example with valgrind on the plugin's own test",
        )),
    }
}

fn instances_share_nothing(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let wrong = |did: &str| {
        fault(
            did,
            "each instance has its own state",
            "keep the state behind the instance pointer, not in static variables",
        )
    };
    let mut tried = false;
    if subject.manifest().kinds.contains(&PluginKind::Metric) {
        tried = true;
        let (fed, other) = (subject.metric()?, subject.metric()?);
        let before = (other.export_state()?, tolerate(other.compute())?.ok());
        let mut random = setup.random();
        for _ in 0..3 {
            let tokens = Tokens::random(&mut random, 2, 5);
            let batch = tokens.batch(&subject.manifest().needs, &Form::default())?;
            fed.update(batch.raw(), "an ordinary batch")?;
        }
        let after = (other.export_state()?, tolerate(other.compute())?.ok());
        if before != after {
            return Err(wrong(
                "changed the state of one metric when another received batches",
            ));
        }
    }
    if subject.manifest().kinds.contains(&PluginKind::Observer) {
        let (fed, other) = (subject.observer()?, subject.observer()?);
        if other.state().is_ok() {
            tried = true;
            let before = other.export_state()?;
            for (event, what) in super::observer::measurements(setup, 50) {
                // Ignores the result, because another test checks whether the call succeeds.
                let _ = host_plugin::raw::with_view(host_core::Step(1), &event, |event| {
                    fed.observe(event, what)
                });
            }
            if other.export_state()? != before {
                return Err(wrong(
                    "changed the state of one observer when another received events",
                ));
            }
        }
    }
    match tried {
        true => Ok(()),
        false => skip("the observer has no state"),
    }
}
