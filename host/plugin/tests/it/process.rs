//! Plugins in a child process. They behave as in the host's process, but a crash affects only the child.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::path::Path;
use std::thread;
use std::time::Duration;

use host_core::{
    CheckpointDir, CheckpointSink, Device, Dtype, ErrorKind, EventBody, FileEntry, GroupsRequest,
    Manifest, Metric, MetricBatch, MetricValue, Need, ParamInfo, Publish, Receipt, Request,
    SinkError, Step, TensorView,
};
use host_plugin::{Mode, Plugin, PluginConfig, ServeCommand, Target, serve};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{Fixture, dir, find, listen, log_of};

/// Not a test: the other tests run this function as a child process. It replaces `host plugin serve`, because
/// no host program is available here.
#[test]
fn the_child() {
    match std::env::args().next_back() {
        Some(inherited) if inherited.contains(',') => serve(&inherited).unwrap(),
        _ => {
            let error = serve("0,1,2").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(
                error
                    .message()
                    .starts_with("this command is for internal use")
            );
        }
    }
}

fn command() -> ServeCommand {
    let child = ["--exact", "process::the_child", "--test-threads=1", "-q"];
    ServeCommand::new("/proc/self/exe", child)
}

/// Loads a plugin whose instances all run in child processes. The plugin's setting `how` has the given value.
fn plugin(source: &'static str, id: &str, how: &str) -> Plugin {
    plugin_by(command(), source, id, how)
}

fn plugin_by(command: ServeCommand, source: &'static str, id: &str, how: &str) -> Plugin {
    let dir = dir();
    let found = find(&Target::Path(Fixture::new(source, id).build(dir.path()))).unwrap();
    let config = PluginConfig::Values(json!({"how": how}).as_object().unwrap().clone());
    Plugin::load_isolated(&found, &config, Some(Mode::Process), command).unwrap()
}

fn update(metric: &mut dyn Metric, loss_sum: f64, tokens: i64) -> host_core::Result<()> {
    fn view<T>(data: &T, dtype: Dtype) -> TensorView<'_> {
        TensorView {
            data: std::ptr::from_ref(data).cast::<c_void>(),
            shape: &[],
            strides: &[],
            dtype,
            device: Device::Cpu,
            owner: PhantomData,
        }
    }
    metric.update(MetricBatch {
        step: 7,
        tensors: &[
            (Need::TokenCount, view(&tokens, Dtype::I64)),
            (Need::LossSum, view(&loss_sum, Dtype::F64)),
        ],
    })
}

fn publish(sink: &mut dyn CheckpointSink) -> Result<Receipt, SinkError> {
    let entry = FileEntry {
        sha256: "ab".to_owned(),
        size: 3,
    };
    sink.publish(Publish {
        run: &"demo".parse().unwrap(),
        checkpoint: &CheckpointDir {
            step: Step(100),
            path: "/runs/demo/checkpoints/step-000100".into(),
            manifest: Manifest {
                files: BTreeMap::from([("config.json".to_owned(), entry)]),
            },
            metrics: vec![
                MetricValue::new("loss/eval", 1.5),
                MetricValue::new("perplexity", f64::INFINITY),
            ],
        },
        state_dir: Path::new("/runs/demo/sinks/x"),
    })
}

fn params() -> Vec<ParamInfo> {
    ["h.0.attn.weight", "h.0.attn.bias"]
        .map(|name| ParamInfo {
            name: name.to_owned(),
            shape: vec![2, 3],
            dtype: Dtype::F32,
        })
        .to_vec()
}

/// Extends a value of the setting `how`, so that the plugin does the damage only once.
fn once(how: &str, dir: &TempDir) -> String {
    format!("{how} once:{}", dir.path().join("done").display())
}

fn assert_failed<T: std::fmt::Debug>(result: host_core::Result<T>, message: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.message(), message);
    assert_eq!(error.kind(), ErrorKind::Plugin);
}

/// Damage that a plugin can do to its own process, and the resulting error.
const HARMS: [(&str, &str); 6] = [
    ("segfault", "its process was killed by SIGSEGV"),
    ("abort", "its process was killed by SIGABRT"),
    ("exit", "its process ended with exit status 3"),
    ("garbage", "its process sent an invalid message"),
    (
        "close",
        "its process closed the connection to the host and was killed",
    ),
    ("hang", "it did not return within 1 s and was killed"),
];

