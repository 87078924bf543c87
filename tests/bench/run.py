"""Trains one shape with the host and with what users would pick instead, in turn, and prints the
medians and ratios. Usage: run.py [ROUNDS [SHAPE…]]; the table is kept as target/bench/train.json.
DEVICE=cuda:0 runs it on a GPU; the table is then train-cuda.json beside it.
"""

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import alternation

root = pathlib.Path(__file__).resolve().parents[2]
folder = root / "target" / "bench"
rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
wanted = sys.argv[2:]
device = os.environ.get("DEVICE", "cpu")
on_cpu = device == "cpu"
SHAPES = {
    # name: (configuration, batch, sequence, steps of a round)
    "small": (dict(n_layer=4, n_embd=256, n_head=4, vocab_size=8192, n_positions=256), 8, 256, 12),
    "large": (dict(n_layer=12, n_embd=768, n_head=12, vocab_size=32768, n_positions=512), 4, 512, 4),
}
# All that is shipped but the sinks; the parameter groups are always somebody's. The patience is endless.
PLUGINS = ["perplexity", "token-accuracy", "bits-per-byte", "early-stopping:patience=1000000", "loss-guard"]
# What gradient checkpointing is for: most of the memory is what the blocks keep.
DEEP = (dict(n_layer=8, n_embd=256, n_head=4, vocab_size=1024, n_positions=512), 8, 512, 4)
WARM = 3  # steps of a round that do not count: buffers, compilation
# The host's own settings of glibc's allocator, for the peer that shows how much they are worth.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 62), "MALLOC_TOP_PAD_": "0"}


def run(command, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "2", **environment}
    done = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def peer(config, shape, kind, **environment):
    _, batch, length, steps = shape
    script = pathlib.Path(__file__).with_name("peer.py")
    # The compiler needs a step or two of its own beyond the others' warm-up.
    return json.loads(run([sys.executable, script, config, batch, length, steps + WARM, kind], **environment).splitlines()[-1])


def command(config, shape, checkpoint_steps=0, checkpointing=False, plugins=()):
    sizes, batch, length, steps = shape
    tokens = folder / f"tokens-{sizes['vocab_size']}"
    words = [root / "target/release/host", "run", "--json", "--data", tokens / "train.tokens",
             "--valid-data", tokens / "valid.tokens", "--model", config, "--runs-dir", folder / "runs",
             "--name", f"bench-{time.time_ns()}", "--device", device, "--threads", 2, "--seq-length", length,
             "--train-batch-size", batch, "--valid-batch-size", batch, "--max-eval-steps", 1,
             "--gradient-accumulation-steps", 1, f"--gradient-checkpointing={str(checkpointing).lower()}", "--num-warmup-steps", 10,
             "--shuffle-buffer", 64, "--max-train-steps", steps + WARM, "--save-checkpoint-steps", checkpoint_steps,
             "--keep-checkpoints", 1]
    return [str(word) for word in words] + [word for plugin in plugins for word in ("--plugin", plugin)]


def host(config, shape, environment=(), **arguments):
    begin = time.time()
    with open(folder / "host.jsonl", "w+") as out, open(folder / "host.log", "w+") as log:
        process = subprocess.Popen(command(config, shape, **arguments), stdout=out, stderr=log, env={**os.environ, **dict(environment)})
        _, status, usage = os.wait4(process.pid, 0)  # the child's own accounting
        if status != 0:
            log.seek(0)
            sys.exit(f"error: host ended with status {status}: {log.read()[-2000:]}")
        out.seek(0)
        lines = out.readlines()
    seconds, copies, shares, first, peak = [], [], [], None, usage.ru_maxrss * 1024
    for line in lines:
        event = json.loads(line)
        values = event.get("values", {})
        if "step_secs" in values:
            seconds.append(values["step_secs"])
            first = first or event["time_us"] / 1e6 - begin
        if "checkpoint_copy_secs" in values:
            copies.append(values["checkpoint_copy_secs"])
        share = [value for name, value in values.items() if name.startswith("plugin/") and name.endswith("/step_share")]
        if share:
            shares.append(sum(share))
        if "peak_memory_bytes" in values and not on_cpu:
            peak = values["peak_memory_bytes"]
    return {"step_secs": seconds, "peak_mb": peak / 2**20, "first_step_secs": first, "copy_secs": copies,
            "plugin_shares": shares}


