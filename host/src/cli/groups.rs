use std::path::PathBuf;

use host_core::{ParamGroup, ParamInfo, Result};
use serde_json::json;

use super::{print, print_json};
use crate::config::TrainArgs;
use crate::plan::Plan;
use crate::show::number::grouped;
use crate::show::table::{Align, Table};

const EXAMPLE: &str = "\
Takes the same arguments as `host run`, and prints the groups without training.

Example:
  host groups --data ~/src --model demo --seq-length 256 --plugin weight-decay";

/// Prints the parameter groups that a run would use
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Groups {
    /// TOML file with any of the arguments below
    config: Option<PathBuf>,

    #[command(flatten)]
    train: TrainArgs,

    /// Print JSON
    #[arg(long, help_heading = "Run")]
    json: bool,
}

impl Groups {
    pub(super) fn execute(&self) -> Result<()> {
        let plan = Plan::read(self.config.as_deref(), &self.train)?;
        let grouping = crate::run::groups(&plan)?;
        if self.json {
            let mut json = as_json(&grouping.by, &grouping.params, &grouping.groups);
            json["warnings"] = json!(grouping.warnings);
            print_json(&json)
        } else {
            print(&as_text(&grouping.by, &grouping.params, &grouping.groups))
        }
    }
}

fn elements(params: &[ParamInfo], group: &ParamGroup) -> i64 {
    group.params.iter().map(|&i| params[i].numel()).sum()
}

fn as_text(by: &str, params: &[ParamInfo], groups: &[ParamGroup]) -> String {
    let mut table = Table::new([
        ("group", Align::Left),
        ("weight decay", Align::Right),
        ("lr multiplier", Align::Right),
        ("tensors", Align::Right),
        ("parameters", Align::Right),
    ]);
    for group in groups {
        table.row([
            group.name.clone(),
            group.weight_decay.to_string(),
            group.lr_multiplier.to_string(),
            group.params.len().to_string(),
            grouped(elements(params, group)),
        ]);
    }
    let total: i64 = params.iter().map(ParamInfo::numel).sum();
    table.row([
        "total".to_owned(),
        String::new(),
        String::new(),
        params.len().to_string(),
        grouped(total),
    ]);
    let mut text = format!("parameter groups by {by}\n\n{}", table.render());
    let width = params
        .iter()
        .map(|param| param.name.len())
        .max()
        .unwrap_or(0);
    for group in groups {
        text.push_str(&format!("\n{}\n", group.name));
        for &i in &group.params {
            let ParamInfo { name, shape, .. } = &params[i];
            let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
            text.push_str(&format!("  {name:<width$}  {}\n", shape.join(" × ")));
        }
    }
    text
}

fn as_json(by: &str, params: &[ParamInfo], groups: &[ParamGroup]) -> serde_json::Value {
    let group = |group: &ParamGroup| {
        let members: Vec<_> = group
            .params
            .iter()
            .map(|&i| json!({ "name": params[i].name, "shape": params[i].shape }))
            .collect();
        json!({
            "name": group.name,
            "weight_decay": group.weight_decay,
            "lr_multiplier": group.lr_multiplier,
            "elements": elements(params, group),
            "params": members,
        })
    };
    json!({ "plugin": by, "groups": groups.iter().map(group).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::Dtype;

    fn example() -> (Vec<ParamInfo>, Vec<ParamGroup>) {
        let param = |name: &str, shape: &[i64]| ParamInfo {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype: Dtype::F32,
        };
        let group = |name: &str, weight_decay, params: &[usize]| ParamGroup {
            name: name.to_owned(),
            weight_decay,
            lr_multiplier: 1.0,
            params: params.to_vec(),
        };
        (
            vec![param("wte.weight", &[100, 20]), param("ln_f.bias", &[20])],
            vec![group("decay", 0.1, &[0]), group("no_decay", 0.0, &[1])],
        )
    }

    #[test]
    fn the_table_adds_up_and_names_every_parameter() {
        let (params, groups) = example();
        assert_eq!(
            as_text("weight-decay", &params, &groups),
            "\
parameter groups by weight-decay

group     weight decay  lr multiplier  tensors  parameters
decay              0.1              1        1       2,000
no_decay             0              1        1          20
total                                        2       2,020

decay
  wte.weight  100 × 20

no_decay
  ln_f.bias   20
"
        );
    }

    #[test]
    fn the_json_has_the_same_values() {
        let (params, groups) = example();
        let json = as_json("weight-decay", &params, &groups);
        assert_eq!(json["groups"][0]["elements"], 2000);
        assert_eq!(json["groups"][1]["params"][0]["name"], "ln_f.bias");
    }
}
