//! Tests plugins that harm their own process. Each fault causes an event, and a new process is started. No
//! fault ends the run. No process is left at the end.

use std::fs;

use host_core::{DeliveryState, EventBody};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Fixture, Home, Output, curve, events_of};

/// What a plugin does, its additional settings, and the end of the fault's message.
const HARMS: [(&str, &str, &str); 7] = [
    ("segfault", "", "its process was killed by SIGSEGV"),
    ("abort", "", "its process was killed by SIGABRT"),
    ("exit", "", "its process ended with exit status 3"),
    ("leak", "", "its process was killed by SIGSEGV"),
    ("garbage", "", "its process sent an invalid message"),
    (
        "close",
        "",
        "its process closed the connection to the host and was killed",
    ),
    (
        "hang",
        ",time_limit_secs=3",
        "it did not return within 3 s and was killed",
    ),
];

/// Returns the faults of plugins in a run as (plugin, call, message).
fn faults(home: &Home, run: &str) -> Vec<(String, String, String)> {
    let events = events_of(&home.run_dir(run)).into_iter();
    let fault = |event: host_core::Event| match event.body {
        EventBody::PluginFault {
            plugin,
            call,
            message,
        } => Some((plugin, call, message)),
        _ => None,
    };
    events.filter_map(fault).collect()
}

/// Returns the steps of the delivered checkpoints.
fn delivered(home: &Home, run: &str) -> Vec<u64> {
    let events = events_of(&home.run_dir(run)).into_iter();
    let delivered = |event: host_core::Event| match event.body {
        EventBody::Delivery {
            checkpoint,
            state: DeliveryState::Delivered,
            ..
        } => Some(checkpoint.0),
        _ => None,
    };
    events.filter_map(delivered).collect()
}

/// Returns a value for the setting `how`. With this value, a plugin does harm only once in `home`, even after
/// its process is restarted.
fn once(home: &Home, how: &str) -> String {
    format!("{how} once:{}", home.text_path(&format!("{how}-done")))
}

fn last_value(home: &Home, run: &str, metric: &str) -> f64 {
    let curve = curve(&home.run_dir(run), metric);
    f64::from_bits(curve.last().expect("a value").1)
}

#[track_caller]
fn assert_whole(home: &Home, run: &str, output: Output) {
    output.succeeded();
    assert_eq!(home.checkpoints(run), [5, 10, 15, 20]);
    assert_eq!(home.children(), [0u32; 0], "no process is left");
}

#[test]
fn a_metric_that_harms_its_process_costs_one_evaluation() {
    let home = Home::new();
    let library = Fixture::metric("harmful").build(&home.path(""));
    for (how, limit, death) in HARMS {
        let how_once = once(&home, &format!("{how} later"));
        let plugin = format!("{}:mode=process{limit},how={how_once}", library.display());
        let output = home.train(how, &["--plugin", &plugin]);
        assert_whole(&home, how, output);
        let faults = faults(&home, how);
        let [(plugin, call, message)] = &faults[..] else {
            panic!("{how}: {faults:?}");
        };
        assert_eq!((&**plugin, &**call), ("harmful", "update"));
        assert_eq!(
            message,
            &format!("plugin harmful failed in update: {death}")
        );
        // The evaluation of step 5 lacks the metric. The other evaluations have it.
        let steps: Vec<u64> = curve(&home.run_dir(how), "loss/mean")
            .iter()
            .map(|point| point.0)
            .collect();
        assert_eq!(steps, [10, 15, 20]);
        assert_eq!(last_value(&home, how, "plugin/harmful/restarts"), 1.0);
        assert_eq!(last_value(&home, how, "plugin/harmful/failures"), 1.0);
    }
}

#[test]
fn a_sink_runs_in_its_own_process_and_delivers_after_a_crash() {
    let home = Home::new();
    let library = Fixture::sink("harmful-sink").build(&home.path(""));
    for (how, limit, death) in HARMS {
        let plugin = format!("{}:how={}{limit}", library.display(), once(&home, how));
        let output = home.train(how, &["--plugin", &plugin]);
        assert_whole(&home, how, output);
        let fault = ("harmful-sink", "publish", death);
        let fault = (fault.0.to_owned(), fault.1.to_owned(), fault.2.to_owned());
        assert_eq!(faults(&home, how), [fault]);
        assert_eq!(delivered(&home, how), [5, 10, 15, 20]);
    }
}

#[test]
fn a_sink_that_always_crashes_is_disabled_and_the_run_reports_undelivered_checkpoints() {
    let home = Home::new();
    let library = Fixture::sink("mortal").build(&home.path(""));
    let plugin = format!("{}:how=segfault", library.display());
    let output = home.train("mortal", &["--plugin", &plugin]);
    let (error, _) = output.failed_with(4);
    assert_eq!(error, "checkpoints did not reach mortal");
    assert_eq!(home.checkpoints("mortal"), [5, 10, 15, 20]);
    assert_eq!(last_value(&home, "mortal", "plugin/mortal/restarts"), 3.0);
    assert_eq!(home.children(), [0u32; 0]);
}

