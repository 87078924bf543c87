//! GPT-2 as transformers' `modeling_gpt2.py` has it, over an ordered list of named parameters.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use host_core::{Dtype, Error, Kind, ParamInfo, Result};
use tch::{Device, Kind as TorchKind, Tensor, no_grad_guard};

use crate::activation::Activation;
use crate::config::Precision;
use crate::model_config::ModelConfig;
use crate::precision::Arithmetic;
use crate::torch_shim;
use crate::weights;

/// A trainable tensor under its name on the Hub.
#[derive(Debug)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
}

/// The model. Its parameters are leaves that collect gradients; the layers hold the same tensors.
#[derive(Debug)]
pub(crate) struct Gpt2 {
    pub(crate) config: ModelConfig,
    /// In the order of transformers' `named_parameters`; tied weights stand here once.
    pub(crate) params: Vec<Param>,
    pub(crate) arithmetic: Arithmetic,
    pub(crate) device: Device,
    wte: Tensor,
    wpe: Tensor,
    blocks: Vec<Block>,
    ln_f: Norm,
    lm_head: Tensor,
}

#[derive(Debug)]
struct Block {
    ln_1: Norm,
    c_attn: Linear,
    c_proj: Linear,
    ln_2: Norm,
    c_fc: Linear,
    mlp_c_proj: Linear,
    activation: Activation,
    heads: i64,
    attention_scale: f64,
}

#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

/// GPT-2's `Conv1D`: the weight is (in, out).
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

/// Dropout of a pass; all 0 when the model is not training.
#[derive(Clone, Copy, Debug)]
struct Dropout {
    embedding: f64,
    attention: f64,
    residual: f64,
}

/// Logits that exist at once in training, in elements. On the CPU: few enough for the cache, enough
/// for a matrix product. A CUDA device wants more at once: a quarter of a gigabyte in f32.
pub(crate) fn logits_at_once(device: Device) -> i64 {
    if device.is_cuda() { 1 << 26 } else { 1 << 22 }
}

/// Keys and values of the tokens seen so far, one pair a block.
pub(crate) type Past = Vec<Option<(Tensor, Tensor)>>;

impl Gpt2 {
    /// A model with new weights: normal with deviation `initializer_range`, the projections into the
    /// residual stream scaled by 1/sqrt(2 layers) (GPT-2's paper, section 2.3), norms 1, biases 0.
    pub(crate) fn new(config: ModelConfig, arithmetic: Arithmetic, device: Device) -> Self {
        let _guard = no_grad_guard();
        let mut make = Maker {
            params: Vec::new(),
            kind: arithmetic.weights(),
            device,
        };
        let (e, std) = (config.n_embd, config.initializer_range);
        let residual_std = std / ((2 * config.n_layer) as f64).sqrt();
        let wte = make.normal("transformer.wte.weight", &[config.vocab_size, e], std);
        let wpe = make.normal("transformer.wpe.weight", &[config.n_positions, e], std);
        let blocks = (0..config.n_layer)
            .map(|layer| {
                let name = |part: &str| format!("transformer.h.{layer}.{part}");
                let mut attention_scale = 1.0;
                if config.scale_attn_weights {
                    attention_scale /= ((e / config.n_head) as f64).sqrt();
                }
                if config.scale_attn_by_inverse_layer_idx {
                    attention_scale /= (layer + 1) as f64;
                }
                Block {
                    ln_1: make.norm(&name("ln_1"), &config),
                    c_attn: make.linear(&name("attn.c_attn"), e, 3 * e, std),
                    c_proj: make.linear(&name("attn.c_proj"), e, e, residual_std),
                    ln_2: make.norm(&name("ln_2"), &config),
                    c_fc: make.linear(&name("mlp.c_fc"), e, config.inner(), std),
                    mlp_c_proj: make.linear(&name("mlp.c_proj"), config.inner(), e, residual_std),
                    activation: config.activation_function,
                    heads: config.n_head,
                    attention_scale,
                }
            })
            .collect();
        let ln_f = make.norm("transformer.ln_f", &config);
        let lm_head = if config.tie_word_embeddings {
            wte.shallow_clone()
        } else {
            make.normal("lm_head.weight", &[config.vocab_size, e], std)
        };
        Self {
            config,
            params: make.params,
            arithmetic,
            device,
            wte,
            wpe,
            blocks,
            ln_f,
            lm_head,
        }
    }

