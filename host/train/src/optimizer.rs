//! AdamW over the plugin's parameter groups. This module calls libtorch's fused kernel with its own state
//! tensors, because tch's optimizers do not expose theirs.

use std::collections::HashMap;

use host_core::{Error, ErrorKind, ParamGroup, Result};
use tch::{Kind, Tensor, no_grad_guard};

use crate::model::Param;
use crate::torch_shim::{self, AdamW};

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101) with torch's defaults: betas 0.9 and 0.999,
/// epsilon 1e-8.
#[derive(Debug)]
pub(crate) struct Optimizer {
    groups: Vec<Group>,
    /// All parameters without duplicates. They are needed to compute the norm of the gradients.
    params: Vec<Tensor>,
    /// Number of finished steps: 0-d f32 on the parameters' device, as the kernel requires.
    step: Tensor,
}

#[derive(Debug)]
struct Group {
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    weight_decay: f64,
    lr_multiplier: f64,
}

impl Optimizer {
    /// Creates an optimizer before its first step. `groups` must have been checked.
    pub(crate) fn new(params: &[Param], groups: &[ParamGroup]) -> Self {
        let device = params
            .first()
            .map_or(tch::Device::Cpu, |param| param.tensor.device());
        let groups = groups
            .iter()
            .filter(|group| !group.params.is_empty())
            .map(|group| {
                let members = || group.params.iter().map(|&index| &params[index]);
                let zeros = || {
                    members()
                        .map(|param| param.tensor.zeros_like().set_requires_grad(false))
                        .collect()
                };
                Group {
                    names: members().map(|param| param.name.clone()).collect(),
                    params: members()
                        .map(|param| param.tensor.shallow_clone())
                        .collect(),
                    exp_avgs: zeros(),
                    exp_avg_sqs: zeros(),
                    weight_decay: group.weight_decay,
                    lr_multiplier: group.lr_multiplier,
                }
            })
            .collect();
        Self {
            groups,
            params: params
                .iter()
                .map(|param| param.tensor.shallow_clone())
                .collect(),
            step: Tensor::zeros([], (Kind::Float, device)),
        }
    }

    /// Scales the gradients down if their norm exceeds `max_norm`. If `max_norm` is 0, never scales. Returns
    /// the norm before scaling, as a 0-d tensor on the device.
    pub(crate) fn clip_gradients(&self, max_norm: f64) -> Result<Tensor> {
        torch_shim::clip_grad_norm(&self.params, max_norm)
    }

    /// Updates the parameters and clears their gradients. If `skip` (0-d f32) is 1, parameters and state do
    /// not change.
    pub(crate) fn step(&mut self, learning_rate: f64, skip: Option<&Tensor>) -> Result<()> {
        let _guard = no_grad_guard();
        let count = match skip {
            Some(skip) => 1.0 - skip,
            None => Tensor::from(1.0),
        };
        let _ = self.step.g_add_(&count);
        for group in &self.groups {
            let adamw = AdamW {
                lr: learning_rate * group.lr_multiplier,
                beta1: 0.9,
                beta2: 0.999,
                weight_decay: group.weight_decay,
                eps: 1e-8,
            };
            torch_shim::fused_adamw(
                &group.params,
                &group.exp_avgs,
                &group.exp_avg_sqs,
                &self.step,
                adamw,
                skip,
            )?;
        }
        torch_shim::clear_gradients(&self.params)
    }

    /// Returns the state by name: `step`, `exp_avg.NAME`, `exp_avg_sq.NAME`. The order is deterministic.
    pub(crate) fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = vec![("step".to_owned(), self.step.shallow_clone())];
        for group in &self.groups {
            for (index, name) in group.names.iter().enumerate() {
                state.push((
                    format!("exp_avg.{name}"),
                    group.exp_avgs[index].shallow_clone(),
                ));
                state.push((
                    format!("exp_avg_sq.{name}"),
                    group.exp_avg_sqs[index].shallow_clone(),
                ));
            }
        }
        state
    }

    /// Restores a state. The parameter groups may differ from those of the stored optimizer; the parameters
    /// must be the same.
    pub(crate) fn restore(&mut self, mut stored: HashMap<String, Tensor>) -> Result<()> {
        let _guard = no_grad_guard();
        for (name, mut tensor) in self.state() {
            match stored.remove(&name) {
                Some(value) if value.size() == tensor.size() => tensor.copy_(&value),
                _ => {
                    return Err(Error::new(
                        ErrorKind::Config,
                        format!("{name} is missing from the optimizer's state or has a wrong shape"),
                    )
                    .hint(
                        "resume with the model and configuration with which the checkpoint was written",
                    ));
                }
            }
        }
        Ok(())
    }
}
