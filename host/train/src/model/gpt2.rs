//! GPT-2 as transformers' `modeling_gpt2.py` has it: its `config.json`, the names of its tensors, and its
//! layers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::activation::Activation;
use super::attention::Attention;
use super::config::{Shape, Unusable};
use super::layers::{Block, Dropout, Embedding, Linear, Mlp, Norm};
use super::params::ParamMaker;
use super::{Dtypes, Layers};

/// The name of the family, for people.
pub(super) const TITLE: &str = "GPT-2";
/// The output layer, and the embedding that it is tied to.
pub(super) const HEAD: &str = "lm_head.weight";
pub(super) const EMBEDDING: &str = "wte.weight";

/// GPT-2's configuration, by the names of transformers' `GPT2Config`, with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Gpt2Config {
    pub(super) model_type: String,
    pub(super) vocab_size: i64,
    pub(super) n_positions: i64,
    pub(super) n_embd: i64,
    pub(super) n_layer: i64,
    pub(super) n_head: i64,
    pub(super) n_inner: Option<i64>,
    pub(super) activation_function: Activation,
    pub(super) resid_pdrop: f64,
    pub(super) embd_pdrop: f64,
    pub(super) attn_pdrop: f64,
    pub(super) layer_norm_epsilon: f64,
    pub(super) initializer_range: f64,
    pub(super) scale_attn_weights: bool,
    pub(super) scale_attn_by_inverse_layer_idx: bool,
    pub(super) reorder_and_upcast_attn: bool,
    pub(super) tie_word_embeddings: bool,
    /// What else the file says: kept, since the checkpoint's `config.json` is written from this.
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            model_type: "gpt2".to_owned(),
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluNew,
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            reorder_and_upcast_attn: false,
            tie_word_embeddings: true,
            rest: Map::new(),
        }
    }
}

/// Shapes by name: (name, layers, width, heads, positions, vocabulary).
pub(super) const PRESETS: [(&str, i64, i64, i64, i64, i64); 5] = [
    ("tiny", 2, 64, 4, 128, 1024),
    ("demo", 4, 256, 4, 256, 4096),
    ("gpt2", 12, 768, 12, 1024, 50_257),
    ("codeparrot-small", 12, 768, 12, 1024, 32_768),
    ("codeparrot", 48, 1600, 25, 1024, 32_768),
];

pub(super) const OF_GPT2: &str = "it must be the config.json of a GPT-2, as transformers writes it";

/// The largest size of anything: what is computed with sizes then fits into 64 bits.
const LARGEST: i64 = 1 << 24;

impl Gpt2Config {
    /// The shape that a preset's name stands for.
    pub(super) fn preset(name: &str) -> Option<Self> {
        let &(_, n_layer, n_embd, n_head, n_positions, vocab_size) =
            PRESETS.iter().find(|preset| preset.0 == name)?;
        let mut config = Self {
            n_layer,
            n_embd,
            n_head,
            n_positions,
            vocab_size,
            ..Self::default()
        };
        if name.starts_with("codeparrot") {
            // As CodeParrot's initialize_model.py has it.
            config.scale_attn_by_inverse_layer_idx = true;
            config.reorder_and_upcast_attn = true;
        }
        if matches!(name, "tiny" | "demo") {
            // Small models on little data do not overfit in the time they are given.
            (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) = (0.0, 0.0, 0.0);
        }
        Some(config)
    }

    /// The configuration that a `config.json` states.
    pub(super) fn read(json: Value) -> Result<Self, Unusable> {
        if let Some(name) = json.get("activation_function")
            && serde_json::from_value::<Activation>(name.clone()).is_err()
        {
            let fault = format!("activation_function {name} is not built in");
            return Err(Unusable {
                fault,
                hint: "there are gelu_new, gelu_pytorch_tanh, gelu, relu, silu, swish and tanh",
            });
        }
        let of_gpt2 = |fault| Unusable {
            fault,
            hint: OF_GPT2,
        };
        let config: Self =
            serde_json::from_value(json).map_err(|error| of_gpt2(error.to_string()))?;
        match config.fault() {
            Some(fault) => Err(of_gpt2(fault)),
            None => Ok(config),
        }
    }

    /// What it means, in no family's names.
    pub(super) fn shape(&self) -> Shape {
        Shape {
            vocab_size: self.vocab_size,
            positions: self.n_positions,
            layers: self.n_layer,
            width: self.n_embd,
            heads: self.n_head,
            inner: self.inner(),
            ties_embeddings: self.tie_word_embeddings,
            dropout: Dropout {
                embedding: self.embd_pdrop,
                attention: self.attn_pdrop,
                residual: self.resid_pdrop,
            },
        }
    }

    fn inner(&self) -> i64 {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    fn fault(&self) -> Option<String> {
        let inner = self.n_inner.unwrap_or(1);
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", inner),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=LARGEST).contains(size)) {
            return Some(format!("{name} is {size}, and not in 1 to {LARGEST}"));
        }
        if self.n_embd % self.n_head != 0 {
            let (width, heads) = (self.n_embd, self.n_head);
            return Some(format!("n_embd {width} does not divide by n_head {heads}"));
        }
        let dropouts = [
            ("resid_pdrop", self.resid_pdrop),
            ("embd_pdrop", self.embd_pdrop),
            ("attn_pdrop", self.attn_pdrop),
        ];
        if let Some((name, p)) = dropouts.iter().find(|(_, p)| !(0.0..1.0).contains(p)) {
            return Some(format!("{name} is {p}, and not in 0 to below 1"));
        }
        let others = [
            ("initializer_range", self.initializer_range),
            ("layer_norm_epsilon", self.layer_norm_epsilon),
        ];
        let (name, value) = others.iter().find(|(_, value)| *value < 0.0)?;
        Some(format!("{name} is {value}, and must not be negative"))
    }

