use std::ffi::c_void;
use std::marker::PhantomData;
use std::time::Duration;

use host_core::{Device, Dtype, ErrorKind, Metric, MetricBatch, Need, TensorView};
use host_plugin::PluginKind;
use serde_json::{Value, json};

use crate::fixture::{Fixture, dir, listen, load, log_of};

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

/// Updates the metric with a batch that has this loss and number of tokens.
fn update(metric: &mut dyn Metric, loss_sum: f64, tokens: i64) -> host_core::Result<()> {
    metric.update(MetricBatch {
        step: 7,
        tensors: &[
            (Need::TokenCount, view(&tokens, Dtype::I64)),
            (Need::LossSum, view(&loss_sum, Dtype::F64)),
        ],
    })
}

/// Creates a metric that fails as `how` describes; the plugin's id is also `how`.
fn failing(how: &str) -> Box<dyn Metric> {
    let plugin = Fixture::metric(how).load_with(dir().path(), json!({"how": how}));
    plugin.unwrap().metric().unwrap()
}

#[test]
fn batches_are_added_and_states_merge() {
    let dir = dir();
    let plugin = Fixture::metric("adds").load(dir.path()).unwrap();
    assert_eq!(plugin.id(), "adds");
    assert_eq!(plugin.kinds(), [PluginKind::Metric]);
    assert_eq!(plugin.config(), json!({}).as_object().unwrap());
    assert_eq!(plugin.sha256().len(), 64);
    let (mut one, mut two) = (plugin.metric().unwrap(), plugin.metric().unwrap());
    assert_eq!(one.needs(), [Need::LossSum, Need::TokenCount]);
    assert!(!one.reads_cuda());
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
    let error = one.merge_state(b"short").unwrap_err();
    assert_eq!(
        error.message(),
        "plugin adds failed in merge_state: the state has a wrong size"
    );
    let summary = plugin.account().summary();
    assert_eq!((summary.calls, summary.failures), (8, 1));
}

#[test]
fn an_instance_is_destroyed_once_after_its_last_call() {
    listen();
    let dir = dir();
    let plugin = Fixture::metric("destroyed").load(dir.path()).unwrap();
    let one = plugin.metric().unwrap();
    let mut two = plugin.metric().unwrap();
    drop(one);
    drop(plugin);
    assert_eq!(log_of("destroyed"), ["create", "create", "destroy"]);
    update(&mut *two, 1.0, 1).unwrap();
    drop(two);
    assert_eq!(
        log_of("destroyed"),
        ["create", "create", "destroy", "destroy"]
    );
}

#[test]
fn a_tensor_is_passed_with_its_sizes_strides_and_device() {
    listen();
    let plugin = Fixture::metric("tensors")
        .manifest_with("needs", json!(["nll"]))
        .manifest_with("devices", json!(["cpu", "cuda"]))
        .load(dir().path())
        .unwrap();
    let mut metric = plugin.metric().unwrap();
    assert!(metric.reads_cuda());
    let data = [0f32; 6];
    let nll = TensorView {
        shape: &[2, 3],
        strides: &[1, 2],
        device: Device::Cuda(1),
        ..view(&data, Dtype::F32)
    };
    metric
        .update(MetricBatch {
            step: 1,
            tensors: &[(Need::Nll, nll)],
        })
        .unwrap();
    assert_eq!(
        log_of("tensors").last().unwrap(),
        "nll: 2 dimensions, sizes 2 3, strides 1 2, device 2:1"
    );
}

#[test]
fn an_invalid_batch_does_not_reach_the_plugin() {
    let plugin = Fixture::metric("host-fault").load(dir().path()).unwrap();
    let mut metric = plugin.metric().unwrap();
    let (loss_sum, tokens) = (1.0, 1i64);
    let loss = view(&loss_sum, Dtype::F64);
    let count = view(&tokens, Dtype::I64);
    let on_cuda = TensorView {
        device: Device::Cuda(0),
        ..count
    };
    let no_strides = TensorView {
        shape: &[1],
        ..count
    };
    for (count, fault) in [
        (None, "is missing from the batch"),
        (Some(on_cuda), "is on a device that the metric cannot read"),
        (
            Some(no_strides),
            "has a number of strides that differs from its number of sizes",
        ),
    ] {
        let mut tensors = vec![(Need::LossSum, loss)];
        tensors.extend(count.map(|count| (Need::TokenCount, count)));
        let error = metric
            .update(MetricBatch {
                step: 1,
                tensors: &tensors,
            })
            .unwrap_err();
        assert_eq!(
            error.message(),
            format!("the metric input token_count {fault}")
        );
        assert_eq!(error.kind(), ErrorKind::System);
    }
    assert_eq!(plugin.account().summary().calls, 0);
}