#[test]
fn a_child_killed_from_outside_is_started_again() {
    let home = Home::new();
    let library = Fixture::metric("stuck").build(&home.path(""));
    let how = once(&home, "hang later");
    let plugin = format!("{}:mode=process,how={how}", library.display());
    let process = home.start_training("killed", &["--plugin", &plugin]);
    process.said("stuck: hanging");
    let [child] = home.children()[..] else {
        panic!("one child");
    };
    // Ctrl-C in a terminal goes to the host's process group, which does not contain the child.
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).expect("a process");
    let (_, fields) = stat.rsplit_once(") ").expect("fields");
    assert_eq!(fields.split(' ').nth(2), Some(&*child.to_string()));
    let pid = Pid::from_raw(child.cast_signed()).expect("a process");
    kill_process(pid, Signal::KILL).expect("killed");
    assert_whole(&home, "killed", process.output());
    let message = "plugin stuck failed in update: its process was killed by SIGKILL";
    assert_eq!(faults(&home, "killed")[0].2, message);
}

#[test]
fn no_child_outlives_a_host_that_is_killed() {
    let home = Home::new();
    let sink = Fixture::sink("deaf-to-all").build(&home.path(""));
    let metric = Fixture::metric("idle").build(&home.path(""));
    let sink = format!("{}:how=deaf", sink.display());
    let metric = format!("{}:mode=process", metric.display());
    let plugins = ["--plugin", &sink, "--plugin", &metric];
    let process = home.start_training("gone", &plugins);
    process.said("waiting");
    assert_eq!(home.children().len(), 2);
    process.kill();
    assert_eq!(process.output().signal(), Some(9));
    home.wait_for_no_child();
}

#[test]
fn the_end_of_a_run_does_not_wait_for_a_sink_that_ignores_cancel() {
    let home = Home::new();
    let library = Fixture::sink("deaf").build(&home.path(""));
    let plugin = format!("{}:how=deaf", library.display());
    let process = home.start_training("deaf", &["--plugin", &plugin]);
    process.said("waiting for deaf");
    process.interrupt();
    let output = process.output();
    let (error, _) = output.failed_with(4);
    assert_eq!(error, "checkpoints did not reach deaf");
    let killed = "it did not end within 3 s of being cancelled and was killed";
    assert_eq!(faults(&home, "deaf")[0].2, killed);
    assert_eq!(home.children(), [0u32; 0]);
}

#[test]
fn the_output_of_a_plugin_does_not_mix_with_the_events() {
    let home = Home::new();
    let sink = Fixture::sink("printing").build(&home.path(""));
    let plugin = format!("{}:how=print", sink.display());
    let output = home.train("printing", &["--plugin", &plugin, "--json"]);
    let output = output.succeeded();
    assert!(!output.events().is_empty());
    assert!(output.stderr.contains("printed by a plugin"), "{output}");
}

/// A user who types the hidden command gets an explanation.
#[test]
fn the_command_of_a_child_is_internal() {
    let home = Home::new();
    let output = home.host(&["plugin", "serve", "3,4,5"]);
    let (error, hint) = output.failed_with(2);
    assert!(
        error.starts_with("this command is for internal use"),
        "{error}"
    );
    assert!(hint.contains("host run --plugin"), "{hint}");
    let help = home.host(&["plugin", "--help"]).succeeded();
    assert!(!help.stdout.contains("serve"), "{help}");
}

/// The time limit also applies while a plugin is loaded, and while an instance is created or destroyed. Slow
/// calls are reported while they run.
#[test]
fn the_time_limit_applies_to_load_create_and_destroy() {
    let home = Home::new();
    let limit = "mode=process,time_limit_secs=4";
    let waits = |call: &str| {
        format!("breach: the host is waiting for the plugin's {call}: 2 s of at most 4 s")
    };
    for (call, flags) in [("create", None), ("load", Some("-DAT_LOAD=\"hang\""))] {
        let fixture = Fixture::breach("metric");
        let fixture = match flags {
            Some(flag) => fixture.flag(flag),
            None => fixture,
        };
        let library = fixture.build(&home.path(""));
        let plugin = format!("{}:{limit},how=hang {call}", library.display());
        let output = home.train(call, &["--plugin", &plugin]);
        let (error, _) = output.failed_with(3);
        let end = "it did not return within 4 s and was killed";
        assert_eq!(error, format!("plugin breach failed in {call}: {end}"));
        assert!(output.stderr.contains(&waits(call)), "{output}");
        assert!(!home.path("runs").exists());
    }
    let library = Fixture::breach("observer").build(&home.path(""));
    for call in ["export_state", "destroy"] {
        let plugin = format!("{}:{limit},how=hang {call}", library.display());
        let run = call.replace('_', "-");
        let flags = ["--max-train-steps", "5", "--plugin", &plugin];
        let output = home.train(&run, &flags).succeeded();
        let end = match call {
            "destroy" => {
                "breach: its destroy function did not return within 4 s, and its process was killed"
            }
            _ => "breach failed in export_state: it did not return within 4 s and was killed",
        };
        assert!(output.stderr.contains(end), "{output}");
        assert_eq!(home.children(), [0u32; 0]);
    }
}