    /// Takes over the weights of a folder with `model.safetensors` or its shards, ours or
    /// transformers'; names without the `transformer.` prefix and stored attention masks are known.
    ///
    /// # Errors
    /// A missing, misshapen or unreadable tensor, or a head that should be the embedding and is not.
    pub(crate) fn load(&mut self, folder: &Path) -> Result<()> {
        let _guard = no_grad_guard();
        let mut wanted: HashMap<&str, &mut Tensor> = self
            .params
            .iter_mut()
            .map(|param| (param.name.as_str(), &mut param.tensor))
            .collect();
        let mut unknown = BTreeSet::new();
        let mut second_head = None;
        let wrong = |why: String| {
            let message = format!("{why}: {}", folder.display());
            Error::new(Kind::Config, message)
                .hint("the folder's config.json must be that of its weights")
        };
        weights::read(folder, &mut |name, stored| {
            let full = if name.starts_with("transformer.") || name == "lm_head.weight" {
                name.to_owned()
            } else {
                format!("transformer.{name}")
            };
            match wanted.remove(full.as_str()) {
                // Whole numbers are weights that somebody packed, and stand for others.
                Some(_) if !stored.is_floating_point() => Err(wrong(format!(
                    "{name} has the type {:?} and not a float's",
                    stored.kind()
                ))),
                Some(tensor) if tensor.size() == stored.size() => {
                    tensor.copy_(&stored);
                    Ok(())
                }
                Some(tensor) => Err(wrong(format!(
                    "{name} is {:?} in the weights and {:?} in the configuration",
                    stored.size(),
                    tensor.size(),
                ))),
                None if full == "lm_head.weight" => {
                    second_head = Some(stored);
                    Ok(())
                }
                None => {
                    // The causal masks that old checkpoints carry.
                    let expected =
                        full.ends_with(".attn.bias") || full.ends_with(".attn.masked_bias");
                    if !expected {
                        unknown.insert(name.to_owned());
                    }
                    Ok(())
                }
            }
        })?;
        let mut missing: Vec<&str> = wanted.into_keys().collect();
        missing.sort_unstable();
        if missing.is_empty() && unknown.is_empty() {
            return self.check_tied(second_head, folder);
        }
        let unknown: Vec<String> = unknown.into_iter().collect();
        Err(wrong(format!(
            "the weights are not those of this model; missing: [{}]; unknown: [{}]",
            missing.join(", "),
            unknown.join(", "),
        )))
    }

    /// A head that is stored a second time must be the embedding that it is tied to.
    fn check_tied(&self, stored: Option<Tensor>, folder: &Path) -> Result<()> {
        let Some(head) = stored.map(|head| head.to_device(self.device)) else {
            return Ok(());
        };
        if head.size() == self.wte.size() && head.to_kind(self.wte.kind()).equal(&self.wte) {
            return Ok(());
        }
        let message = format!(
            "lm_head.weight is not wte.weight, though config.json ties the two: {}",
            folder.display()
        );
        Err(Error::new(Kind::Config, message).hint(
            "\"tie_word_embeddings\": false in config.json keeps the head; without lm_head.weight the embedding takes its place",
        ))
    }

    /// The parameters for whoever groups them.
    pub(crate) fn param_infos(&self) -> Vec<ParamInfo> {
        self.params
            .iter()
            .map(|param| ParamInfo {
                name: param.name.clone(),
                shape: param.tensor.size(),
                dtype: match self.arithmetic.weights() {
                    TorchKind::Double => Dtype::F64,
                    _ => Dtype::F32,
                },
            })
            .collect()
    }

