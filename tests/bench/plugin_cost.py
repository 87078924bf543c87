"""Measures the cost of plugins in a run."""

import json
import statistics
import subprocess

from training import SHAPES, WARM, configuration, folder, host, root, token_files

# All shipped plugins except the sinks. weight-decay is not listed, because it is always loaded. With this
# patience, early-stopping never ends the run.
PLUGINS = ["perplexity", "token-accuracy", "bits-per-byte", "early-stopping:patience=1000000", "loss-guard"]


def plugins(rounds):
    """Measures the cost of plugins: a call across the boundary, a call into another process, a load, and a
    run with all plugins. That run is compared with a run without plugins. The ratio of two runs without
    plugins shows the noise."""
    report = {}
    for bench in ("boundary", "round_trip", "load"):
        kept = folder / f"{bench}.json"
        print(f"\n{bench}", flush=True)
        subprocess.run(
            [
                "cargo",
                "bench",
                "--quiet",
                "--locked",
                "-p",
                "host-plugin",
                "--bench",
                bench,
                "--",
                "--json",
                kept,
            ],
            cwd=root,
            check=True,
        )
        report[bench] = json.loads(kept.read_text())
    sizes, batch, length, _ = SHAPES["small"]
    shape = (sizes, batch, length, 40)
    token_files(sizes["vocab_size"])
    config = configuration("small", sizes)
    # There is an evaluation with each checkpoint.
    contenders = {"without": (), "without, again": (), "with": PLUGINS}
    results = {who: [] for who in contenders}
    for _ in range(rounds):
        for who, loaded in contenders.items():
            results[who].append(host(config, shape, checkpoint_steps=10, plugins=loaded))
    step = {
        who: [statistics.median(result["step_secs"][WARM:]) for result in of] for who, of in results.items()
    }
    shares = [statistics.mean(result["plugin_shares"]) for result in results["with"]]
    print(
        f"\n{len(PLUGINS) + 1} plugins in a training, {batch} x {length} tokens, an evaluation every 10 steps, {rounds} alternating rounds"
    )
    for who, seconds in step.items():
        ratio = statistics.median(ours / base for ours, base in zip(seconds, step["without"]))
        print(
            f"{who:28}{statistics.median(seconds):12.4f} s a step ({min(seconds):.4f}-{max(seconds):.4f}){ratio:8.3f}x"
        )
    print(
        f"time of the plugins inside the loop: {statistics.median(shares):.4%} ({min(shares):.4%}-{max(shares):.4%})"
    )
    return {**report, "step_secs": step, "step_share": shares}
