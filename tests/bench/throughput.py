"""Compares the speed and memory of training in the host and in its peers, for one shape of the model."""

import statistics

from training import WARM, configuration, device, host, on_cpu, peer, token_files

# The host's settings for glibc's allocator. Some peers use them, too. Two of the peers differ only in these
# settings, which shows their effect.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 62),
    "MALLOC_TOP_PAD_": "0",
}


def throughput(name, shape, rounds):
    """Measures one shape with all contenders in alternating rounds. Also measures the cost of a checkpoint."""
    sizes, batch, length, _ = shape
    token_files(sizes["vocab_size"])
    config = configuration(name, sizes)
    contenders = {
        "host": lambda: host(config, shape),
        "accelerate": lambda: peer(config, shape, "plain"),
        "accelerate, host's malloc": lambda: peer(config, shape, "plain", **MALLOC),
        "torch.compile": lambda: peer(config, shape, "compiled"),
        "its products by torch.mm": lambda: peer(config, shape, "mm", **MALLOC),
        "its products by oneDNN": lambda: peer(config, shape, "onednn", **MALLOC),
    }
    if not on_cpu:
        del contenders["accelerate, host's malloc"], contenders["its products by oneDNN"]
    results = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, measure in contenders.items():
            results[contender].append(measure())
    report = summary(name, shape, results, rounds)
    report["checkpoint"] = checkpoints(config, shape, rounds)
    return report


def summary(name, shape, results, rounds):
    sizes, batch, length, _ = shape
    step = {
        who: [statistics.median(result["step_secs"][WARM:]) for result in result_list]
        for who, result_list in results.items()
    }
    width, layers, vocab = sizes["n_embd"], sizes["n_layer"], sizes["vocab_size"]
    linear = 12 * layers * width * width + width * vocab
    flops = batch * length * 6 * linear + 12 * layers * batch * length * length * width
    place = "2 threads" if on_cpu else device
    print(
        f"\n{name}: {layers} layers, width {width}, vocabulary {vocab}, {batch} x {length} tokens, f32, {place}, {rounds} alternating rounds"
    )
    print(
        f"FLOP of a step: tokens * 6 * (12 layers width^2 + width vocabulary) + 12 layers batch sequence^2 width = {flops / 1e9:.1f} G"
    )
    print(
        f"{'':28}{'s a step: median (min-max)':>30}{'tokens/s':>10}{'GFLOP/s':>9}{'host is':>9}{'peak MB':>9}{'first step s':>14}"
    )
    rows = {}
    for who, seconds in step.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds, step["host"]))
        median = statistics.median(seconds)
        peak = statistics.median(result["peak_mb"] for result in results[who])
        first = statistics.median(result["first_step_secs"] for result in results[who])
        print(
            f"{who:28}{median:12.3f} ({min(seconds):.3f}-{max(seconds):.3f}){batch * length / median:12.0f}{flops / median / 1e9:9.1f}{ratio:8.2f}x{peak:9.0f}{first:14.1f}"
        )
        rows[who] = {
            "step_secs": seconds,
            "host_is_times_as_fast": ratio,
            "peak_mb": peak,
            "first_step_secs": first,
        }
    return {"flop_of_a_step": flops, "rows": rows}


def checkpoints(config, shape, rounds):
    """Measures how long a checkpoint blocks the training loop, in the host and in a peer's script. For comparison,
    measures how long a plain memcpy of the checkpoint takes."""
    rounds_of = [
        (host(config, shape, checkpoint_steps=3)["copy_secs"], peer(config, shape, "checkpoint"))
        for _ in range(rounds)
    ]
    copy = statistics.median(statistics.median(ours) for ours, _ in rounds_of)
    theirs = [found for _, found in rounds_of]
    memcpy = statistics.median(statistics.median(found["memcpy_secs"][1:]) for found in theirs)
    save = statistics.median(statistics.median(found["save_secs"][1:]) for found in theirs)
    megabytes = theirs[0]["bytes"] / 1e6
    print(
        f"a checkpoint of {megabytes:.0f} MB blocks the loop for {copy * 1e3:.1f} ms; a memcpy of it takes {memcpy * 1e3:.1f} ms "
        f"({copy / memcpy:.2f}x); save_pretrained and torch.save take {save * 1e3:.0f} ms ({save / memcpy:.1f}x)"
    )
    return {"bytes": theirs[0]["bytes"], "copy_secs": copy, "memcpy_secs": memcpy, "save_secs": save}