    /// Forward and backward over `tokens`, (batch, sequence) i64: adds the gradient of `scale` times
    /// the mean loss to the parameters', and returns the mean loss (0-d, without a graph).
    ///
    /// With `checkpointing`, blocks keep only their inputs and are computed again for the backward
    /// pass, with the same dropout.
    pub(crate) fn backward(
        &self,
        tokens: &Tensor,
        scale: f64,
        checkpointing: bool,
    ) -> Result<Tensor> {
        let dropout = self.dropout(true);
        let autocast = |f: &dyn Fn() -> Tensor| self.arithmetic.autocast(self.device, f);
        let embedded = autocast(&|| self.embed(tokens, 0, dropout));
        if !checkpointing {
            let output = self.blocks.iter().fold(embedded, |x, block| {
                autocast(&|| block.forward(&x, dropout, None))
            });
            let (loss, gradient) = self.loss_backward(&output.detach(), tokens, scale)?;
            torch_shim::backward_with(&output, &gradient)?;
            return Ok(loss);
        }

        let mut inputs = vec![embedded.detach()];
        let mut random = Vec::new();
        {
            let _guard = no_grad_guard();
            for block in &self.blocks {
                random.push(torch_shim::rng_state(self.device)?);
                let input = &inputs[inputs.len() - 1];
                inputs.push(autocast(&|| block.forward(input, dropout, None)));
            }
        }
        let after = torch_shim::rng_state(self.device)?;
        let (loss, mut gradient) =
            self.loss_backward(&unwrap_input(inputs.pop()), tokens, scale)?;
        for (block, random) in self.blocks.iter().zip(&random).rev() {
            let input = unwrap_input(inputs.pop()).set_requires_grad(true);
            torch_shim::set_rng_state(self.device, random)?;
            let output = autocast(&|| block.forward(&input, dropout, None));
            torch_shim::backward_with(&output, &gradient)?;
            gradient = input.grad();
        }
        torch_shim::backward_with(&embedded, &gradient)?;
        torch_shim::set_rng_state(self.device, &after)?;
        Ok(loss)
    }

    /// From the last block's output (without a graph) to the mean loss over all tokens but the
    /// first, and back: adds to the head's gradients, and returns the loss (0-d) and the gradient
    /// of `scale` times it with respect to the output.
    fn loss_backward(
        &self,
        output: &Tensor,
        tokens: &Tensor,
        scale: f64,
    ) -> Result<(Tensor, Tensor)> {
        let (batch, length) = (tokens.size()[0], tokens.size()[1] - 1);
        let output = output.set_requires_grad(true);
        let normed = self.ln_f.forward(&output.narrow(1, 0, length));
        let (loss, gradient) = torch_shim::linear_cross_entropy(
            &normed.reshape([batch * length, -1]),
            &self.lm_head,
            &tokens.narrow(1, 1, length).reshape([-1]),
            (logits_at_once(self.device) / self.config.vocab_size).max(64),
            scale,
            self.arithmetic.0 == Precision::Bf16,
        )?;
        torch_shim::backward_with(&normed, &gradient.view_as(&normed))?;
        Ok((loss, output.grad()))
    }

    /// Logits of every position but the last, (batch, sequence - 1, vocabulary) f32 (f64 where the
    /// weights are), without dropout.
    pub(crate) fn logits(&self, tokens: &Tensor) -> Tensor {
        let dropout = self.dropout(false);
        self.arithmetic.autocast(self.device, || {
            let hidden = self
                .blocks
                .iter()
                .fold(self.embed(tokens, 0, dropout), |x, block| {
                    block.forward(&x, dropout, None)
                });
            self.head(&hidden.narrow(1, 0, tokens.size()[1] - 1))
        })
    }

    /// Logits after the last of `tokens`, (batch, vocabulary), given what `past` holds of those
    /// before; it then holds these as well.
    pub(crate) fn next_logits(&self, tokens: &Tensor, past: &mut Past) -> Tensor {
        let dropout = self.dropout(false);
        past.resize_with(self.blocks.len(), || None);
        let seen = past
            .first()
            .and_then(Option::as_ref)
            .map_or(0, |(keys, _)| keys.size()[2]);
        self.arithmetic.autocast(self.device, || {
            let mut x = self.embed(tokens, seen, dropout);
            for (block, past) in self.blocks.iter().zip(past) {
                x = block.forward(&x, dropout, Some(past));
            }
            self.head(&x.select(1, -1))
        })
    }

    fn embed(&self, tokens: &Tensor, position: i64, dropout: Dropout) -> Tensor {
        let embedded = Tensor::embedding(&self.wte, tokens, -1, false, false);
        let positions = self.wpe.narrow(0, position, tokens.size()[1]);
        drop_out(embedded + positions, dropout.embedding)
    }

    fn head(&self, hidden: &Tensor) -> Tensor {
        self.ln_f
            .forward(hidden)
            .linear::<Tensor>(&self.lm_head, None)
            .to_kind(self.arithmetic.weights())
    }

    fn dropout(&self, train: bool) -> Dropout {
        let on = |p: f64| if train { p } else { 0.0 };
        Dropout {
            embedding: on(self.config.embd_pdrop),
            attention: on(self.config.attn_pdrop),
            residual: on(self.config.resid_pdrop),
        }
    }
}

