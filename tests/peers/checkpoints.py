"""Exchanges checkpoints: transformers loads the host's checkpoints, and the host loads those of transformers.

Both evaluate the same text, and the losses must agree to 1e-4. Usage: checkpoints.py HOST FOLDER
"""

import json
import pathlib
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

LENGTH = 64
host, folder = sys.argv[1], pathlib.Path(sys.argv[2])
sources = pathlib.Path(__file__).resolve().parents[2] / "host" / "core" / "src"
valid = sources / "param.rs"


def train(name, *arguments):
    """Trains on this project's sources and returns the run as `host runs show --json` prints it."""
    common = [
        "--data",
        sources,
        "--valid-data",
        valid,
        "--extensions",
        "rs",
        "--seq-length",
        LENGTH,
        "--train-batch-size",
        4,
        "--gradient-accumulation-steps",
        1,
        "--num-warmup-steps",
        5,
        "--learning-rate",
        3e-3,
        "--runs-dir",
        folder / "runs",
        "--name",
        name,
        "--device",
        "cpu",
    ]
    command = [host, "run", *common, *arguments, "--plugin", "perplexity"]
    subprocess.run([str(word) for word in command], check=True)
    shown = subprocess.run(
        [host, "runs", "show", "--json", folder / "runs" / name], check=True, capture_output=True
    )
    return json.loads(shown.stdout)


def metric(run, name):
    return next(series for series in run["metrics"] if series["name"] == name)


def reference_loss(model, tokenizer):
    """Returns the model's loss on the validation file. The file is packed as in the host, into rows of constant
    length. The tokens after the last full row are left out."""
    tokens = tokenizer(valid.read_text())["input_ids"] + [tokenizer.eos_token_id]
    rows = torch.tensor(tokens[: len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)
    with torch.no_grad():
        return model(rows, labels=rows).loss.item()


def compare(what, ours, theirs):
    print(f"{what}: host {ours:.6f}, transformers {theirs:.6f}")
    if abs(ours - theirs) > 1e-4:
        sys.exit(f"error: {what}: the losses differ by {abs(ours - theirs):.1e}")


# Loads the host's checkpoints in transformers, one for each kind of model.
for name, model in (
    ("plain", "tiny"),
    ("inverse", folder / "inverse.json"),
    ("untied", folder / "untied.json"),
):
    sizes = dict(n_embd=48, n_layer=3, n_head=4, n_positions=LENGTH, vocab_size=600)
    if name != "plain":
        extra = (
            {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}
            if name == "inverse"
            else {"tie_word_embeddings": False}
        )
        model.parent.mkdir(parents=True, exist_ok=True)
        model.write_text(json.dumps(GPT2Config(**sizes, **extra).to_dict()))
    run = train(name, "--model", model, "--vocab-size", 600, "--max-train-steps", 30)
    checkpoint = folder / "runs" / name / "checkpoints" / "step-000030"
    loaded, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    problems = {key: list(value) for key, value in info.items() if value and key != "error_msgs"}
    if problems:
        sys.exit(f"error: transformers reports missing or unknown weights: {problems}")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if tokenizer.decode(tokenizer(valid.read_text())["input_ids"]) != valid.read_text():
        sys.exit("error: the tokenizer does not reproduce the text")
    compare(
        f"{name}: the host's checkpoint in transformers",
        metric(run, "loss/eval")["value"],
        reference_loss(loaded.eval(), tokenizer),
    )

# Starts trainings of the host from checkpoints of transformers. The weights are in one file or in shards.
for name, shard in (("whole", "5GB"), ("shards", "200KB")):
    torch.manual_seed(1)
    config = GPT2Config(
        n_embd=48, n_layer=3, n_head=4, n_positions=LENGTH, vocab_size=600, bos_token_id=0, eos_token_id=0
    )
    theirs, saved = GPT2LMHeadModel(config).eval(), folder / f"theirs-{name}"
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    theirs.save_pretrained(saved, max_shard_size=shard)
    tokenizer.save_pretrained(saved)
    if (saved / "model.safetensors.index.json").exists() != (name == "shards"):
        sys.exit(f"error: transformers did not write {name}")
    run = train(
        f"from-{name}",
        "--model",
        saved,
        "--max-train-steps",
        1,
        "--learning-rate",
        1e-12,
        "--save-checkpoint-steps",
        1,
    )
    compare(
        f"{name}: transformers' checkpoint in the host",
        metric(run, "loss/eval")["value"],
        reference_loss(theirs, tokenizer),
    )
