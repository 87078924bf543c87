//! Tests Rust plugins that are built with the SDK. Their settings name a call, and they panic in this call.
//! The process survives, the error names the plugin and the call, and the instance is not called again.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use host_core::{
    Ask, CheckpointDir, Device, Dtype, ErrorKind, EventBody, GroupsRequest, Manifest, Metric,
    MetricBatch, MetricValue, Need, Observer, ParamInfo, Publish, Request, SinkError, Step,
    TensorView, check_groups,
};
use host_plugin::{Plugin, PluginKind};
use serde_json::{Value, json};

use crate::fixture::load;

/// Returns the library of a plugin in `tests/fixtures/plugins`, built with the profile of these tests. This
/// function runs cargo, since a test cannot depend on a library that is only loaded at run time.
fn library(plugin: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let tests = std::env::current_exe().unwrap();
        let profile = tests.ancestors().nth(2).unwrap();
        let name = match profile.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            name => name,
        };
        let built = Command::new(env!("CARGO"))
            .args(["build", "--offline", "-p", "misbehaving", "-p", "asking"])
            .args(["--profile", name])
            .arg("--target-dir")
            .arg(profile.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        profile.to_owned()
    });
    folder.join(format!("lib{plugin}.so"))
}

fn plugin(config: Value) -> Plugin {
    load(&library("misbehaving"), config).unwrap()
}

fn metric(config: Value) -> Box<dyn Metric> {
    plugin(config).metric().unwrap()
}

fn update(metric: &mut dyn Metric) -> host_core::Result<()> {
    let tokens = 5i64;
    let count = TensorView {
        data: (&raw const tokens).cast::<c_void>(),
        shape: &[],
        strides: &[],
        dtype: Dtype::I64,
        device: Device::Cpu,
        owner: PhantomData,
    };
    metric.update(MetricBatch {
        step: 1,
        tensors: &[(Need::TokenCount, count)],
    })
}

fn publish(plugin: &Plugin, times: usize) -> Vec<Result<(), SinkError>> {
    let mut sink = plugin.checkpoint_sink().unwrap();
    let checkpoint = CheckpointDir {
        step: Step(1),
        path: "/checkpoint".into(),
        manifest: Manifest::default(),
        metrics: Vec::new(),
    };
    let run = "demo".parse().unwrap();
    (0..times)
        .map(|_| {
            let publish = Publish {
                run: &run,
                checkpoint: &checkpoint,
                state_dir: Path::new("/state"),
            };
            sink.publish(publish).map(|_| ())
        })
        .collect()
}

fn params() -> Vec<ParamInfo> {
    ["a", "b"]
        .map(|name| ParamInfo {
            name: name.to_owned(),
            shape: vec![2],
            dtype: Dtype::F32,
        })
        .to_vec()
}

fn assert_plugin_error<T: std::fmt::Debug>(result: host_core::Result<T>, message: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.message(), message);
    assert_eq!(error.kind(), ErrorKind::Plugin);
}

#[test]
fn without_settings_all_three_kinds_work() {
    let plugin = plugin(json!({}));
    assert_eq!(
        plugin.kinds(),
        [
            PluginKind::ParamGroups,
            PluginKind::Metric,
            PluginKind::CheckpointSink
        ]
    );
    let (mut one, mut two) = (plugin.metric().unwrap(), plugin.metric().unwrap());
    update(&mut *one).unwrap();
    update(&mut *two).unwrap();
    one.merge_state(&two.export_state().unwrap()).unwrap();
    assert_eq!(
        one.compute().unwrap(),
        [("predicted_tokens".to_owned(), 10.0)]
    );
    assert_eq!(publish(&plugin, 2), [Ok(()), Ok(())]);
    let params = params();
    let request = GroupsRequest {
        params: &params,
        weight_decay: 0.1,
    };
    let (groups, _) = plugin.param_groups().unwrap().group(request).unwrap();
    check_groups(plugin.id(), &params, &groups).unwrap();
}

#[test]
fn a_panic_in_create() {
    let plugin = plugin(json!({"panic_in": "create"}));
    let message = "plugin misbehaving failed in create: panicked: create was told to panic";
    assert_plugin_error(plugin.metric().map(|_| ()), message);
    assert_plugin_error(plugin.param_groups().map(|_| ()), message);
    assert_plugin_error(plugin.checkpoint_sink().map(|_| ()), message);
}

#[test]
fn a_panic_in_any_call_of_a_metric() {
    type Call = fn(&mut dyn Metric) -> host_core::Result<()>;
    let calls: [(&str, Call); 5] = [
        ("reset", |metric| metric.reset()),
        ("update", update),
        ("export_state", |metric| metric.export_state().map(|_| ())),
        ("merge_state", |metric| metric.merge_state(&[0; 8])),
        ("compute", |metric| metric.compute().map(|_| ())),
    ];
    for (panicking, call) in calls {
        let mut metric = metric(json!({"panic_in": panicking}));
        assert_plugin_error(
            call(&mut *metric),
            &format!(
                "plugin misbehaving failed in {panicking}: panicked: {panicking} was told to panic"
            ),
        );
        // `reset` is left out, because it would replace the instance with a new one.
        for (later, call) in calls.into_iter().filter(|(later, _)| *later != "reset") {
            assert_plugin_error(
                call(&mut *metric),
                &format!(
                    "plugin misbehaving failed in {later}: it panicked in {panicking} earlier and is not called again"
                ),
            );
        }
    }
}

