use serde::{Deserialize, Serialize};

use crate::{Dtype, Error, ErrorKind, Result};

/// A trainable parameter of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParamInfo {
    /// The parameter's name, as on the Hugging Face Hub: `transformer.h.0.ln_1.weight`.
    pub name: String,
    /// The size of each dimension.
    pub shape: Vec<i64>,
    /// Type of an element.
    pub dtype: Dtype,
}

impl ParamInfo {
    /// Returns the number of elements.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// The input to a plugin that groups parameters.
#[derive(Clone, Copy, Debug)]
pub struct GroupsRequest<'a> {
    /// The trainable parameters in the model's order; tied weights appear once.
    pub params: &'a [ParamInfo],
    /// The run's `weight_decay`, which is the default for groups that decay.
    pub weight_decay: f64,
}

/// Parameters with the same optimizer settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamGroup {
    /// A name to show to people, such as `decay`.
    pub name: String,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// The factor by which the schedule's learning rate is multiplied.
    pub lr_multiplier: f64,
    /// Indices into [`GroupsRequest::params`].
    pub params: Vec<usize>,
}

/// The port to a plugin that groups the parameters.
pub trait ParamGroups {
    /// Returns the plugin's id.
    fn id(&self) -> &str;

    /// Returns the groups. Also returns warnings about the groups, which are shown to the user. The caller
    /// checks the groups with [`check_groups`].
    fn group(&mut self, request: GroupsRequest<'_>) -> Result<(Vec<ParamGroup>, Vec<String>)>;
}

/// Checks that every parameter is in exactly one group, and that decays and multipliers are valid.
///
/// # Errors
/// Returns an error if a decay or a multiplier is invalid, or if a parameter is in no group or in several
/// groups. The error names the plugin (`by`) and the fault.
pub fn check_groups(by: &str, params: &[ParamInfo], groups: &[ParamGroup]) -> Result<()> {
    let mut times = vec![0u32; params.len()];
    for group in groups {
        if !(group.weight_decay.is_finite() && group.weight_decay >= 0.0) {
            return Err(refusal(
                by,
                format!(
                    "weight decay {} in group {:?}",
                    group.weight_decay, group.name
                ),
            ));
        }
        if !(group.lr_multiplier.is_finite() && group.lr_multiplier >= 0.0) {
            return Err(refusal(
                by,
                format!(
                    "learning-rate multiplier {} in group {:?}",
                    group.lr_multiplier, group.name
                ),
            ));
        }
        for &param in &group.params {
            match times.get_mut(param) {
                Some(n) => *n += 1,
                None => {
                    return Err(refusal(
                        by,
                        format!(
                            "parameter index {param} is out of range for {} parameters, in group {:?}",
                            params.len(),
                            group.name
                        ),
                    ));
                }
            }
        }
    }
    let names = |wanted: fn(u32) -> bool| {
        let named: Vec<&str> = std::iter::zip(params, &times)
            .filter(|&(_, &n)| wanted(n))
            .map(|(param, _)| param.name.as_str())
            .collect();
        (!named.is_empty()).then(|| named.join(", "))
    };
    let missing = names(|n| n == 0).map(|names| format!("in no group: {names}"));
    let in_which = |n: usize| {
        let holders = groups.iter().flat_map(|group| {
            let times = group.params.iter().filter(|&&param| param == n).count();
            std::iter::repeat_n(format!("{:?}", group.name), times)
        });
        holders.collect::<Vec<_>>().join(" and ")
    };
    let twice: Vec<String> = (0..params.len())
        .filter(|&n| times[n] > 1)
        .map(|n| format!("{} ({})", params[n].name, in_which(n)))
        .collect();
    let twice =
        (!twice.is_empty()).then(|| format!("in more than one group: {}", twice.join(", ")));
    match [missing, twice].into_iter().flatten().collect::<Vec<_>>() {
        faults if faults.is_empty() => Ok(()),
        faults => Err(refusal(by, faults.join("; "))),
    }
}

fn refusal(by: &str, fault: String) -> Error {
    Error::new(
        ErrorKind::Plugin,
        format!("plugin {by} returned unusable parameter groups: {fault}"),
    )
    .hint("put every trainable parameter into exactly one group; `host groups` prints the groups")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> Vec<ParamInfo> {
        ["a", "b", "c"]
            .map(|name| ParamInfo {
                name: name.to_owned(),
                shape: vec![2],
                dtype: Dtype::F32,
            })
            .to_vec()
    }

    fn group(params: &[usize]) -> ParamGroup {
        ParamGroup {
            name: "g".to_owned(),
            weight_decay: 0.1,
            lr_multiplier: 1.0,
            params: params.to_vec(),
        }
    }

    #[test]
    fn each_parameter_once_is_valid_in_any_order() {
        assert!(check_groups("x", &params(), &[group(&[2]), group(&[1, 0]), group(&[])]).is_ok());
    }

    #[test]
    fn missing_and_repeated_parameters_are_named() {
        let error =
            check_groups("x", &params(), &[group(&[0]), group(&[0, 1])]).expect_err("refused");
        assert_eq!(
            error.message(),
            "plugin x returned unusable parameter groups: in no group: c; in more than one group: a (\"g\" and \"g\")"
        );
        assert_eq!(error.kind(), ErrorKind::Plugin);
    }

    #[test]
    fn invalid_numbers_and_indices_are_rejected() {
        for (weight_decay, lr_multiplier) in [(f64::NAN, 1.0), (-0.1, 1.0), (0.0, f64::INFINITY)] {
            let odd = ParamGroup {
                weight_decay,
                lr_multiplier,
                ..group(&[0, 1, 2])
            };
            assert!(check_groups("x", &params(), &[odd]).is_err());
        }
        assert!(check_groups("x", &params(), &[group(&[0, 1, 2, 3])]).is_err());
    }
}
