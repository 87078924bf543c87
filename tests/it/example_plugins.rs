//! Loads the shipped plugins and the example plugins with the real loader. The example plugins are built in
//! the way that their comments describe.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::from_ref;

use host_core::{Device, Dtype, GroupsRequest, Metric, MetricBatch, Need, ParamInfo, TensorView};
use host_plugin::{Plugin, PluginConfig, SearchPath, Target};
use tempfile::TempDir;

use crate::support::built;

#[test]
fn the_c_example_builds_with_the_command_in_its_comment_and_computes() {
    let folder = root().join("examples/plugins/c");
    let source = folder.join("bits_per_byte.c");
    let text = std::fs::read_to_string(&source).expect("the example");
    let command = text.lines().find_map(|line| line.strip_prefix("//   cc "));
    let out = TempDir::new().expect("a folder for the library");
    let library = out.path().join("libbits_per_byte.so");
    let mut arguments: Vec<&str> = command.expect("a command").split(' ').collect();
    let there = arguments.iter_mut().find(|a| **a == "libbits_per_byte.so");
    *there.expect("the library") = library.to_str().expect("UTF-8");
    succeed(
        Command::new("cc")
            .current_dir(folder)
            .args(arguments)
            .arg("-Werror"),
    );

    let plugin = load(&library);
    let (mut one, mut two) = (metric(&plugin), metric(&plugin));
    let failure = one.compute().expect_err("no text");
    assert!(
        failure.message().contains("no text was evaluated"),
        "{failure}"
    );
    // For the first 8 bytes, the loss is two bits for each byte. For the next 8 bytes, the loss is zero.
    let (nats, none, bytes) = (16.0 * 2f64.ln(), 0.0, 8i64);
    for (metric, loss_sum) in [(&mut one, &nats), (&mut two, &none)] {
        let loss_sum = (Need::LossSum, scalar(loss_sum, Dtype::F64));
        let tensors = [(Need::ByteCount, scalar(&bytes, Dtype::I64)), loss_sum];
        metric
            .update(MetricBatch {
                step: 1,
                tensors: &tensors,
            })
            .expect("updated");
    }
    assert_eq!(
        one.compute().expect("computed"),
        [("bits_per_byte".to_owned(), 2.0)]
    );
    one.merge_state(&two.export_state().expect("exported"))
        .expect("merged");
    assert_eq!(one.compute().expect("computed")[0].1, 1.0);
    assert!(one.merge_state(b"no state").is_err());
    one.reset().expect("reset");
    assert!(one.compute().is_err());
}

#[test]
fn the_rust_example_builds_and_computes() {
    let mut metric = metric(&load(&library("sequence-loss")));
    let nll = [1.0f32, 3.0, 0.0, 1.0];
    let view = TensorView {
        data: nll.as_ptr().cast(),
        shape: &[2, 2],
        strides: &[2, 1],
        dtype: Dtype::F32,
        device: Device::Cpu,
        owner: PhantomData,
    };
    let tensors = [(Need::Nll, view)];
    metric
        .update(MetricBatch {
            step: 1,
            tensors: &tensors,
        })
        .expect("updated");
    let values = metric.compute().expect("computed");
    assert_eq!(values, [("loss/worst_sequence".to_owned(), 2.0)]);
}

#[test]
fn the_shipped_perplexity_computes() {
    let mut metric = metric(&load(&library("perplexity")));
    let (loss_sum, tokens) = (3.0, 4i64);
    let tensors = [
        (Need::LossSum, scalar(&loss_sum, Dtype::F64)),
        (Need::TokenCount, scalar(&tokens, Dtype::I64)),
    ];
    metric
        .update(MetricBatch {
            step: 1,
            tensors: &tensors,
        })
        .expect("updated");
    let values = metric.compute().expect("computed");
    let expected = [("loss/eval", 0.75), ("perplexity", 0.75f64.exp())];
    assert_eq!(
        values,
        expected.map(|(name, value)| (name.to_owned(), value))
    );
}

#[test]
fn the_shipped_weight_decay_groups_parameters() {
    let plugin = load(&library("weight-decay"));
    let mut grouper = plugin.param_groups().expect("a grouper");
    let params = ["wte.weight", "h.0.ln_1.weight"].map(|name| ParamInfo {
        name: name.to_owned(),
        shape: vec![2],
        dtype: Dtype::F32,
    });
    let request = GroupsRequest {
        params: &params,
        weight_decay: 0.1,
    };
    let (groups, warnings) = grouper.group(request).expect("grouped");
    let groups: Vec<_> = groups
        .iter()
        .map(|group| {
            (
                group.name.as_str(),
                group.weight_decay,
                group.params.as_slice(),
            )
        })
        .collect();
    assert_eq!(
        groups,
        [("decay", 0.1, &[0][..]), ("no_decay", 0.0, &[1][..])]
    );
    assert!(warnings.is_empty());
}

#[test]
fn the_shipped_local_disk_needs_its_folder() {
    let path = library("local-disk");
    let found = SearchPath::new([])
        .find(&Target::Path(path))
        .expect("found");
    let failure = Plugin::load(&found, &PluginConfig::default()).expect_err("no dir");
    assert!(failure.message().contains("dir"), "{failure}");
    let out = TempDir::new().expect("a folder");
    let dir = out.path().join("checkpoints");
    let setting = ("dir".to_owned(), dir.display().to_string());
    let plugin = Plugin::load(&found, &PluginConfig::Text(vec![setting])).expect("loaded");
    let sink = plugin.checkpoint_sink().expect("a sink");
    assert_eq!(sink.id(), "local-disk");
    assert!(dir.is_dir());
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the library of a package of the workspace.
fn library(package: &str) -> PathBuf {
    built(&format!("lib{}.so", package.replace('-', "_")))
}

fn load(library: &Path) -> Plugin {
    let target = Target::Path(library.to_owned());
    let found = SearchPath::new([]).find(&target).expect("found");
    Plugin::load(&found, &PluginConfig::default()).expect("loaded")
}

fn metric(plugin: &Plugin) -> Box<dyn Metric> {
    plugin.metric().expect("a metric")
}

fn scalar<T>(number: &T, dtype: Dtype) -> TensorView<'_> {
    TensorView {
        data: from_ref(number).cast(),
        shape: &[],
        strides: &[],
        dtype,
        device: Device::Cpu,
        owner: PhantomData,
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{errors}");
}
