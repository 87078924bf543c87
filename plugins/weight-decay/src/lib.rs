//! Creates two parameter groups: one with weight decay and one without. The group without weight decay
//! contains the parameters whose names contain one of the `no_decay` patterns. By default, these parameters
//! are biases and norms.

#![forbid(unsafe_code)]

use host_plugin_sdk::{Error, Groups, GroupsRequest, Host, ParamGroups, Result, export_plugin};
use serde::Deserialize;

/// The default patterns. They match the names of biases and norms in the BERT and GPT-2 families.
const NO_DECAY: [&str; 5] = [
    "bias",
    "LayerNorm.weight",
    "ln_1.weight",
    "ln_2.weight",
    "ln_f.weight",
];

/// The settings; `config.schema.json` describes them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    no_decay: Option<Vec<String>>,
    weight_decay: Option<f64>,
}

/// Groups parameters by name.
#[derive(Debug)]
pub struct WeightDecay {
    /// The patterns that the user configured. `None` if they are the default patterns. The host passes the
    /// default patterns if the setting is missing.
    no_decay: Option<Vec<String>>,
    weight_decay: Option<f64>,
}

impl ParamGroups for WeightDecay {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self> {
        if let Some(weight_decay) = config.weight_decay
            && weight_decay < 0.0
        {
            return Err(Error::new(format!(
                "weight_decay must not be negative, but is {weight_decay}"
            )));
        }
        if config.no_decay.iter().flatten().any(String::is_empty) {
            return Err(Error::new(
                "an empty no_decay pattern matches every parameter; set weight_decay=0 instead",
            ));
        }
        Ok(Self {
            no_decay: config.no_decay.filter(|given| *given != NO_DECAY),
            weight_decay: config.weight_decay,
        })
    }

    fn group(&mut self, request: &GroupsRequest<'_>, groups: &mut Groups<'_>) -> Result<()> {
        for pattern in self.no_decay.iter().flatten() {
            let matches = |name: &str| name.contains(pattern.as_str());
            if !request.params().iter().any(|param| matches(param.name())) {
                groups.warn(&format!("no_decay {pattern:?} matches no parameter"));
            }
        }
        let weight_decay = self.weight_decay.unwrap_or(request.weight_decay());
        for (name, decays, weight_decay) in
            [("decay", true, weight_decay), ("no_decay", false, 0.0)]
        {
            let mut members = request
                .params()
                .iter()
                .enumerate()
                .filter(|(_, param)| self.decays(param.name()) == decays)
                .peekable();
            if members.peek().is_none() {
                continue;
            }
            let group = groups.add_group(name, weight_decay, 1.0)?;
            for (index, _) in members {
                groups.assign(index, group)?;
            }
        }
        Ok(())
    }
}

impl WeightDecay {
    fn decays(&self, name: &str) -> bool {
        match &self.no_decay {
            Some(given) => !given.iter().any(|pattern| name.contains(pattern)),
            None => !NO_DECAY.iter().any(|pattern| name.contains(pattern)),
        }
    }
}

export_plugin! {
    description: "Parameter groups with and without weight decay, selected by parameter name",
    param_groups: WeightDecay,
    config: "config.schema.json",
}

#[cfg(test)]
mod tests {
    use host_plugin_sdk::fake::{self, Grouping, Param};

    use super::*;

    /// Returns the parameters of a GPT-2 with one layer.
    fn gpt2() -> Vec<Param> {
        [
            ("transformer.wte.weight", &[64, 8][..]),
            ("transformer.wpe.weight", &[16, 8]),
            ("transformer.h.0.ln_1.weight", &[8]),
            ("transformer.h.0.ln_1.bias", &[8]),
            ("transformer.h.0.attn.c_attn.weight", &[8, 24]),
            ("transformer.h.0.attn.c_attn.bias", &[24]),
            ("transformer.h.0.ln_2.weight", &[8]),
            ("transformer.h.0.mlp.c_fc.weight", &[8, 32]),
            ("transformer.ln_f.weight", &[8]),
        ]
        .map(|(name, shape)| Param::new(name, shape))
        .to_vec()
    }