#[test]
fn a_panic_in_destroy() {
    let mut metric = metric(json!({"panic_in": "destroy"}));
    update(&mut *metric).unwrap();
    drop(metric);
}

#[test]
fn a_panic_in_group() {
    let plugin = plugin(json!({"panic_in": "group"}));
    let mut groups = plugin.param_groups().unwrap();
    let params = params();
    for message in [
        "plugin misbehaving failed in group: panicked: group was told to panic",
        "plugin misbehaving failed in group: it panicked in group earlier and is not called again",
    ] {
        let request = GroupsRequest {
            params: &params,
            weight_decay: 0.1,
        };
        assert_plugin_error(groups.group(request), message);
    }
}

#[test]
fn a_panic_in_publish() {
    let permanent = |reason: &str| Err(SinkError::Permanent(reason.to_owned()));
    // A panic does not mean that the checkpoint is invalid, so another instance may deliver it.
    let panicked = Err(SinkError::Temporary(
        "panicked: publish was told to panic".to_owned(),
    ));
    assert_eq!(
        publish(&plugin(json!({"panic_in": "publish"})), 2),
        [panicked.clone(), panicked]
    );
    let reason = "publish was told to fail";
    assert_eq!(
        publish(&plugin(json!({"fail_in": "publish"})), 2),
        [permanent(reason), permanent(reason)]
    );
    assert_eq!(
        publish(&plugin(json!({"fail_in": "publish", "temporary": true})), 1),
        [Err(SinkError::Temporary(reason.to_owned()))]
    );
}

#[test]
fn a_panic_in_any_call_of_an_observer() {
    type Call = fn(&mut dyn Observer) -> host_core::Result<()>;
    let calls: [(&str, Call); 3] = [
        ("observe", |observer| {
            let event = EventBody::RunStarted { generation: 0 };
            observer.observe(Step(1), &event).map(|_| ())
        }),
        ("export_state", |observer| {
            observer.export_state().map(|_| ())
        }),
        ("import_state", |observer| observer.import_state(&[1, 0])),
    ];
    for (panicking, call) in calls {
        let plugin = load(&library("asking"), json!({"panic_in": panicking})).unwrap();
        assert_eq!(plugin.kinds(), [PluginKind::Observer]);
        let mut observer = plugin.observer().unwrap();
        assert_eq!(observer.lost(), None);
        let failed = |call: &str, reason: &str| format!("plugin asking failed in {call}: {reason}");
        let reason = format!("panicked: {panicking} was told to panic");
        assert_plugin_error(call(&mut *observer), &failed(panicking, &reason));
        for (later, call) in calls {
            let reason = format!("it panicked in {panicking} earlier and is not called again");
            assert_plugin_error(call(&mut *observer), &failed(later, &reason));
        }
        assert_eq!(
            observer.lost().unwrap(),
            format!("it panicked in {panicking}, and its state is lost")
        );
        assert_eq!(plugin.account().summary().failures, 1);
    }
    for panicking in ["create", "destroy"] {
        let plugin = load(&library("asking"), json!({"panic_in": panicking})).unwrap();
        assert_eq!(plugin.observer().is_err(), panicking == "create");
    }
}

#[test]
fn an_observer_makes_a_request_once_and_records_it_in_its_state() {
    let settings = json!({"stop": 2, "scale_learning_rate": 2, "factor": 0.25});
    let plugin = load(&library("asking"), settings).unwrap();
    let loss = EventBody::Metrics {
        values: vec![MetricValue::new("loss/train", 1.0)],
    };
    let ask = |request| Ask {
        request,
        reason: "the settings name step 2".to_owned(),
    };
    let asked = [
        ask(Request::ScaleLearningRate { factor: 0.25 }),
        ask(Request::Stop),
    ];
    let mut observer = plugin.observer().unwrap();
    assert_eq!(observer.observe(Step(1), &loss).unwrap(), []);
    assert_eq!(observer.observe(Step(2), &loss).unwrap(), asked);
    assert_eq!(observer.observe(Step(2), &loss).unwrap(), []);
    let state = observer.export_state().unwrap();
    let mut resumed = plugin.observer().unwrap();
    resumed.import_state(&state).unwrap();
    assert_eq!(resumed.observe(Step(2), &loss).unwrap(), []);
    assert_plugin_error(
        resumed.import_state(b"no state"),
        "plugin asking failed in import_state: not a state of asking",
    );
}

#[test]
fn invalid_groups_are_named() {
    for (grouping, fault) in [
        ("twice", "in more than one group: a (\"all\" and \"all\")"),
        ("leave_out", "in no group: a"),
    ] {
        let plugin = plugin(json!({"grouping": grouping}));
        let params = params();
        let request = GroupsRequest {
            params: &params,
            weight_decay: 0.1,
        };
        let (groups, _) = plugin.param_groups().unwrap().group(request).unwrap();
        assert_plugin_error(
            check_groups(plugin.id(), &params, &groups),
            &format!("plugin misbehaving returned unusable parameter groups: {fault}"),
        );
    }
}