impl Block {
    fn forward(
        &self,
        x: &Tensor,
        dropout: Dropout,
        past: Option<&mut Option<(Tensor, Tensor)>>,
    ) -> Tensor {
        let x = x + drop_out(
            self.attend(&self.ln_1.forward(x), dropout, past),
            dropout.residual,
        );
        let inner = self
            .activation
            .apply(&self.c_fc.forward(&self.ln_2.forward(&x)));
        &x + drop_out(self.mlp_c_proj.forward(&inner), dropout.residual)
    }

    fn attend(
        &self,
        x: &Tensor,
        dropout: Dropout,
        past: Option<&mut Option<(Tensor, Tensor)>>,
    ) -> Tensor {
        let qkv = self.c_attn.forward(x);
        let attended = match past {
            None => torch_shim::causal_attention(
                &qkv,
                self.heads,
                dropout.attention,
                self.attention_scale,
            ),
            Some(past) => self.attend_after(&qkv, past),
        };
        self.c_proj.forward(&attended)
    }

    /// Attention over what came before as well, which `past` keeps: keys and values, (batch, heads,
    /// time, width of a head) each. One new token sees all of the past; several come only with none.
    fn attend_after(&self, qkv: &Tensor, past: &mut Option<(Tensor, Tensor)>) -> Tensor {
        let (batch, time, width) = (qkv.size()[0], qkv.size()[1], qkv.size()[2] / 3);
        let parts = qkv
            .view([batch, time, 3, self.heads, width / self.heads])
            .permute([2, 0, 3, 1, 4]);
        let (query, mut keys, mut values) = (parts.get(0), parts.get(1), parts.get(2));
        let causal = past.is_none();
        if let Some((past_keys, past_values)) = past.take() {
            keys = Tensor::cat(&[past_keys, keys], 2);
            values = Tensor::cat(&[past_values, values], 2);
        }
        let attended = Tensor::scaled_dot_product_attention::<Tensor>(
            &query,
            &keys,
            &values,
            None,
            0.0,
            causal,
            self.attention_scale,
            false,
        );
        *past = Some((keys, values));
        attended.transpose(1, 2).reshape([batch, time, width])
    }
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Tensor {
        let width = self.weight.size()[0];
        x.layer_norm(
            [width],
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            true,
        )
    }
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Tensor {
        let mut shape = x.size();
        let (from, to) = (self.weight.size()[0], self.weight.size()[1]);
        if let Some(last) = shape.last_mut() {
            *last = to;
        }
        torch_shim::conv1d(&x.reshape([-1, from]), &self.weight, &self.bias).view(shape.as_slice())
    }
}

/// Makes parameters and keeps the list of them.
struct Maker {
    params: Vec<Param>,
    kind: TorchKind,
    device: Device,
}

impl Maker {
    fn normal(&mut self, name: &str, shape: &[i64], std: f64) -> Tensor {
        // Drawn on the CPU, so that a seed means the same weights on every device.
        let mut tensor = Tensor::empty(shape, (self.kind, Device::Cpu));
        let _ = tensor.normal_(0.0, std);
        self.keep(name, tensor.to_device(self.device))
    }

    fn norm(&mut self, name: &str, config: &ModelConfig) -> Norm {
        let options = (self.kind, self.device);
        Norm {
            weight: self.keep(
                &format!("{name}.weight"),
                Tensor::ones([config.n_embd], options),
            ),
            bias: self.keep(
                &format!("{name}.bias"),
                Tensor::zeros([config.n_embd], options),
            ),
            eps: config.layer_norm_epsilon,
        }
    }

    fn linear(&mut self, name: &str, from: i64, to: i64, std: f64) -> Linear {
        Linear {
            weight: self.normal(&format!("{name}.weight"), &[from, to], std),
            bias: self.keep(
                &format!("{name}.bias"),
                Tensor::zeros([to], (self.kind, self.device)),
            ),
        }
    }

    fn keep(&mut self, name: &str, tensor: Tensor) -> Tensor {
        let tensor = tensor.set_requires_grad(true);
        self.params.push(Param {
            name: name.to_owned(),
            tensor: tensor.shallow_clone(),
        });
        tensor
    }
}

fn drop_out(x: Tensor, p: f64) -> Tensor {
    if p > 0.0 { x.dropout(p, true) } else { x }
}

fn unwrap_input(input: Option<Tensor>) -> Tensor {
    input.unwrap_or_else(|| unreachable!("an input was kept for each block"))
}
