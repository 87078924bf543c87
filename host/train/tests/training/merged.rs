//! Tests that an evaluation gives the same values with several processes as with a single process.

use std::path::Path;

use host_core::{Metric, MetricValue, OnError, Supervised};
use host_plugin::{Plugin, PluginSpec, SearchPath};
use host_train::{Collective, Start, Trainer};

use crate::{alone, config, corpus};

/// Loads metrics from the plugins of this workspace.
fn metrics(ids: &[&str]) -> Vec<Supervised<dyn Metric>> {
    let test = std::env::current_exe().expect("a program");
    let built = test.ancestors().nth(2).expect("target/release");
    let search = SearchPath::new([built.to_owned()]);
    let make = |id: &&str| {
        let spec: PluginSpec = id.parse().expect("a spec");
        let found = search.find(&spec.target).expect("found");
        let plugin = Plugin::load(&found, &spec.config).expect("loaded");
        Supervised::new(*id, OnError::Fail, plugin.metric().expect("made"))
    };
    ids.iter().map(make).collect()
}

fn assert_equal(whole: &[MetricValue], parts: &[MetricValue], count: usize) {
    assert_eq!(whole.len(), parts.len());
    for (whole, parts) in whole.iter().zip(parts) {
        assert_eq!(whole.name, parts.name);
        let error = (whole.value - parts.value).abs();
        assert!(
            error <= 1e-12 * whole.value.abs(),
            "{} in {count} parts: {} and {}",
            whole.name,
            whole.value,
            parts.value
        );
    }
}

#[test]
fn merged_parts_of_an_evaluation_equal_the_whole() {
    let _alone = alone();
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path().join("data");
    corpus(&data);
    let config = host_train::TrainConfig {
        // Nine batches. The last batch is smaller.
        valid_batch_size: 3,
        max_eval_steps: 9,
        ..config(&data)
    };
    let cache: &Path = &home.path().join("cache");
    let mut trainer = Trainer::prepare(
        &config,
        &Start::Fresh,
        cache,
        Collective::alone(),
        &mut |_| (),
    )
    .expect("prepared");
    trainer
        .add_metrics(metrics(&[
            "perplexity",
            "bits-per-byte",
            "token-accuracy",
            "three-inputs",
        ]))
        .expect("they work");
    let whole = trainer.evaluate_in_parts(1).expect("evaluated");
    assert!(whole.len() >= 5, "{whole:?}");
    for count in [2, 3, 20] {
        let parts = trainer.evaluate_in_parts(count).expect("evaluated");
        assert_equal(&whole, &parts, count);
    }
}