#[test]
fn a_failing_create_is_the_plugins_error() {
    for (id, how, reason) in [
        ("create", "create", "create was told to fail"),
        (
            "no-instance",
            "no_instance",
            "it succeeded but returned no instance",
        ),
    ] {
        let plugin = Fixture::metric(id).load_with(dir().path(), json!({"how": how}));
        let error = plugin.unwrap().metric().map(|_| ()).unwrap_err();
        assert_eq!(
            error.message(),
            format!("plugin {id} failed in create: {reason}")
        );
        assert_eq!(error.kind(), ErrorKind::Plugin);
    }
}

#[test]
fn the_error_of_a_call_names_the_call_and_the_reason() {
    for (how, reason) in [
        ("update", "update was told to fail"),
        ("silence", "it gave no reason"),
        ("unsupported", "it does not support this operation"),
        (
            "strange",
            "it gave no reason and returned the unknown status 77",
        ),
    ] {
        let mut metric = failing(how);
        for _ in 0..2 {
            let error = update(&mut *metric, 1.0, 1).unwrap_err();
            assert_eq!(
                error.message(),
                format!("plugin {how} failed in update: {reason}")
            );
            assert_eq!(error.kind(), ErrorKind::Plugin);
        }
        assert!(metric.compute().is_ok(), "a failure is not a panic");
    }
    let error = failing("reset").reset().unwrap_err();
    assert_eq!(
        error.message(),
        "plugin reset failed in reset: reset was told to fail"
    );
}

#[test]
fn output_that_the_host_rejects_fails_the_call() {
    for (how, reason) in [
        ("compute", "compute was told to fail"),
        (
            "broken_name",
            "the name of a value is not UTF-8: \"lo\u{fffd}\"",
        ),
        ("empty_name", "a value has an empty name"),
        ("same_name", "it put \"loss/mean\" twice"),
        ("bytes", "it put bytes instead of values"),
    ] {
        let error = failing(how).compute().unwrap_err();
        assert_eq!(
            error.message(),
            format!("plugin {how} failed in compute: {reason}")
        );
    }
    for (how, reason) in [
        ("export_state", "it succeeded but put no output"),
        ("cannot_export", "export_state was told to fail"),
        (
            "says_and_succeeds",
            "export_state has a reason (it succeeded but put no output)",
        ),
        ("too_much", "it put 1099511627776 bytes, more than 64 MiB"),
        (
            "too_much_and_fails",
            "it put 1099511627776 bytes, more than 64 MiB",
        ),
        (
            "too_much_and_says_why",
            "the host rejected it (it put 1099511627776 bytes, more than 64 MiB)",
        ),
    ] {
        let error = failing(how).export_state().unwrap_err();
        assert_eq!(
            error.message(),
            format!("plugin {how} failed in export_state: {reason}")
        );
    }
}

#[test]
fn a_call_beyond_its_time_limit_fails() {
    let how = json!({"how": "slow_compute"});
    let plugin = Fixture::metric("late")
        .load_with(dir().path(), how)
        .unwrap();
    let plugin = plugin.with_time_limit(Some(Duration::from_secs(3)));
    let mut metric = plugin.metric().unwrap();
    let error = metric.compute().unwrap_err();
    let message = error.message();
    let start = "plugin late failed in compute: it took ";
    assert!(message.starts_with(start), "{message}");
    let end = "s, longer than its time_limit_secs = 3";
    assert!(message.ends_with(end), "{message}");
    assert_eq!(plugin.account().summary().failures, 1);
    assert_eq!(metric.lost(), None);
    let plugin = plugin.with_time_limit(Some(Duration::from_secs(3600)));
    assert!(plugin.metric().unwrap().compute().is_ok());
}

