"""Writes golden data from the reference: transformers' GPT-2 and torch's AdamW.

For each configuration and data type, writes one safetensors file: the initial weights; the logits, loss and
gradients of a batch; and the weights after 20 optimizer steps. The host's parity tests compare their results with it.

Usage: golden.py FOLDER
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, get_scheduler

STEPS, ACCUMULATION, BATCH = 20, 2, 3
NO_DECAY = ["bias", "ln_1.weight", "ln_2.weight", "ln_f.weight"]
SCHEDULES = [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "warmup_stable_decay",
]
CONFIGS = {
    "tied": dict(vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=3),
    "untied": dict(vocab_size=40, n_positions=12, n_embd=16, n_layer=3, n_head=2, tie_word_embeddings=False),
    "odd": dict(
        vocab_size=53, n_positions=11, n_embd=21, n_layer=2, n_head=3, n_inner=37, layer_norm_epsilon=1e-6
    ),
    "inverse": dict(
        vocab_size=61, n_positions=16, n_embd=16, n_layer=4, n_head=4, scale_attn_by_inverse_layer_idx=True
    ),
}


def weights(model, prefix):
    return {f"{prefix}/{name}": p.detach().clone() for name, p in model.named_parameters()}


def mean_loss(logits, tokens):
    """Returns the loss as transformers defines it. transformers itself computes it in f32 even for an f64
    model."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def golden(config, dtype):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).to(dtype).train()
    for p in model.parameters():  # biases of 0 and norm weights of 1 would hide mistakes
        p.data += 0.05 * torch.randn_like(p)
    length = config.n_positions
    tokens = torch.randint(config.vocab_size, (STEPS * ACCUMULATION, BATCH, length))
    data = {"tokens": tokens, **weights(model, "w0")}

    logits = model(tokens[0]).logits
    loss = mean_loss(logits, tokens[0])
    loss.backward()
    data["logits"], data["loss"] = logits.detach().clone(), loss.detach().clone()
    data |= {f"gradient/{name}": p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    decay = [p for name, p in model.named_parameters() if not any(nd in name for nd in NO_DECAY)]
    no_decay = [p for name, p in model.named_parameters() if any(nd in name for nd in NO_DECAY)]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=5, num_training_steps=STEPS)
    losses = []
    for step in range(STEPS):
        total = 0.0
        for batch in tokens[step * ACCUMULATION : (step + 1) * ACCUMULATION]:
            loss = mean_loss(model(batch).logits, batch) / ACCUMULATION
            loss.backward()
            total += loss.item()
        losses.append(total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    data["losses"] = torch.tensor(losses, dtype=torch.float64)
    return data | weights(model, "w20")


def schedule(name):
    """Returns the first 40 learning rates of a schedule for 30 steps, with 5 warm-up steps and a peak of 1e-3."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    extra = dict(scheduler_specific_kwargs=dict(num_decay_steps=8)) if name == "warmup_stable_decay" else {}
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=30, **extra)
    rates = []
    for _ in range(40):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "schedules.json").write_text(json.dumps({name: schedule(name) for name in SCHEDULES}))
for name, sizes in CONFIGS.items():
    config = GPT2Config(
        **sizes,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
    )
    for short, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        data = {key: value.contiguous() for key, value in golden(config, dtype).items()}
        save_file(data, folder / f"{name}-{short}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(config.to_dict()))
