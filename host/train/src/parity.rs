//! Compares numbers with transformers' GPT-2 and torch's AdamW, using the golden data that
//! `tests/peers/golden.py` creates. `make test-peers` runs these tests on the CPU, `make test-gpu` on a GPU.

use std::collections::HashMap;
use std::path::PathBuf;

use host_core::ParamGroup;
use tch::{Kind, Tensor, no_grad_guard};

use crate::config::{Precision, SchedulerType};
use crate::device::tests::device;
use crate::model::{Decoder, Dtypes, ModelSource};
use crate::optimizer::Optimizer;
use crate::schedule::Schedule;
use crate::torch_shim;
use crate::weights;

const STEPS: u64 = 20;
const ACCUMULATION: i64 = 2;
const CONFIGS: [&str; 4] = ["tied", "untied", "odd", "inverse"];

type Golden = HashMap<String, Tensor>;

fn golden(config: &str, precision: Precision) -> (Golden, Decoder) {
    let folder = std::env::var_os("GOLDEN")
        .expect("GOLDEN must be set to the folder that golden.py filled: run make test-peers");
    let folder = PathBuf::from(folder);
    let short = if precision == Precision::F64 {
        "f64"
    } else {
        "f32"
    };
    let mut data = Golden::new();
    weights::read_file(
        &folder.join(format!("{config}-{short}.safetensors")),
        &mut |name, tensor| {
            data.insert(name.to_owned(), tensor.to_device(device()));
            Ok(())
        },
    )
    .expect("golden data");
    let json = folder.join(format!("{config}.json"));
    let source = ModelSource::read(&json.to_string_lossy()).expect("a configuration");
    let mut model = Decoder::new(source.config, Dtypes::of(precision), device());
    let _guard = no_grad_guard();
    for param in &mut model.params {
        param.tensor.copy_(&data[&format!("w0/{}", param.name)]);
    }
    (data, model)
}

/// Returns the largest absolute difference, divided by the largest absolute value of the reference.
fn max_error(value: &Tensor, reference: &Tensor) -> f64 {
    let difference = (value - reference).abs().max().double_value(&[]);
    difference / reference.abs().max().double_value(&[])
}

/// Returns the L2 norm of the difference, divided by the L2 norm of the reference.
fn l2_error(value: &Tensor, reference: &Tensor) -> f64 {
    (value - reference).norm().double_value(&[]) / reference.norm().double_value(&[])
}

fn each(check: impl Fn(&str, Precision, &Golden, &Decoder)) {
    for config in CONFIGS {
        for precision in [Precision::F32, Precision::F64] {
            let (data, model) = golden(config, precision);
            check(config, precision, &data, &model);
        }
    }
}

#[test]
fn logits_match_the_reference() {
    each(|config, precision, data, model| {
        let _guard = no_grad_guard();
        let bound = if precision == Precision::F64 {
            1e-13
        } else {
            1e-5
        };
        let length = data["tokens"].size()[2];
        let logits = model.logits(&data["tokens"].get(0));
        let error = max_error(&logits, &data["logits"].narrow(1, 0, length - 1));
        println!("{config} {precision:?}: logits within {error:.1e}");
        assert!(
            error <= bound,
            "{config} {precision:?}: logits differ by {error:e}"
        );
    });
}

#[test]
fn loss_and_gradients_match_the_reference_with_and_without_checkpointing() {
    each(|config, precision, data, model| {
        let bound = match precision {
            Precision::F64 => 1e-12,
            // The reference was computed on the CPU, where tanh and exp round differently than on the GPU.
            _ if device().is_cuda() => 1e-4,
            _ => 1e-5,
        };
        for checkpointing in [false, true] {
            let loss = model
                .backward(&data["tokens"].get(0), 1.0, checkpointing)
                .expect("backward");
            assert!(max_error(&loss, &data["loss"]) <= bound, "{config}: loss");
            for param in &model.params {
                let error = l2_error(
                    &param.tensor.grad(),
                    &data[&format!("gradient/{}", param.name)],
                );
                assert!(
                    error <= bound,
                    "{config} {precision:?} {}: gradient differs by {error:e}",
                    param.name
                );
            }
            let params: Vec<Tensor> = model
                .params
                .iter()
                .map(|param| param.tensor.shallow_clone())
                .collect();
            torch_shim::clear_gradients(&params).expect("cleared");
        }
    });
}

