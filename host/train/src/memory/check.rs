//! Checks that a training run fits into memory, before the run allocates memory.

use host_core::{Error, ErrorKind, Result};
use tch::Device;

use super::estimate::Estimate;
use super::room::{self, Room};
use crate::config::TrainConfig;
use crate::model::{ModelConfig, Shape};

/// Measured usage is at least this fraction of the estimate, so a run is rejected only if even this fraction
/// does not fit.
const ACCURACY: f64 = 0.85;

/// A description of the memory that a training run needs, for people to read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Need {
    /// For example "1.2 GB of 24.0 GB of memory".
    pub(crate) summary: Option<String>,
    /// Set if the run might not fit.
    pub(crate) warning: Option<String>,
}

/// Main memory, or the memory of a device.
struct Place {
    name: String,
    room: Room,
    /// The bytes that this process uses now.
    taken: u64,
    /// The most bytes that this process has used.
    peak: u64,
    need: fn(&Estimate, Device) -> u64,
}

/// Estimates how much memory training needs, and compares this with the available memory. `model` and
/// `config` describe the training. `processes` processes on this machine share its main memory.
///
/// # Errors
/// Returns an error if the run cannot fit. The hint lists changes that make the run fit.
pub(crate) fn check(
    config: &TrainConfig,
    model: &Shape,
    device: Device,
    processes: usize,
) -> Result<Need> {
    let mut places = Vec::new();
    if let (Device::Cuda(index), Some(room)) = (device, Room::of_device(device)) {
        let name = format!("memory on cuda:{index}");
        places.push(Place {
            name,
            room,
            taken: 0,
            peak: 0,
            need: |estimate, _| estimate.on_device(),
        });
    }
    if let Some(mut room) = Room::main() {
        room.free /= processes.max(1) as u64;
        let (taken, peak) = room::resident().unwrap_or_default();
        let name = if device.is_cuda() {
            "main memory"
        } else {
            "memory"
        }
        .to_owned();
        places.push(Place {
            name,
            room,
            taken,
            peak,
            need: Estimate::in_main,
        });
    }
    judge(&places, config, model, device)
}

fn judge(places: &[Place], config: &TrainConfig, model: &Shape, device: Device) -> Result<Need> {
    let estimate = Estimate::of(config, model, device);
    let fits = |config: &TrainConfig, model: &Shape| {
        let estimate = Estimate::of(config, model, device);
        places
            .iter()
            .all(|place| (place.need)(&estimate, device) <= place.room.free)
    };
    let mut need = Need::default();
    let mut parts = Vec::new();
    for place in places {
        let more = (place.need)(&estimate, device);
        let peak = place.peak.max(place.taken + more);
        let (name, total) = (&place.name, size(place.room.total));
        parts.push(format!("{} of {total} of {name}", size(peak)));
        if more <= place.room.free {
            continue;
        }
        let message = format!(
            "the training needs about {} of free {name}, but only {} of {total} are free (limited by {})",
            size(more),
            size(place.room.free),
            place.room.of,
        );
        let hint = changes(config, model, &fits);
        if more as f64 * ACCURACY > place.room.free as f64 {
            return Err(Error::new(ErrorKind::Config, message).hint(hint));
        }
        need.warning = Some(format!("{message}; {hint}"));
    }
    need.summary = (!parts.is_empty()).then(|| parts.join(" and "));
    Ok(need)
}