/// The plugins run in this process, where a call cannot be interrupted. So a call that takes too long fails
/// only when it returns.
#[test]
fn load_and_create_have_a_time_limit_too() {
    let plugin = Fixture::metric("late-load").load(dir().path()).unwrap();
    let plugin = plugin.with_time_limit(Some(Duration::from_nanos(1)));
    let error = plugin.metric().map(|_| ()).unwrap_err();
    let start = "plugin late-load failed in load: it took ";
    assert!(error.message().starts_with(start), "{error}");
    let how = json!({"how": "slow_create"});
    let plugin = Fixture::metric("late-create")
        .load_with(dir().path(), how)
        .unwrap();
    let plugin = plugin.with_time_limit(Some(Duration::from_secs(3)));
    let error = plugin.metric().map(|_| ()).unwrap_err();
    let start = "plugin late-create failed in create: it took ";
    assert!(error.message().starts_with(start), "{error}");
}

#[test]
fn after_a_panic_only_a_reset_or_destroy_is_possible() {
    listen();
    let plugin = Fixture::metric("panicking")
        .load_with(dir().path(), json!({"how": "panic"}))
        .unwrap();
    let mut metric = plugin.metric().unwrap();
    let error = update(&mut *metric, 1.0, 1).unwrap_err();
    assert_eq!(
        error.message(),
        "plugin panicking failed in update: panicked: out of range at line 3"
    );
    for (call, error) in [
        ("compute", metric.compute().unwrap_err()),
        ("update", update(&mut *metric, 1.0, 1).unwrap_err()),
        ("export_state", metric.export_state().unwrap_err()),
        ("merge_state", metric.merge_state(&[]).unwrap_err()),
    ] {
        assert_eq!(
            error.message(),
            format!(
                "plugin panicking failed in {call}: it panicked in update earlier and is not called again"
            )
        );
    }
    assert_eq!(plugin.account().summary().calls, 1);
    assert!(
        plugin.metric().unwrap().compute().is_ok(),
        "another instance works"
    );
    for restarts in 1..=3 {
        assert_eq!(metric.lost(), None);
        metric.reset().unwrap();
        assert_eq!(plugin.account().summary().restarts, restarts);
        assert!(update(&mut *metric, 1.0, 1).is_err());
    }
    let lost = metric.lost().unwrap();
    assert_eq!(lost, "it panicked in update after 3 restarts");
    assert!(metric.reset().is_err());
    drop(metric);
    assert_eq!(
        log_of("panicking"),
        [
            "create", "create", "destroy", "create", "destroy", "create", "destroy", "create",
            "destroy", "destroy"
        ]
    );
}

#[test]
fn settings_are_checked_before_the_library_is_loaded() {
    let dir = dir();
    // The plugin's code would reject the host, but that code does not run.
    let path = Fixture::metric("settings")
        .flag("-DREFUSES")
        .build(dir.path());
    let fails = |config: Value| load(&path, config).unwrap_err();
    let error = fails(json!({"kep": 3}));
    assert_eq!(error.message(), "plugin settings has no setting kep");
    assert_eq!(error.hint_text(), Some("did you mean keep?"));
    assert_eq!(error.kind(), ErrorKind::Config);
    let error = fails(json!({"keep": "three"}));
    assert_eq!(
        error.message(),
        "plugin settings cannot use the setting keep: \"three\" is not of type \"integer\""
    );
}

#[test]
fn a_plugin_of_another_kind_is_rejected() {
    let plugin = Fixture::metric("only-metric").load(dir().path()).unwrap();
    let error = plugin.checkpoint_sink().map(|_| ()).unwrap_err();
    assert_eq!(
        error.message(),
        format!(
            "plugin only-metric does not implement checkpoint_sink, only metric: {}",
            plugin.path().display()
        )
    );
    let path = plugin.path().display();
    let hint = format!("`host plugin info {path}` lists its kinds");
    assert_eq!(error.hint_text(), Some(&*hint));
}
