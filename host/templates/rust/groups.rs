//! Two parameter groups by shape: matrices and embeddings have weight decay, vectors (biases and norms)
//! have none.

#![forbid(unsafe_code)]

use host_plugin_sdk::{Groups, GroupsRequest, Host, ParamGroups, Result, export_plugin};
use serde::Deserialize;

/// The settings, which `config.schema.json` describes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    weight_decay: Option<f64>,
}

/// Groups parameters by their number of dimensions.
#[derive(Debug)]
pub struct ByShape(Config);

impl ParamGroups for ByShape {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self> {
        Ok(Self(config))
    }

    fn group(&mut self, request: &GroupsRequest<'_>, groups: &mut Groups<'_>) -> Result<()> {
        let weight_decay = self.0.weight_decay.unwrap_or(request.weight_decay());
        // The 1.0 is the learning rate multiplier.
        let decay = groups.add_group("decay", weight_decay, 1.0)?;
        let no_decay = groups.add_group("no_decay", 0.0, 1.0)?;
        for (index, param) in request.params().iter().enumerate() {
            let decays = param.shape().len() >= 2;
            groups.assign(index, if decays { decay } else { no_decay })?;
        }
        Ok(())
    }
}

export_plugin! {
    description: "Weight decay for matrices and embeddings, none for vectors",
    param_groups: ByShape,
    config: "config.schema.json",
}

#[cfg(test)]
mod tests {
    use host_plugin_sdk::fake::{Param, Plugin};

    use super::*;

    #[test]
    fn vectors_have_no_weight_decay() {
        let params = [
            Param::new("transformer.wte.weight", &[64, 8]),
            Param::new("transformer.h.0.ln_1.weight", &[8]),
            Param::new("transformer.h.0.mlp.c_fc.weight", &[8, 32]),
        ];
        for (config, weight_decay) in [("{}", 0.1), (r#"{"weight_decay": 0.3}"#, 0.3)] {
            let mut grouper = Plugin::load(&PLUGIN).param_groups(config).expect("created");
            let groups = grouper.group(&params, 0.1).expect("grouped").groups;
            assert_eq!(groups[0].params, [&*params[0].name, &params[2].name]);
            assert_eq!(groups[0].weight_decay, weight_decay);
            assert_eq!(groups[1].params, [&*params[1].name]);
            assert_eq!(groups[1].weight_decay, 0.0);
        }
    }
}