#[test]
fn a_metric_behaves_the_same() {
    listen();
    let plugin = plugin("metric.c", "far-metric", "");
    let mut one = plugin.metric().unwrap();
    let mut two = plugin.metric().unwrap();
    assert_eq!(one.id(), "far-metric");
    assert_eq!(one.needs(), [Need::LossSum, Need::TokenCount]);
    update(&mut *one, 6.0, 2).unwrap();
    update(&mut *two, 4.0, 3).unwrap();
    one.merge_state(&two.export_state().unwrap()).unwrap();
    let values = one.compute().unwrap();
    assert_eq!(
        values,
        [
            ("loss/mean".to_owned(), 2.0),
            ("predicted_tokens".to_owned(), 5.0)
        ]
    );
    one.reset().unwrap();
    assert!(one.compute().unwrap()[0].1.is_nan());
    assert_failed(
        one.merge_state(b"short"),
        "plugin far-metric failed in merge_state: the state has a wrong size",
    );
    let summary = plugin.account().summary();
    assert_eq!(
        (summary.calls, summary.failures, summary.restarts),
        (8, 1, 0)
    );
    drop((one, two));
    assert_eq!(
        log_of("far-metric"),
        ["create", "create", "destroy", "destroy"]
    );
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(
        !maps.contains("far-metric"),
        "the library is not loaded into this process"
    );
}

#[test]
fn tensors_of_any_layout_and_size_arrive_in_order() {
    listen();
    let dir = dir();
    let path = Fixture::metric("far-tensors")
        .manifest_with("needs", json!(["nll", "loss_sum"]))
        .manifest_with("devices", json!(["cpu", "cuda"]))
        .build(dir.path());
    let found = find(&Target::Path(path)).unwrap();
    let config = PluginConfig::default();
    let plugin = Plugin::load_isolated(&found, &config, Some(Mode::Process), command()).unwrap();
    let mut metric = plugin.metric().unwrap();
    assert!(
        !metric.reads_cuda(),
        "the child cannot read a device's memory"
    );
    for (shape, strides) in [([2, 3], [1, 2]), ([1 << 10, 1 << 12], [1 << 12, 1])] {
        let data = vec![0.5f32; usize::try_from(shape[0] * shape[1]).unwrap()];
        let sum = 4.0f64;
        let nll = TensorView {
            data: data.as_ptr().cast(),
            shape: &shape,
            strides: &strides,
            dtype: Dtype::F32,
            device: Device::Cpu,
            owner: PhantomData,
        };
        let loss_sum = TensorView {
            data: (&raw const sum).cast(),
            shape: &[],
            strides: &[],
            dtype: Dtype::F64,
            ..nll
        };
        let tensors = [(Need::LossSum, loss_sum), (Need::Nll, nll)];
        let batch = MetricBatch {
            step: 1,
            tensors: &tensors,
        };
        metric.update(batch).unwrap();
        let [rows, columns] = shape;
        assert_eq!(
            log_of("far-tensors").last().unwrap(),
            &format!("nll: 2 dimensions, sizes {rows} {columns}, strides {columns} 1, device 1:0")
        );
    }
    assert_eq!(metric.compute().unwrap()[0].1, f64::INFINITY);
}

#[test]
fn a_metric_that_breaks_its_process_restarts_at_the_next_reset() {
    for (how, death) in HARMS {
        let (id, dir) = (format!("metric-{how}"), dir());
        let plugin = plugin("metric.c", &id, &once(how, &dir));
        let plugin = plugin.with_time_limit(Some(Duration::from_secs(1)));
        let mut metric = plugin.metric().unwrap();
        metric.reset().unwrap();
        assert_failed(
            update(&mut *metric, 1.0, 1),
            &format!("plugin {id} failed in update: {death}"),
        );
        let lost =
            "its process was restarted and lost its state; calls fail until the next evaluation";
        assert_failed(
            update(&mut *metric, 1.0, 1),
            &format!("plugin {id} failed in update: {lost}"),
        );
        assert_failed(
            metric.compute(),
            &format!("plugin {id} failed in compute: {lost}"),
        );
        metric.reset().unwrap();
        update(&mut *metric, 6.0, 2).unwrap();
        assert_eq!(metric.compute().unwrap()[0].1, 3.0);
        let summary = plugin.account().summary();
        assert_eq!((summary.failures, summary.restarts), (1, 1));
        assert_eq!(metric.lost(), None);
    }
}

#[test]
fn a_child_is_restarted_three_times() {
    let plugin = plugin("metric.c", "dies-ever", "exit");
    let mut metric = plugin.metric().unwrap();
    for _ in 0..4 {
        assert_eq!(metric.lost(), None);
        metric.reset().unwrap();
        assert_failed(
            update(&mut *metric, 1.0, 1),
            "plugin dies-ever failed in update: its process ended with exit status 3",
        );
    }
    let lost = "its process died after 3 restarts";
    assert_failed(
        metric.reset(),
        &format!("plugin dies-ever failed in reset: {lost}"),
    );
    assert_eq!(metric.lost().unwrap(), lost);
    assert_eq!(plugin.account().summary().restarts, 3);
}