    fn group(config: &str, params: &[Param]) -> Grouping {
        fake::Plugin::load(&PLUGIN)
            .param_groups(config)
            .expect("created")
            .group(params, 0.1)
            .expect("grouped")
    }

    #[test]
    fn biases_and_norms_are_not_decayed() {
        let grouping = group("{}", &gpt2());
        let [decay, no_decay] = grouping.groups.as_slice() else {
            panic!("{grouping:?}");
        };
        assert_eq!((decay.name.as_str(), decay.weight_decay), ("decay", 0.1));
        assert_eq!(
            decay.params,
            [
                "transformer.wte.weight",
                "transformer.wpe.weight",
                "transformer.h.0.attn.c_attn.weight",
                "transformer.h.0.mlp.c_fc.weight",
            ]
        );
        assert_eq!(
            (no_decay.name.as_str(), no_decay.weight_decay),
            ("no_decay", 0.0)
        );
        assert_eq!(no_decay.params.len(), 5);
        assert_eq!((decay.lr_multiplier, no_decay.lr_multiplier), (1.0, 1.0));
        // The default pattern `LayerNorm.weight` matches no parameter of GPT-2. It causes no warning.
        assert!(grouping.warnings.is_empty());
    }

    #[test]
    fn the_order_of_the_parameters_does_not_matter() {
        let sorted = |mut params: Vec<Param>, rotation: usize| {
            params.rotate_left(rotation);
            let mut grouping = group("{}", &params);
            for group in &mut grouping.groups {
                group.params.sort();
            }
            grouping
        };
        for rotation in 1..gpt2().len() {
            assert_eq!(sorted(gpt2(), 0), sorted(gpt2(), rotation));
        }
    }

    #[test]
    fn the_users_patterns_replace_the_default() {
        let grouping = group(r#"{"no_decay": ["wte", "ln_"]}"#, &gpt2());
        assert_eq!(
            grouping.groups[1].params,
            [
                "transformer.wte.weight",
                "transformer.h.0.ln_1.weight",
                "transformer.h.0.ln_1.bias",
                "transformer.h.0.ln_2.weight",
                "transformer.ln_f.weight",
            ]
        );
        assert!(grouping.warnings.is_empty());
    }

    #[test]
    fn a_users_pattern_that_matches_nothing_is_warned_of() {
        let grouping = group(r#"{"no_decay": ["bias", "layer_norm"]}"#, &gpt2());
        assert_eq!(
            grouping.warnings,
            [r#"no_decay "layer_norm" matches no parameter"#]
        );
    }

    #[test]
    fn an_empty_group_is_not_added() {
        let names = |grouping: Grouping| -> Vec<String> {
            grouping
                .groups
                .into_iter()
                .map(|group| group.name)
                .collect()
        };
        assert_eq!(names(group(r#"{"no_decay": []}"#, &gpt2())), ["decay"]);
        assert_eq!(
            names(group("{}", &[Param::new("b.bias", &[1])])),
            ["no_decay"]
        );
        assert!(group("{}", &[]).groups.is_empty());
    }

    #[test]
    fn the_users_weight_decay_overrides_the_runs() {
        let grouping = group(r#"{"weight_decay": 0.01}"#, &gpt2());
        assert_eq!(grouping.groups[0].weight_decay, 0.01);
        assert_eq!(grouping.groups[1].weight_decay, 0.0);
    }

    #[test]
    fn invalid_settings_are_refused() {
        let plugin = fake::Plugin::load(&PLUGIN);
        for (config, says) in [
            (r#"{"weight_decay": -0.1}"#, "must not be negative"),
            (r#"{"no_decay": [""]}"#, "matches every parameter"),
            (r#"{"no_decay": "bias"}"#, "bad configuration"),
            (r#"{"nodecay": []}"#, "unknown field `nodecay`"),
        ] {
            let failure = plugin.param_groups(config).expect_err(config);
            assert!(failure.message.contains(says), "{failure}");
        }
    }

    #[test]
    fn the_schema_names_the_default() {
        let plugin = fake::Plugin::load(&PLUGIN);
        let properties = &plugin.manifest()["config"]["properties"];
        assert_eq!(
            properties["no_decay"]["default"],
            serde_json::json!(NO_DECAY)
        );
    }
}
