//! The device of a metric's inputs.

use crate::support::{Fixture, Home, curve};

/// DLPack's numbers for the types of devices.
const CPU: f64 = 1.0;
const CUDA: f64 = 2.0;

#[test]
fn inputs_are_on_the_models_device_if_the_metric_supports_it_and_else_on_the_cpu() {
    let home = Home::new();
    let plugin = |fixture: Fixture| fixture.build(&home.path("")).display().to_string();
    let both = plugin(Fixture::place("both", &["cpu", "cuda"]));
    let cpu_only = plugin(Fixture::place("cpu-only", &["cpu"]));
    home.train("places", &["--plugin", &both, "--plugin", &cpu_only])
        .succeeded();

    let last = |metric: &str| {
        let points = curve(&home.run_dir("places"), metric);
        f64::from_bits(points.last().expect("a value").1)
    };
    let of_model = if Home::device() == "cpu" { CPU } else { CUDA };
    assert_eq!(last("both/device_type"), of_model);
    assert_eq!(last("cpu-only/device_type"), CPU);
    assert!(last("both/label_sum") > 0.0);
    assert_eq!(last("both/label_sum"), last("cpu-only/label_sum"));
}