/// Returns a hint with changes that make the run fit. The hint lists each change that is enough by itself. If
/// there is no such change, it lists the most economical settings and a smaller model, each only if it makes
/// the run fit.
fn changes(
    config: &TrainConfig,
    model: &Shape,
    fits: &dyn Fn(&TrainConfig, &Shape) -> bool,
) -> String {
    let mut ways = Vec::new();
    let checkpointing = TrainConfig {
        gradient_checkpointing: true,
        ..config.clone()
    };
    if !config.gradient_checkpointing && fits(&checkpointing, model) {
        ways.push("--gradient-checkpointing".to_owned());
    }
    let halves = |from: i64, least: i64| {
        std::iter::successors(Some(from / 2), |&size| Some(size / 2))
            .take_while(move |&size| size >= least)
    };
    let smaller = |batch: i64| TrainConfig {
        train_batch_size: batch,
        valid_batch_size: config.valid_batch_size.min(batch),
        ..config.clone()
    };
    if let Some(batch) =
        halves(config.train_batch_size, 1).find(|&batch| fits(&smaller(batch), model))
    {
        let more = config.train_batch_size / batch * config.gradient_accumulation_steps as i64;
        let valid = if config.valid_batch_size > batch {
            format!(" --valid-batch-size {batch}")
        } else {
            String::new()
        };
        ways.push(format!(
            "--train-batch-size {batch} --gradient-accumulation-steps {more}{valid}"
        ));
    }
    let evaluated = TrainConfig {
        valid_batch_size: 1,
        ..config.clone()
    };
    if config.valid_batch_size > 1 && fits(&evaluated, model) {
        ways.push("--valid-batch-size 1".to_owned());
    }
    let shorter = |length: i64| TrainConfig {
        seq_length: length,
        ..config.clone()
    };
    if let Some(length) =
        halves(config.seq_length, 32).find(|&length| fits(&shorter(length), model))
    {
        ways.push(format!("--seq-length {length}"));
    }
    if ways.is_empty() {
        let least = TrainConfig {
            gradient_checkpointing: true,
            train_batch_size: 1,
            valid_batch_size: 1,
            ..config.clone()
        };
        if fits(&least, model) {
            ways.push(
                "--gradient-checkpointing --train-batch-size 1 --valid-batch-size 1".to_owned(),
            );
        }
        // Try the largest preset first.
        for name in ModelConfig::presets().rev() {
            let Some(ModelConfig { shape: preset, .. }) = ModelConfig::preset(name) else {
                continue;
            };
            let length = config.seq_length.min(preset.positions);
            let with = TrainConfig {
                seq_length: length,
                ..config.clone()
            };
            if preset.parameters() < model.parameters() && fits(&with, &preset) {
                let shorter = if length < config.seq_length {
                    format!(" --seq-length {length}")
                } else {
                    String::new()
                };
                ways.push(format!("--model {name}{shorter}"));
                break;
            }
        }
    }
    match ways.is_empty() {
        true => "train on a machine or a device with more memory".to_owned(),
        false => format!("use {}", ways.join(", or ")),
    }
}

fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        _ if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        _ => format!("{:.0} MB", bytes / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn main_memory(free: u64) -> Place {
        Place {
            name: "memory".to_owned(),
            room: Room {
                free,
                total: 24_000_000_000,
                of: "the machine",
            },
            taken: 150_000_000,
            peak: 200_000_000,
            need: Estimate::in_main,
        }
    }

    fn judged(free: u64, change: impl FnOnce(&mut TrainConfig)) -> Result<Need> {
        let mut config = TrainConfig {
            model: "gpt2".to_owned(),
            ..TrainConfig::default()
        };
        change(&mut config);
        let model = ModelConfig::preset(&config.model).expect("a preset");
        judge(&[main_memory(free)], &config, &model.shape, Device::Cpu)
    }

    #[test]
    fn a_run_that_cannot_fit_is_rejected_with_a_hint_that_fits() {
        let largest = |config: &mut TrainConfig| config.model = "codeparrot".to_owned();
        let error = judged(22_000_000_000, largest).expect_err("1.5 billion parameters");
        let message = error.message();
        assert!(
            message.contains("but only 22.0 GB of 24.0 GB are free (limited by the machine)"),
            "{message}"
        );
        assert_eq!(error.hint_text(), Some("use --model codeparrot-small"));

        let error = judged(500_000_000, |_| ()).expect_err("124 million parameters");
        assert_eq!(error.hint_text(), Some("use --model demo --seq-length 256"));

        let wide = |config: &mut TrainConfig| {
            (config.train_batch_size, config.gradient_checkpointing) = (16, false);
        };
        let error = judged(16_000_000_000, wide).expect_err("too many activations");
        let hint = error.hint_text().expect("a hint");
        assert!(
            hint.contains("--gradient-checkpointing, or --train-batch-size"),
            "{hint}"
        );
        assert!(hint.contains("--gradient-accumulation-steps"), "{hint}");
    }

    #[test]
    fn only_a_run_that_may_not_fit_causes_a_warning() {
        let fits = judged(24_000_000_000, |_| ()).expect("fits");
        assert_eq!(fits.warning, None);
        let summary = fits.summary.expect("known");
        assert!(summary.ends_with(" GB of 24.0 GB of memory"), "{summary}");
        let config = TrainConfig {
            model: "gpt2".to_owned(),
            ..TrainConfig::default()
        };
        let model = ModelConfig::preset("gpt2").expect("a preset");
        let need = Estimate::of(&config, &model.shape, Device::Cpu).in_main(Device::Cpu);
        assert!(judged(need, |_| ()).expect("just fits").warning.is_none());
        let warning = judged(need - need / 10, |_| ()).expect("may fit").warning;
        assert!(warning.expect("a warning").contains("; use --"));
        assert!(judged(need - need / 5, |_| ()).is_err());
    }
}