def token_files(vocab_size):
    """The host's own sources as token files with that vocabulary."""
    target = folder / f"tokenizer-{vocab_size}"
    if not (target / "tokenizer.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        files = [str(file) for file in sorted((root / ".libtorch/site-packages/torch").glob("*.py"))]
        made.train(files, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False,
                                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        made.save(str(target / "tokenizer.json"))
    tokens = folder / f"tokens-{vocab_size}"
    if not tokens.exists():
        run([root / "target/release/host", "data", "tokenize", "--data", root / "host", "--extensions", "rs",
             "--tokenizer", target, "--output", tokens])


def main():
    folder.mkdir(parents=True, exist_ok=True)
    report = {}
    for name, shape in SHAPES.items():
        if wanted and name not in wanted:
            continue
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
        report[name] = summary(name, shape, results)
        report[name]["checkpoint"] = checkpoints(config, shape)
    if not wanted or "deep" in wanted:
        report["gradient_checkpointing"] = gradient_checkpointing()
    if on_cpu and (not wanted or "contention" in wanted):
        report["contention"] = contention()
    if not wanted or "plugins" in wanted:
        report["plugins"] = plugins()
    if not wanted or "deliveries" in wanted:
        report["deliveries"] = deliveries()
    (folder / ("train.json" if on_cpu else "train-cuda.json")).write_text(json.dumps(report, indent=1))


def configuration(name, sizes):
    config = folder / f"{name}.json"
    config.write_text(json.dumps({**sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}))
    return config


def gradient_checkpointing():
    """The peak memory of one shape with and without it, and what it costs in time."""
    sizes, batch, length, _ = DEEP
    token_files(sizes["vocab_size"])
    config = configuration("deep", sizes)
    pairs = [[host(config, DEEP, checkpointing=on) for on in (False, True)] for _ in range(rounds)]
    peaks = [statistics.median(pair[on]["peak_mb"] for pair in pairs) for on in (0, 1)]
    times = [statistics.median(statistics.median(pair[on]["step_secs"][WARM:]) for pair in pairs) for on in (0, 1)]
    print(f"\ngradient checkpointing, {sizes['n_layer']} layers, width {sizes['n_embd']}, {batch} x {length} tokens: peak memory "
          f"{peaks[1]:.0f} MB, {peaks[0]:.0f} MB without ({peaks[1] / peaks[0]:.2f}x); a step takes {times[1] / times[0]:.2f}x the time")
    return {"peak_mb": peaks[1], "peak_mb_without": peaks[0], "step_secs": times[1], "step_secs_without": times[0]}


@contextlib.contextmanager
def neighbors(count):
    """Processes that each keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def contention():
    """A step beside busy processes: as the host is, with the spinning of idle threads set by hand to the same
    and to libgomp's own default, and Accelerate."""
    sizes, batch, length, _ = SHAPES["small"]
    shape = (sizes, batch, length, 12)
    token_files(sizes["vocab_size"])
    config = configuration("small", sizes)
    contenders = {
        "host": lambda: host(config, shape),
        "host, GOMP_SPINCOUNT=10000": lambda: host(config, shape, {"GOMP_SPINCOUNT": "10000"}),
        "host, GOMP_SPINCOUNT=300000": lambda: host(config, shape, {"GOMP_SPINCOUNT": "300000"}),
        "accelerate": lambda: peer(config, shape, "plain"),
    }
    report = {}
    for count in (0, 2, 6):
        results = {who: [] for who in contenders}
        with neighbors(count):
            for _ in range(rounds):
                for who, measure in contenders.items():
                    results[who].append(statistics.median(measure()["step_secs"][WARM:]))
        print(f"\nbeside {count} busy processes, {os.cpu_count()} cores, {batch} x {length} tokens, {rounds} rounds in turn")
        for who, seconds in results.items():
            ratio = statistics.median(base / theirs for theirs, base in zip(seconds, results["host, GOMP_SPINCOUNT=10000"]))
            print(f"{who:28}{statistics.median(seconds):12.3f} s a step ({min(seconds):.3f}-{max(seconds):.3f}); "
                  f"with GOMP_SPINCOUNT=10000 by hand it is {ratio:.3f}x")
        report[count] = results
    return report


def plugins():
    """What the plugins cost: a call across the boundary and into a process, a load, and a training with
    all of them beside two without, of which the difference between the two is none."""
    report = {}
    for bench in ("boundary", "round_trip", "load"):
        kept = folder / f"{bench}.json"
        print(f"\n{bench}", flush=True)
        subprocess.run(["cargo", "bench", "--quiet", "--locked", "-p", "host-plugin", "--bench", bench, "--", "--json", kept],
                       cwd=root, check=True)
        report[bench] = json.loads(kept.read_text())
    sizes, batch, length, _ = SHAPES["small"]
    shape = (sizes, batch, length, 40)
    token_files(sizes["vocab_size"])
    config = configuration("small", sizes)
    # An evaluation comes with each checkpoint.
    contenders = {"without": (), "without, again": (), "with": PLUGINS}
    results = {who: [] for who in contenders}
    for _ in range(rounds):
        for who, loaded in contenders.items():
            results[who].append(host(config, shape, checkpoint_steps=10, plugins=loaded))
    step = {who: [statistics.median(result["step_secs"][WARM:]) for result in of] for who, of in results.items()}
    shares = [statistics.mean(result["plugin_shares"]) for result in results["with"]]
    print(f"\n{len(PLUGINS) + 1} plugins in a training, {batch} x {length} tokens, an evaluation every 10 steps, {rounds} rounds in turn")
    for who, seconds in step.items():
        ratio = statistics.median(ours / base for ours, base in zip(seconds, step["without"]))
        print(f"{who:28}{statistics.median(seconds):12.4f} s a step ({min(seconds):.4f}-{max(seconds):.4f}){ratio:8.3f}x")
    print(f"accounted to the plugins inside the loop: {statistics.median(shares):.4%} of its time ({min(shares):.4%}-{max(shares):.4%})")
    return {**report, "step_secs": step, "step_share": shares}


def deliveries():
    """What a push costs, and what it costs the training beside it, which writes a checkpoint of every fifth
    step and always pushes one; beside a training without a sink, in which nothing alternates."""
    kept = folder / "push.json"
    print("\npush", flush=True)
    subprocess.run(["cargo", "bench", "--quiet", "--locked", "-p", "hub-git", "--bench", "push", "--", "--rounds", str(rounds),
                    "--json", kept], cwd=root, check=True)
    groups = 20
    sizes, batch, length = SHAPES["small"][0], 8, 128
    shape = (sizes, batch, length, groups * alternation.GROUP + 1)
    token_files(sizes["vocab_size"])
    config = configuration("small", sizes)
    # In memory: the disk of another machine is not this one's.
    remote = pathlib.Path("/dev/shm") / f"host-bench-{os.getpid()}.git"
    contenders = {"pushing": [f"hub-git:repo=file://{remote},lfs=always,trainer=true,queue=latest"], "nothing": []}
    results = {who: [] for who in contenders}
    for _ in range(rounds):
        for who, loaded in contenders.items():
            run(["git", "init", "--quiet", "--bare", remote])
            trained = command(config, shape, checkpoint_steps=5, plugins=loaded)
            results[who].append(alternation.Alternation(trained, WARM, groups))
            shutil.rmtree(remote)
            shutil.rmtree(folder / "runs")
    print(f"\na training that pushes in turn, {batch} x {length} tokens, a checkpoint every 5 steps, {rounds} rounds of {groups} times 10 steps")
    report = {}
    for who, trainings in results.items():
        ratio, low, high = report[who] = alternation.mean_ratio([ratio for training in trainings for ratio in training.ratios])
        sending = statistics.mean(training.sending for training in trainings)
        delivered = sum(training.delivered for training in trainings)
        print(f"{who:28}{ratio:8.3f}x of a step without ({low:.3f}-{high:.3f} with 95 % confidence); sending {sending:.0%} of that time, {delivered} delivered")
    return {"push": json.loads(kept.read_text()), "step_ratio": report}


def checkpoints(config, shape):
    """What a checkpoint costs the loop: ours, a memcpy of the same bytes, and what the script does."""
    rounds_of = [(host(config, shape, checkpoint_steps=3)["copy_secs"], peer(config, shape, "checkpoint")) for _ in range(rounds)]
    copy = statistics.median(statistics.median(ours) for ours, _ in rounds_of)
    theirs = [found for _, found in rounds_of]
    memcpy = statistics.median(statistics.median(found["memcpy_secs"][1:]) for found in theirs)
    save = statistics.median(statistics.median(found["save_secs"][1:]) for found in theirs)
    megabytes = theirs[0]["bytes"] / 1e6
    print(f"a checkpoint of {megabytes:.0f} MB stops the loop for {copy * 1e3:.1f} ms; a memcpy of it takes {memcpy * 1e3:.1f} ms "
          f"({copy / memcpy:.2f}x); save_pretrained and torch.save take {save * 1e3:.0f} ms ({save / memcpy:.1f}x)")
    return {"bytes": theirs[0]["bytes"], "copy_secs": copy, "memcpy_secs": memcpy, "save_secs": save}


def summary(name, shape, results):
    sizes, batch, length, _ = shape
    step = {who: [statistics.median(result["step_secs"][WARM:]) for result in result_list]
            for who, result_list in results.items()}
    width, layers, vocab = sizes["n_embd"], sizes["n_layer"], sizes["vocab_size"]
    linear = 12 * layers * width * width + width * vocab
    flops = batch * length * 6 * linear + 12 * layers * batch * length * length * width
    place = "2 threads" if on_cpu else device
    print(f"\n{name}: {layers} layers, width {width}, vocabulary {vocab}, {batch} x {length} tokens, f32, {place}, {rounds} rounds in turn")
    print(f"FLOP of a step: tokens * 6 * (12 layers width^2 + width vocabulary) + 12 layers batch sequence^2 width = {flops / 1e9:.1f} G")
    print(f"{'':28}{'s a step: median (min-max)':>30}{'tokens/s':>10}{'GFLOP/s':>9}{'host is':>9}{'peak MB':>9}{'first step s':>14}")
    rows = {}
    for who, seconds in step.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds, step["host"]))
        median = statistics.median(seconds)
        peak = statistics.median(result["peak_mb"] for result in results[who])
        first = statistics.median(result["first_step_secs"] for result in results[who])
        print(f"{who:28}{median:12.3f} ({min(seconds):.3f}-{max(seconds):.3f}){batch * length / median:12.0f}{flops / median / 1e9:9.1f}{ratio:8.2f}x{peak:9.0f}{first:14.1f}")
        rows[who] = {"step_secs": seconds, "host_is_times_as_fast": ratio, "peak_mb": peak, "first_step_secs": first}
    return {"flop_of_a_step": flops, "rows": rows}


main()