#[test]
fn the_weights_after_twenty_steps_match_the_reference() {
    each(|config, precision, data, model| {
        let bound = if precision == Precision::F64 {
            1e-8
        } else {
            1e-3
        };
        let no_decay = ["bias", "ln_1.weight", "ln_2.weight", "ln_f.weight"];
        let group = |weight_decay, decays: bool| ParamGroup {
            name: String::new(),
            weight_decay,
            lr_multiplier: 1.0,
            params: (0..model.params.len())
                .filter(|&index| {
                    no_decay
                        .iter()
                        .all(|part| !model.params[index].name.contains(part))
                        == decays
                })
                .collect(),
        };
        let mut optimizer = Optimizer::new(&model.params, &[group(0.1, true), group(0.0, false)]);
        let schedule = Schedule {
            decay_steps: 0,
            kind: SchedulerType::Cosine,
            peak: 1e-3,
            warmup_steps: 5,
            total_steps: STEPS,
        };
        for step in 0..STEPS {
            let mut loss = 0.0;
            for micro in 0..ACCUMULATION {
                let tokens = data["tokens"].get(step as i64 * ACCUMULATION + micro);
                loss += model
                    .backward(&tokens, 0.5, false)
                    .expect("backward")
                    .double_value(&[])
                    / 2.0;
            }
            let reference = data["losses"].double_value(&[step as i64]);
            assert!(
                (loss - reference).abs() <= 1e-4,
                "{config} {precision:?}: loss {loss} of step {step}, not {reference}"
            );
            let _norm = optimizer.clip_gradients(1.0).expect("clipped");
            let finite = Tensor::zeros([], (Kind::Float, device()));
            optimizer
                .step(schedule.learning_rate(step), Some(&finite))
                .expect("stepped");
        }
        let mut worst: f64 = 0.0;
        for param in &model.params {
            let (before, after) = (
                &data[&format!("w0/{}", param.name)],
                &data[&format!("w20/{}", param.name)],
            );
            let (mut change, mut reference) = (&param.tensor.detach() - before, after - before);
            if precision == Precision::F32 && param.name.ends_with("c_attn.bias") {
                (change, reference) = (without_keys(&change), without_keys(&reference));
            }
            let error = l2_error(&change, &reference);
            worst = worst.max(error);
            assert!(
                error <= bound,
                "{config} {precision:?} {}: change differs by {error:e}",
                param.name
            );
        }
        println!("{config} {precision:?}: changes within {worst:.1e}");
    });
}

/// Removes the bias of the keys. A change of this bias shifts all scores of a query by the same amount.
/// Softmax ignores such a shift, so the exact gradient of the bias is 0. In f32, the computed gradient is
/// rounding noise. AdamW amplifies it to full steps, which differ between the two implementations. These
/// biases can be compared only in f64.
fn without_keys(bias: &Tensor) -> Tensor {
    let parts = bias.chunk(3, 0);
    Tensor::cat(&[&parts[0], &parts[2]], 0)
}

#[test]
fn the_gradient_of_the_keys_bias_is_zero() {
    each(|config, precision, data, _| {
        if precision == Precision::F64 {
            let gradient = &data["gradient/transformer.h.0.attn.c_attn.bias"];
            let keys = gradient.chunk(3, 0)[1].norm().double_value(&[]);
            let all = gradient.norm().double_value(&[]);
            assert!(
                keys <= 1e-14 * all.max(1e-3),
                "{config}: the gradient of the keys' bias has the norm {keys:e}, that of the whole bias {all:e}"
            );
        }
    });
}

#[test]
fn every_schedule_matches_the_reference() {
    let file = PathBuf::from(std::env::var_os("GOLDEN").expect("GOLDEN")).join("schedules.json");
    let text = std::fs::read_to_string(file).expect("golden schedules");
    let golden: HashMap<SchedulerType, Vec<f64>> = serde_json::from_str(&text).expect("rates");
    assert_eq!(golden.len(), 7);
    for (kind, rates) in golden {
        let schedule = Schedule {
            kind,
            peak: 1e-3,
            warmup_steps: 5,
            decay_steps: 8,
            total_steps: 30,
        };
        for (done, rate) in rates.into_iter().enumerate() {
            let ours = schedule.learning_rate(done as u64);
            assert!(
                (ours - rate).abs() < 1e-15,
                "{kind:?} after {done} steps: {ours}, not {rate}"
            );
        }
    }
}