#[test]
fn a_child_killed_from_outside_is_detected_at_the_next_call() {
    listen();
    let plugin = plugin("metric.c", "killed", "say_pid");
    let mut metric = plugin.metric().unwrap();
    let log = log_of("killed");
    let pid = log[1].strip_prefix("pid ").unwrap();
    signal_to(pid, "-KILL");
    assert_failed(
        metric.reset(),
        "plugin killed failed in reset: its process was killed by SIGKILL",
    );
    metric.reset().unwrap();
    assert_eq!(log_of("killed").len(), 4);
}

fn signal_to(pid: &str, signal: &str) {
    let sent = std::process::Command::new("kill")
        .args([signal, pid])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
fn groups_are_the_same_and_damage_is_contained() {
    let request = |params| GroupsRequest {
        params,
        weight_decay: 0.1,
    };
    let params = params();
    let mut groups = plugin("groups.c", "far-groups", "warn")
        .param_groups()
        .unwrap();
    let (found, warnings) = groups.group(request(&params)).unwrap();
    assert_eq!(found[0].params, [0]);
    assert_eq!(
        (found[1].name.as_str(), &found[1].params[..]),
        ("no_decay", &[1][..])
    );
    assert_eq!(warnings, ["the pattern \"x\" matches nothing"]);
    for (how, death) in HARMS {
        let (id, dir) = (format!("groups-{how}"), dir());
        let plugin = plugin("groups.c", &id, &once(how, &dir));
        let plugin = plugin.with_time_limit(Some(Duration::from_secs(1)));
        let mut groups = plugin.param_groups().unwrap();
        assert_failed(
            groups.group(request(&params)),
            &format!("plugin {id} failed in group: {death}"),
        );
        assert_eq!(groups.group(request(&params)).unwrap().0.len(), 2);
    }
}

#[test]
fn an_observer_makes_requests_and_gets_its_last_state_back() {
    listen();
    let event = EventBody::Metrics {
        values: vec![MetricValue::new("loss/train", f64::INFINITY)],
    };
    let mut observer = plugin("observer.c", "far-observer", "all")
        .observer()
        .unwrap();
    let asks = observer.observe(Step(5), &event).unwrap();
    assert_eq!(asks.len(), 5);
    assert_eq!(asks[3].request, Request::ScaleLearningRate { factor: 0.5 });
    assert!(log_of("far-observer")[1].contains("step 5"));
    assert!(log_of("far-observer")[1].ends_with("loss/train=inf"));
    for (how, death) in HARMS {
        let (id, dir) = (format!("observer-{how}"), dir());
        let plugin = plugin("observer.c", &id, &once(how, &dir));
        let plugin = plugin.with_time_limit(Some(Duration::from_secs(1)));
        let mut observer = plugin.observer().unwrap();
        observer.import_state(&41i64.to_le_bytes()).unwrap();
        assert_failed(
            observer.observe(Step(1), &event),
            &format!("plugin {id} failed in observe: {death}"),
        );
        assert_eq!(observer.observe(Step(2), &event).unwrap(), []);
        assert_eq!(observer.export_state().unwrap(), 42i64.to_le_bytes());
    }
}

#[test]
fn a_sink_delivers_and_its_errors_keep_their_kind() {
    let mut sink = plugin("sink.c", "far-sink", "").checkpoint_sink().unwrap();
    let Receipt(receipt) = publish(&mut *sink).unwrap();
    let receipt: Value = serde_json::from_str(&receipt).unwrap();
    assert_eq!(
        receipt,
        json!({
            "step": 100, "run": "demo", "dir": "/runs/demo/checkpoints/step-000100",
            "manifest": {"files": {"config.json": {"sha256": "ab", "size": 3}}},
            "metrics": {"loss/eval": 1.5, "perplexity": "inf"},
            "state_dir": "/runs/demo/sinks/x", "config": {"how": ""}
        })
    );
    let mut sink = plugin("sink.c", "far-temporary", "temporary")
        .checkpoint_sink()
        .unwrap();
    let temporary = SinkError::Temporary("the network is down".to_owned());
    assert_eq!(publish(&mut *sink), Err(temporary));
}

#[test]
fn a_sink_that_breaks_its_process_can_try_again() {
    for (how, death) in HARMS {
        let (id, dir) = (format!("sink-{how}"), dir());
        let plugin = plugin("sink.c", &id, &once(how, &dir));
        let plugin = plugin.with_time_limit(Some(Duration::from_secs(1)));
        let mut sink = plugin.checkpoint_sink().unwrap();
        let temporary = SinkError::Temporary(death.to_owned());
        assert_eq!(publish(&mut *sink), Err(temporary));
        publish(&mut *sink).unwrap();
    }
    let mut sink = plugin("sink.c", "sink-ever", "abort")
        .checkpoint_sink()
        .unwrap();
    let errors: Vec<_> = (0..5).map(|_| publish(&mut *sink).unwrap_err()).collect();
    let death = "its process was killed by SIGABRT".to_owned();
    let lost = "its process died after 3 restarts".to_owned();
    assert_eq!(
        errors[..3],
        [const { SinkError::Cancelled }; 3].map(|_| SinkError::Temporary(death.clone()))
    );
    assert_eq!(errors[3], SinkError::Temporary(format!("{death}; {lost}")));
    assert_eq!(errors[4], SinkError::Temporary(lost.clone()));
    assert_eq!(sink.lost(), Some(lost));
}

#[test]
fn a_publish_is_cancelled_in_the_child() {
    listen();
    for (id, how) in [("far-cancelled", "wait"), ("deaf-sink", "deaf")] {
        let mut sink = plugin("sink.c", id, how).checkpoint_sink().unwrap();
        let cancel = sink.canceller();
        let outcome = thread::scope(|scope| {
            let publishing = scope.spawn(|| publish(&mut *sink));
            while !log_of(id).contains(&"waiting".to_owned()) {
                thread::yield_now();
            }
            cancel();
            publishing.join().unwrap()
        });
        if how == "wait" {
            assert_eq!(outcome, Err(SinkError::Cancelled));
        } else {
            let killed = "it did not end within 3 s of being cancelled and was killed";
            assert_eq!(outcome, Err(SinkError::Temporary(killed.to_owned())));
        }
        drop(sink);
        cancel();
    }
    assert_eq!(
        log_of("far-cancelled"),
        ["create", "waiting", "cancel", "destroy"]
    );
}

#[test]
fn errors_of_create_are_reported_and_another_program_is_rejected() {
    let message = |plugin: Plugin| {
        let error = plugin.metric().map(|_| ()).unwrap_err();
        error.message().to_owned()
    };
    assert_eq!(
        message(plugin("metric.c", "far-create", "create")),
        "plugin far-create failed in create: create was told to fail"
    );
    let sink = plugin("sink.c", "far-no-metric", "");
    assert!(
        message(sink)
            .starts_with("plugin far-no-metric does not implement metric, only checkpoint_sink: ")
    );
    let by = |program: &str| {
        let command = ServeCommand::new(program, [""; 0]);
        message(plugin_by(command, "metric.c", "far-other", ""))
    };
    assert_eq!(
        by("/bin/true"),
        "plugin far-other failed in load: its process ended with exit status 0"
    );
    let missing = by("/nowhere/host");
    assert!(missing.starts_with("cannot start a process for plugin far-other: No such file"));
}

#[test]
fn a_child_outlives_the_thread_that_requested_it() {
    let plugin = plugin("metric.c", "of-a-thread", "");
    let make = || plugin.metric().unwrap();
    let mut metric = thread::scope(|scope| scope.spawn(make).join().unwrap());
    update(&mut *metric, 6.0, 2).unwrap();
    assert_eq!(metric.compute().unwrap()[0].1, 3.0);
}

#[test]
fn a_child_leaves_signals_to_its_host() {
    listen();
    let plugin = plugin("metric.c", "signalled", "say_pid");
    let mut metric = plugin.metric().unwrap();
    let pid = log_of("signalled")[1].replace("pid ", "");
    for signal in ["-INT", "-TERM", "-XFSZ"] {
        signal_to(&pid, signal);
        metric.reset().unwrap();
    }
}

/// The time limit also applies to `destroy`.
#[test]
fn endless_logging_in_destroy_is_ended() {
    let plugin = plugin("metric.c", "never-gone", "chatter");
    drop(plugin.metric().unwrap());
}

#[test]
fn endless_logging_in_a_call_is_ended() {
    listen();
    let plugin = plugin("metric.c", "talks", "talk");
    let plugin = plugin.with_time_limit(Some(Duration::from_secs(1)));
    let mut metric = plugin.metric().unwrap();
    assert_failed(
        update(&mut *metric, 1.0, 1),
        "plugin talks failed in update: it did not return within 1 s and was killed",
    );
}
