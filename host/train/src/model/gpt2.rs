//! GPT-2 as in transformers' `modeling_gpt2.py`: the `config.json`, the names of the tensors, and the layers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::activation::Activation;
use super::attention::Attention;
use super::config::{Shape, Unusable};
use super::layers::{Block, Dropout, Embedding, Linear, Mlp, Norm};
use super::params::ParamMaker;
use super::{Dtypes, Layers};

/// The family's name for display.
pub(super) const TITLE: &str = "GPT-2";
/// The names of two tensors that can be tied: the output layer's and the embedding's.
pub(super) const HEAD: &str = "lm_head.weight";
pub(super) const EMBEDDING: &str = "wte.weight";

/// GPT-2's configuration, with the names and the defaults of transformers' `GPT2Config`.
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
    /// All other keys of `config.json`. They are kept because the checkpoint's `config.json` is written from
    /// this struct.
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

/// The presets: (name, layers, width, heads, positions, vocabulary).
pub(super) const PRESETS: [(&str, i64, i64, i64, i64, i64); 5] = [
    ("tiny", 2, 64, 4, 128, 1024),
    ("demo", 4, 256, 4, 256, 4096),
    ("gpt2", 12, 768, 12, 1024, 50_257),
    ("codeparrot-small", 12, 768, 12, 1024, 32_768),
    ("codeparrot", 48, 1600, 25, 1024, 32_768),
];

pub(super) const OF_GPT2: &str = "use the config.json of a GPT-2 model, as written by transformers";

/// The maximum value of each size. It ensures that products of sizes fit into 64 bits.
const LARGEST: i64 = 1 << 24;

impl Gpt2Config {
    /// Returns the configuration of a preset, or `None` if there is no preset with this name.
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
            // As in CodeParrot's initialize_model.py.
            config.scale_attn_by_inverse_layer_idx = true;
            config.reorder_and_upcast_attn = true;
        }
        if matches!(name, "tiny" | "demo") {
            // No dropout: these small models are trained for too short a time to overfit.
            (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) = (0.0, 0.0, 0.0);
        }
        Some(config)
    }

    /// Reads the configuration from the content of a `config.json`.
    pub(super) fn read(json: Value) -> Result<Self, Unusable> {
        if let Some(name) = json.get("activation_function")
            && serde_json::from_value::<Activation>(name.clone()).is_err()
        {
            let fault = format!("activation_function {name} is not supported");
            return Err(Unusable {
                fault,
                hint: "use gelu_new, gelu_pytorch_tanh, gelu, relu, silu, swish or tanh",
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

    /// Returns the shape of the model.
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
            return Some(format!("{name} is {size}, but must be from 1 to {LARGEST}"));
        }
        if self.n_embd % self.n_head != 0 {
            let (width, heads) = (self.n_embd, self.n_head);
            return Some(format!("n_embd {width} is not divisible by n_head {heads}"));
        }
        let dropouts = [
            ("resid_pdrop", self.resid_pdrop),
            ("embd_pdrop", self.embd_pdrop),
            ("attn_pdrop", self.attn_pdrop),
        ];
        if let Some((name, p)) = dropouts.iter().find(|(_, p)| !(0.0..1.0).contains(p)) {
            return Some(format!("{name} is {p}, but must be at least 0 and below 1"));
        }
        let others = [
            ("initializer_range", self.initializer_range),
            ("layer_norm_epsilon", self.layer_norm_epsilon),
        ];
        let (name, value) = others.iter().find(|(_, value)| *value < 0.0)?;
        Some(format!("{name} is {value}, but must not be negative"))
    }

    /// Returns the first setting in which two configurations differ. Ignores the size of the vocabulary. Also
    /// ignores settings that do not affect a resumed run.
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

    /// Returns the `config.json` for transformers.
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
            map.remove("torch_dtype"); // the older name of `dtype`
            map.sort_keys();
        }
        json
    }

    /// Creates the layers with new weights, in the order of transformers' `named_parameters`. Weights are
    /// drawn from a normal distribution with standard deviation `initializer_range`. The weights of
    /// projections into the residual stream are scaled by 1/sqrt(2 · layers) (GPT-2 paper, section 2.3).
    /// Norms are 1 and biases 0.
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

/// Returns the full parameter name of a tensor. In files that contain the transformer without its head, the
/// names lack the prefix `transformer.`.
pub(super) fn full_name(name: &str) -> String {
    if name.starts_with("transformer.") || name == HEAD {
        name.to_owned()
    } else {
        format!("transformer.{name}")
    }
}

/// Returns whether a tensor is a causal mask. Old files contain these masks in addition to the parameters.
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
