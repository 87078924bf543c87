//! A decoder with an ordered list of named parameters. The model family defines the layers and their names.

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

/// A model. Its parameters are leaf tensors that accumulate gradients; the layers share these tensors.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(crate) config: ModelConfig,
    /// The parameters, in the order of transformers' `named_parameters`; tied weights appear once.
    pub(crate) params: Vec<Param>,
    pub(crate) device: Device,
    dtypes: Dtypes,
    layers: Layers,
}

/// The layers of a decoder.
#[derive(Debug)]
struct Layers {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: Norm,
    /// The output layer: (vocabulary, width).
    head: Tensor,
}

/// Keys and values of the previous tokens, for each block.
pub(crate) type Past = Vec<Option<BlockPast>>;

/// Returns the number of logits that exist at once in training. On the CPU, this number is small enough for
/// the cache and large enough for an efficient matrix product. On a CUDA device, an efficient product needs
/// more logits; in f32, they take a quarter of a gigabyte.
pub(crate) fn logits_at_once(device: Device) -> i64 {
    if device.is_cuda() { 1 << 26 } else { 1 << 22 }
}

impl Decoder {
    /// Creates a model with new weights.
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

    /// Loads weights that this host or transformers wrote to a folder. Names without the prefix
    /// `transformer.` are accepted, and stored attention masks are ignored.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing, unknown or unreadable, or if it has a wrong shape or type.
    /// Also returns an error if a stored head differs from the embedding to which it is tied.
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
                .hint("use the config.json that belongs to the weights in the folder")
        };
        weights::read(folder, &mut |name, stored| {
            let full = family.full_name(name);
            match wanted.remove(full.as_str()) {
                // Tensors of integers are quantized weights: their values cannot be used directly.
                Some(_) if !stored.is_floating_point() => Err(wrong(format!(
                    "{name} has the type {:?}, which is not a floating-point type",
                    stored.kind()
                ))),
                Some(tensor) if tensor.size() == stored.size() => {
                    tensor.copy_(&stored);
                    Ok(())
                }
                Some(tensor) => Err(wrong(format!(
                    "{name} has the shape {:?} in the weights but {:?} in the configuration",
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
            "the weights do not match the model; missing: [{}]; unknown: [{}]",
            missing.join(", "),
            unknown.join(", "),
        )))
    }

    /// Checks that a separately stored head equals the embedding to which it is tied.
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
            "{head} differs from {embedding}, but config.json ties them: {}",
            folder.display()
        );
        Err(Error::new(ErrorKind::Config, message).hint(
            "set \"tie_word_embeddings\": false in config.json to keep the head, or remove lm_head.weight to use the embedding",
        ))
    }

    /// Returns a description of each parameter, from which parameter groups are formed.
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

    /// Runs the forward and backward passes over `tokens`, (batch, sequence) i64. Adds the gradient of
    /// `scale` times the mean loss to the parameters' gradients, and returns the mean loss (0-d, without a
    /// graph).
    ///
    /// With `checkpointing`, blocks keep only their inputs and are computed again in the backward pass, with
    /// the same dropout.
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

    /// Computes the mean loss over all tokens except the first of each sequence. `output` is the last block's
    /// output, without a graph. The scaled loss is `scale` times the mean loss. Adds the gradients of the
    /// scaled loss to the gradients of the final norm and the head. Returns the mean loss (0-d), and the
    /// gradient of the scaled loss with respect to `output`.
    fn loss_backward(
        &self,
        output: &Tensor,
        tokens: &Tensor,
        scale: f64,
    ) -> Result<(Tensor, Tensor)> {
        let (batch, length) = (tokens.size()[0], tokens.size()[1] - 1);
        let output = output.set_requires_grad(true);
        let normed = self.layers.norm.forward(&output.narrow(1, 0, length));
        let rows = (logits_at_once(self.device) / self.config.shape.vocab_size).max(64);
        let (loss, gradient) = torch_shim::linear_cross_entropy(
            &normed.reshape([batch * length, -1]),
            &self.layers.head,
            &tokens.narrow(1, 1, length).reshape([-1]),
            (rows, scale),
            self.dtypes.compute == Kind::BFloat16,
            !self.config.shape.ties_embeddings,
        )?;
        torch_shim::backward_with(&normed, &gradient.view_as(&normed))?;
        Ok((loss, output.grad()))
    }

    /// Returns the logits of every position except the last. They are computed without dropout. Their shape
    /// is (batch, sequence - 1, vocabulary). Their type is f32, or f64 if the weights are f64.
    pub(crate) fn logits(&self, tokens: &Tensor) -> Tensor {
        let dropout = self.dropout(false);
        let embedded = self.layers.embedding.forward(tokens, 0, dropout);
        let forward = |x, block: &Block| block.forward(&x, dropout, None);
        let hidden = self.layers.blocks.iter().fold(embedded, forward);
        self.head(&hidden.narrow(1, 0, tokens.size()[1] - 1))
    }

    /// Returns the logits after the last of `tokens`: (batch, vocabulary). `past` contains the keys and
    /// values of the previous tokens. The keys and values of `tokens` are added to it.
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

    /// Maps hidden states (…, width) to logits (…, vocabulary). The logits have the type `dtypes.param`.
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