    /// What two configurations differ in first, but for the rows of the vocabulary and what is only said.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let of = |config: &Self| {
            serde_json::to_value(Self {
                n_inner: Some(config.inner()),
                ..config.clone()
            })
            .unwrap_or_default()
        };
        let (one, two) = (of(self), of(other));
        let names = [
            "n_layer",
            "n_embd",
            "n_head",
            "n_positions",
            "n_inner",
            "activation_function",
            "tie_word_embeddings",
            "layer_norm_epsilon",
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "resid_pdrop",
            "embd_pdrop",
            "attn_pdrop",
        ];
        names.into_iter().find(|name| one[name] != two[name])
    }

    /// `config.json` as transformers reads it.
    pub(super) fn to_json(&self, end_of_text: i64, dtype: &str) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(map) = &mut json {
            map.insert(
                "architectures".to_owned(),
                serde_json::json!(["GPT2LMHeadModel"]),
            );
            map.insert("bos_token_id".to_owned(), end_of_text.into());
            map.insert("eos_token_id".to_owned(), end_of_text.into());
            map.insert("dtype".to_owned(), dtype.into());
            map.remove("torch_dtype"); // dtype's older name
            map.sort_keys();
        }
        json
    }

    /// The layers with new weights: normal with deviation `initializer_range`, the projections into the
    /// residual stream scaled by 1/sqrt(2 layers) (GPT-2's paper, section 2.3), norms 1, biases 0. In the
    /// order of transformers' `named_parameters`.
    pub(super) fn layers(&self, dtypes: Dtypes, maker: &mut ParamMaker) -> Layers {
        let (width, inner, std) = (self.n_embd, self.inner(), self.initializer_range);
        let residual_std = std / ((2 * self.n_layer) as f64).sqrt();
        let embedding = Embedding {
            tokens: maker.normal("transformer.wte.weight", &[self.vocab_size, width], std),
            positions: maker.normal("transformer.wpe.weight", &[self.n_positions, width], std),
        };
        let norm = |maker: &mut ParamMaker, name: &str| Norm {
            weight: maker.constant(&format!("{name}.weight"), &[width], 1.0),
            bias: maker.constant(&format!("{name}.bias"), &[width], 0.0),
            eps: self.layer_norm_epsilon,
        };
        let linear = |maker: &mut ParamMaker, name: &str, from: i64, to: i64, std: f64| Linear {
            weight: maker.normal(&format!("{name}.weight"), &[from, to], std),
            bias: maker.constant(&format!("{name}.bias"), &[to], 0.0),
            compute: dtypes.compute,
        };
        let block = |layer: i64| {
            let name = |part: &str| format!("transformer.h.{layer}.{part}");
            Block {
                attention_norm: norm(maker, &name("ln_1")),
                attention: Attention {
                    qkv: linear(maker, &name("attn.c_attn"), width, 3 * width, std),
                    out: linear(maker, &name("attn.c_proj"), width, width, residual_std),
                    heads: self.n_head,
                    scale: self.attention_scale(layer),
                },
                mlp_norm: norm(maker, &name("ln_2")),
                mlp: Mlp {
                    up: linear(maker, &name("mlp.c_fc"), width, inner, std),
                    activation: self.activation_function,
                    down: linear(maker, &name("mlp.c_proj"), inner, width, residual_std),
                },
            }
        };
        let blocks = (0..self.n_layer).map(block).collect();
        let norm = norm(maker, "transformer.ln_f");
        let head = if self.tie_word_embeddings {
            embedding.tokens.shallow_clone()
        } else {
            maker.normal(HEAD, &[self.vocab_size, width], std)
        };
        Layers {
            embedding,
            blocks,
            norm,
            head,
        }
    }

    fn attention_scale(&self, layer: i64) -> f64 {
        let mut scale = 1.0;
        if self.scale_attn_weights {
            scale /= ((self.n_embd / self.n_head) as f64).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f64;
        }
        scale
    }
}

/// A tensor's name as a parameter has it: files of the bare transformer lack the prefix.
pub(super) fn full_name(name: &str) -> String {
    if name.starts_with("transformer.") || name == HEAD {
        name.to_owned()
    } else {
        format!("transformer.{name}")
    }
}

/// Whether a tensor is one that old files have beside the parameters: a causal mask.
pub(super) fn is_obsolete(full_name: &str) -> bool {
    full_name.ends_with(".attn.bias") || full_name.ends_with(".attn.masked_bias")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_published_sizes() {
        let small = Gpt2Config::preset("codeparrot-small").expect("a preset");
        assert_eq!(
            (small.n_layer, small.n_embd, small.vocab_size),
            (12, 768, 32_768)
        );
        assert!(small.scale_attn_by_inverse_layer_idx && small.resid_pdrop == 0.1);
        assert_eq!(Gpt2Config::preset("gpt2"), Some(Gpt2Config::default()));
        assert_eq!(Gpt2Config::preset("gpt3"), None);
    }

    #[test]
    fn configurations_are_compared_without_the_vocabulary() {
        let tiny = Gpt2Config::preset("tiny").expect("a preset");
        let mut other = Gpt2Config {
            vocab_size: 5,
            n_inner: Some(256),
            ..tiny.clone()
        };
        assert_eq!(tiny.difference(&other), None);
        other.n_layer += 1;
        assert_eq!(tiny.difference(&other), Some("n_layer"));
        other.n_layer -= 1;
        other.attn_pdrop = 0.5;
        assert_eq!(tiny.difference(&other), Some("attn_pdrop"));
    }
}
