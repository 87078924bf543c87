"""Measures the tracker (cargo bench -p host-serve), and compares one log call with TensorBoard's
SummaryWriter, W&B offline, MLflow and trackio, in alternating rounds. Usage: tracker.py [ROUNDS]. Prints a
table, and saves all results as target/bench/tracker.json.
"""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parents[2]
folder = root / "target" / "bench"
rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
# Calls per round. The slowest tracker takes a few seconds for them.
PEERS = {"tensorboard": 2000, "wandb": 2000, "mlflow": 300, "trackio": 2000}


def bench(*parts):
    kept = folder / "tracker-part.json"
    command = [
        "cargo",
        "bench",
        "--quiet",
        "--locked",
        "-p",
        "host-serve",
        "--bench",
        "tracker",
        "--",
        "--json",
        kept,
        *parts,
    ]
    subprocess.run(command, cwd=root, check=True)
    return json.loads(kept.read_text())


def peer(tool, calls):
    """Returns percentiles of a call's duration in microseconds. If the tool cannot be used, returns the reason."""
    scratch = tempfile.mkdtemp(prefix=f"bench-{tool}-")
    script = pathlib.Path(__file__).with_name("tracker_peer.py")
    try:
        done = subprocess.run(
            [sys.executable, script, tool, str(calls), scratch], capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        return "it did not end within 300 s"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1]
    us = sorted(json.loads(done.stdout.splitlines()[-1])[50:])
    return {"p50_us": us[len(us) // 2], "p99_us": us[len(us) * 99 // 100]}


def main():
    folder.mkdir(parents=True, exist_ok=True)
    report = bench("load", "history", "list", "watchers")
    results = {who: [] for who in ("host", *PEERS)}
    for _ in range(rounds):
        results["host"].append(bench("log")["log"])
        for tool, calls in PEERS.items():
            results[tool].append(peer(tool, calls))
    print(f"\na log call of four values, {rounds} alternating rounds; medians of the rounds")
    print(f"{'':14}{'p50 us':>12}{'p99 us':>12}{'p50: host is':>15}")
    ours = statistics.median(of["p50_us"] for of in results["host"])
    for who, of in results.items():
        reasons = [result for result in of if isinstance(result, str)]
        if reasons:
            print(f"{who:14} NOT MEASURED: {reasons[0]}")
            continue
        p50, p99 = (statistics.median(result[key] for result in of) for key in ("p50_us", "p99_us"))
        print(f"{who:14}{p50:12.2f}{p99:12.2f}{p50 / ours:14.0f}x")
    report["log_calls"] = results
    (folder / "tracker.json").write_text(json.dumps(report, indent=1))


main()
