"""Compares the shipped metrics with plain torch, on the logits of transformers' GPT-2.

The host trains and evaluates; transformers loads the checkpoint and predicts the same tokens. Accuracy uses
torch.topk, like torchmetrics' MulticlassAccuracy(average="micro"). Bits per byte uses the formula of
lm-evaluation-harness. The text has multi-byte characters. Between documents, it has an end token, which has
no bytes. Usage: metrics.py HOST FOLDER
"""

import json
import math
import pathlib
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

LENGTH, STEPS, TOP_K = 64, 40, (1, 2, 5)
host, folder = sys.argv[1], pathlib.Path(sys.argv[2])
sources = sorted((pathlib.Path(__file__).resolve().parents[2] / "host" / "core" / "src").glob("*.rs"))

folder.mkdir(parents=True, exist_ok=True)
documents = [path.read_text() + "// Größe 大きさ 🦀\n" * 3 for path in sources]
for name, part in (("train", documents[1::2]), ("valid", documents[0::2])):
    lines = (json.dumps({"content": text}) + "\n" for text in part)
    (folder / f"{name}.jsonl").write_text("".join(lines))

arguments = [
    "--data",
    folder / "train.jsonl",
    "--valid-data",
    folder / "valid.jsonl",
    "--model",
    "tiny",
    "--vocab-size",
    600,
    "--seq-length",
    LENGTH,
    "--train-batch-size",
    4,
    "--valid-batch-size",
    3,
    "--gradient-accumulation-steps",
    1,
    "--num-warmup-steps",
    5,
    "--learning-rate",
    3e-3,
    "--max-train-steps",
    STEPS,
    "--runs-dir",
    folder,
    "--name",
    "metrics",
    "--device",
    "cpu",
    "--plugin",
    f"token-accuracy:top_k=[{','.join(map(str, TOP_K))}]",
    "--plugin",
    "bits-per-byte",
]
subprocess.run([str(word) for word in (host, "run", *arguments)], check=True)
shown = subprocess.run([host, "runs", "show", "--json", folder / "metrics"], check=True, capture_output=True)
ours = {series["name"]: series["value"] for series in json.loads(shown.stdout)["metrics"]}

checkpoint = folder / "metrics" / "checkpoints" / f"step-{STEPS:06}"
model, tokenizer = (
    AutoModelForCausalLM.from_pretrained(checkpoint).eval(),
    AutoTokenizer.from_pretrained(checkpoint),
)

# The bytes of each token, verified by reproducing every document.
byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
text_of = {
    index: bytes(byte_of[character] for character in token)
    for token, index in tokenizer.get_vocab().items()
    if index != tokenizer.eos_token_id
}
text_of[tokenizer.eos_token_id] = b""
tokens = []
for text in documents[0::2]:
    ids = tokenizer(text)["input_ids"]
    if b"".join(map(text_of.get, ids)) != text.encode():
        sys.exit("error: the tokens do not reproduce the document")
    tokens += [*ids, tokenizer.eos_token_id]

rows = torch.tensor(tokens[: len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)
labels = rows[:, 1:].flatten()
with torch.no_grad():
    logits = model(rows).logits[:, :-1].flatten(0, 1)
log_likelihoods = logits.double().log_softmax(-1).gather(-1, labels[:, None])
byte_count = sum(len(text_of[label]) for label in labels.tolist())
theirs = {"bits_per_byte": -log_likelihoods.sum().item() / byte_count / math.log(2)}
for k in TOP_K:
    found = (logits.topk(k).indices == labels[:, None]).any(-1)
    theirs["token_accuracy" if k == 1 else f"token_accuracy_top{k}"] = found.double().mean().item()

ends = (labels == tokenizer.eos_token_id).sum().item()
print(f"{labels.numel()} tokens, {ends} of them end tokens, {byte_count} bytes")
if ends == 0 or theirs["token_accuracy"] == 0:
    sys.exit("error: the comparison is meaningless")
for name, value in theirs.items():
    # Two likelihoods that differ only by rounding may be ranked differently, so the accuracy may differ by
    # one token.
    bound = 1e-5 if name == "bits_per_byte" else 1.5 / labels.numel()
    print(f"{name}: host {ours[name]:.8f}, torch {value:.8f}")
    if not abs(ours[name] - value) <= bound:
        sys.exit(f"error: {name}: the values differ by {abs(ours[name] - value):.1e}")
