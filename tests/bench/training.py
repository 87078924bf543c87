"""Runs one training, with the host or with a peer, and measures its steps and its memory."""

import json
import os
import pathlib
import subprocess
import sys
import time

root = pathlib.Path(__file__).resolve().parents[2]
folder = root / "target" / "bench"
device = os.environ.get("DEVICE", "cpu")
on_cpu = device == "cpu"
SHAPES = {
    # name: (configuration, batch, sequence, steps of a round)
    "small": (dict(n_layer=4, n_embd=256, n_head=4, vocab_size=8192, n_positions=256), 8, 256, 12),
    "large": (dict(n_layer=12, n_embd=768, n_head=12, vocab_size=32768, n_positions=512), 4, 512, 4),
}
WARM = 3  # warm-up steps of a round; not counted, because they also allocate buffers and compile code


def run(command, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "2", **environment}
    done = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def configuration(name, sizes):
    config = folder / f"{name}.json"
    config.write_text(json.dumps({**sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}))
    return config


def token_files(vocab_size):
    """Tokenizes the host's source code with a tokenizer of this vocabulary size, and writes the token files."""
    target = folder / f"tokenizer-{vocab_size}"
    if not (target / "tokenizer.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        files = [str(file) for file in sorted((root / ".libtorch/site-packages/torch").glob("*.py"))]
        made.train(
            files,
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=["<|endoftext|>"],
                show_progress=False,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            ),
        )
        made.save(str(target / "tokenizer.json"))
    tokens = folder / f"tokens-{vocab_size}"
    if not tokens.exists():
        run(
            [
                root / "target/release/host",
                "data",
                "tokenize",
                "--data",
                root / "host",
                "--extensions",
                "rs",
                "--tokenizer",
                target,
                "--output",
                tokens,
            ]
        )


def peer(config, shape, kind, **environment):
    _, batch, length, steps = shape
    script = pathlib.Path(__file__).with_name("peer.py")
    # The first steps of a peer can include compilation, so every peer and the host have the same warm-up steps.
    return json.loads(
        run([sys.executable, script, config, batch, length, steps + WARM, kind], **environment).splitlines()[
            -1
        ]
    )


def command(config, shape, checkpoint_steps=0, checkpointing=False, plugins=(), more=()):
    sizes, batch, length, steps = shape
    tokens = folder / f"tokens-{sizes['vocab_size']}"
    words = [
        root / "target/release/host",
        "run",
        "--json",
        "--data",
        tokens / "train.tokens",
        "--valid-data",
        tokens / "valid.tokens",
        "--model",
        config,
        "--runs-dir",
        folder / "runs",
        "--name",
        f"bench-{time.time_ns()}",
        "--device",
        device,
        "--threads",
        2,
        "--seq-length",
        length,
        "--train-batch-size",
        batch,
        "--valid-batch-size",
        batch,
        "--max-eval-steps",
        1,
        "--gradient-accumulation-steps",
        1,
        f"--gradient-checkpointing={str(checkpointing).lower()}",
        "--num-warmup-steps",
        10,
        "--shuffle-buffer",
        64,
        "--max-train-steps",
        steps + WARM,
        "--save-checkpoint-steps",
        checkpoint_steps,
        "--keep-checkpoints",
        1,
    ]
    return (
        [str(word) for word in words]
        + [word for plugin in plugins for word in ("--plugin", plugin)]
        + [*more]
    )


def host(config, shape, environment=(), **arguments):
    begin = time.time()
    with open(folder / "host.jsonl", "w+") as out, open(folder / "host.log", "w+") as log:
        process = subprocess.Popen(
            command(config, shape, **arguments),
            stdout=out,
            stderr=log,
            env={**os.environ, **dict(environment)},
        )
        _, status, usage = os.wait4(process.pid, 0)  # resource usage of this child only
        if status != 0:
            log.seek(0)
            sys.exit(f"error: host ended with status {status}: {log.read()[-2000:]}")
        out.seek(0)
        lines = out.readlines()
    seconds, copies, evaluations, shares, first, peak = [], [], [], [], None, usage.ru_maxrss * 1024
    for line in lines:
        event = json.loads(line)
        values = event.get("values", {})
        if "step_secs" in values:
            seconds.append(values["step_secs"])
            first = first or event["time_us"] / 1e6 - begin
        if "checkpoint_copy_secs" in values:
            copies.append(values["checkpoint_copy_secs"])
        if "eval_secs" in values:
            evaluations.append(values["eval_secs"])
        share = [
            value
            for name, value in values.items()
            if name.startswith("plugin/") and name.endswith("/step_share")
        ]
        if share:
            shares.append(sum(share))
        if "peak_memory_bytes" in values and not on_cpu:
            peak = values["peak_memory_bytes"]
    return {
        "step_secs": seconds,
        "peak_mb": peak / 2**20,
        "first_step_secs": first,
        "copy_secs": copies,
        "eval_secs": evaluations,
        "plugin_shares": shares,
    }
