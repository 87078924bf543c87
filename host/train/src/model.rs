//! A decoder over an ordered list of named parameters; its family says what the layers are and what they are
//! called.

mod activation;
mod attention;
mod config;
pub(crate) mod flops;
mod gpt2;
mod layers;
mod params;
mod precision;
mod source;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use host_core::{Dtype, Error, ErrorKind, ParamInfo, Result};
use tch::{Device, Kind, Tensor, no_grad_guard};

use self::attention::Past as BlockPast;
pub(crate) use self::config::{ModelConfig, Shape};
use self::layers::{Block, Dropout, Embedding, Norm};
pub(crate) use self::params::Param;
use self::params::ParamMaker;
pub(crate) use self::precision::Dtypes;
pub(crate) use self::source::ModelSource;
use crate::torch_shim;
use crate::weights;

/// A model. Its parameters are leaves that collect gradients; the layers hold the same tensors.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(crate) config: ModelConfig,
    /// In the order of transformers' `named_parameters`; tied weights stand here once.
    pub(crate) params: Vec<Param>,
    pub(crate) device: Device,
    dtypes: Dtypes,
    layers: Layers,
}

/// What a decoder computes with.
#[derive(Debug)]
struct Layers {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: Norm,
    /// The output layer: (vocabulary, width).
    head: Tensor,
}

/// Keys and values of the tokens seen so far, for each block.
pub(crate) type Past = Vec<Option<BlockPast>>;

/// Logits that exist at once in training, in elements. On the CPU: few enough for the cache, enough
/// for a matrix product. A CUDA device wants more at once: a quarter of a gigabyte in f32.
pub(crate) fn logits_at_once(device: Device) -> i64 {
    if device.is_cuda() { 1 << 26 } else { 1 << 22 }
}

impl Decoder {
    /// A model with new weights.
    pub(crate) fn new(config: ModelConfig, dtypes: Dtypes, device: Device) -> Self {
        let _guard = no_grad_guard();
        let mut maker = ParamMaker {
            params: Vec::new(),
            kind: dtypes.param,
            device,
        };
        let layers = config.family.layers(dtypes, &mut maker);
        Self {
            params: maker.params,
            config,
            device,
            dtypes,
            layers,
        }
    }

    /// Takes over the weights of a folder with `model.safetensors` or its shards, ours or
    /// transformers'; names without the `transformer.` prefix and stored attention masks are known.
    ///
    /// # Errors
    /// A missing, misshapen or unreadable tensor, or a head that should be the embedding and is not.
    pub(crate) fn load(&mut self, folder: &Path) -> Result<()> {
        let _guard = no_grad_guard();
        let family = &self.config.family;
        let [head, _] = family.tied();
        let mut wanted: HashMap<&str, &mut Tensor> = self
            .params
            .iter_mut()
            .map(|param| (param.name.as_str(), &mut param.tensor))
            .collect();
        let mut unknown = BTreeSet::new();
        let mut second_head = None;
        let wrong = |why: String| {
            let message = format!("{why}: {}", folder.display());
            Error::new(ErrorKind::Config, message)
                .hint("the folder's config.json must be that of its weights")
        };
        weights::read(folder, &mut |name, stored| {
            let full = family.full_name(name);
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
                None if full == head => {
                    second_head = Some(stored);
                    Ok(())
                }
                None => {
                    if !family.is_obsolete(&full) {
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
        let embedding = &self.layers.embedding.tokens;
        if head.size() == embedding.size() && head.to_kind(embedding.kind()).equal(embedding) {
            return Ok(());
        }
        let [head, embedding] = self.config.family.tied();
        let message = format!(
            "{head} is not {embedding}, though config.json ties the two: {}",
            folder.display()
        );
        Err(Error::new(ErrorKind::Config, message).hint(
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
                dtype: match self.dtypes.param {
                    Kind::Double => Dtype::F64,
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
        let embedded = self.layers.embedding.forward(tokens, 0, dropout);
        let blocks = &self.layers.blocks;
        if !checkpointing {
            let forward = |x, block: &Block| block.forward(&x, dropout, None);
            let output = blocks.iter().fold(embedded, forward);
            let (loss, gradient) = self.loss_backward(&output.detach(), tokens, scale)?;
            torch_shim::backward_with(&output, &gradient)?;
            return Ok(loss);
        }

        let mut inputs = vec![embedded.detach()];
        let mut random = Vec::new();
        {
            let _guard = no_grad_guard();
            for block in blocks {
                random.push(torch_shim::rng_state(self.device)?);
                let input = &inputs[inputs.len() - 1];
                inputs.push(block.forward(input, dropout, None));
            }
        }
        let after = torch_shim::rng_state(self.device)?;
        let (loss, mut gradient) =
            self.loss_backward(&unwrap_input(inputs.pop()), tokens, scale)?;
        for (block, random) in blocks.iter().zip(&random).rev() {
            let input = unwrap_input(inputs.pop()).set_requires_grad(true);
            torch_shim::set_rng_state(self.device, random)?;
            let output = block.forward(&input, dropout, None);
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
        let normed = self.layers.norm.forward(&output.narrow(1, 0, length));
        let (loss, gradient) = torch_shim::linear_cross_entropy(
            &normed.reshape([batch * length, -1]),
            &self.layers.head,
            &tokens.narrow(1, 1, length).reshape([-1]),
            (logits_at_once(self.device) / self.config.shape.vocab_size).max(64),
            scale,
            self.dtypes.compute == Kind::BFloat16,
        )?;
        torch_shim::backward_with(&normed, &gradient.view_as(&normed))?;
        Ok((loss, output.grad()))
    }

    /// Logits of every position but the last, (batch, sequence - 1, vocabulary) f32 (f64 where the
    /// weights are), without dropout.
    pub(crate) fn logits(&self, tokens: &Tensor) -> Tensor {
        let dropout = self.dropout(false);
        let embedded = self.layers.embedding.forward(tokens, 0, dropout);
        let forward = |x, block: &Block| block.forward(&x, dropout, None);
        let hidden = self.layers.blocks.iter().fold(embedded, forward);
        self.head(&hidden.narrow(1, 0, tokens.size()[1] - 1))
    }

    /// Logits after the last of `tokens`, (batch, vocabulary), given what `past` holds of those
    /// before; it then holds these as well.
    pub(crate) fn next_logits(&self, tokens: &Tensor, past: &mut Past) -> Tensor {
        let dropout = self.dropout(false);
        past.resize_with(self.layers.blocks.len(), || None);
        let seen = past
            .first()
            .and_then(Option::as_ref)
            .map_or(0, |(keys, _)| keys.size()[2]);
        let mut x = self.layers.embedding.forward(tokens, seen, dropout);
        for (block, past) in self.layers.blocks.iter().zip(past) {
            x = block.forward(&x, dropout, Some(past));
        }
        self.head(&x.select(1, -1))
    }

    /// (…, vocabulary) `param` of (…, width).
    fn head(&self, hidden: &Tensor) -> Tensor {
        let compute = self.dtypes.compute;
        let normed = self.layers.norm.forward(hidden).to_kind(compute);
        let head = self.layers.head.to_kind(compute);
        let logits = normed.linear::<Tensor>(&head, None);
        logits.to_kind(self.dtypes.param)
    }

    fn dropout(&self, train: bool) -> Dropout {
        if train {
            self.config.shape.dropout
        } else {
            Dropout::default()
        }
    }
}

fn unwrap_input(input: Option<Tensor>) -> Tensor {
    input.unwrap_or_else(|| unreachable!("an input was kept for each block"))
}
