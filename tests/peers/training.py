"""The command of a small training run."""

import pathlib

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "host" / "core" / "src"
# This learning rate makes the model diverge: its perplexity becomes infinite, and later all values are NaN.
DIVERGING = [
    "--learning-rate",
    1e3,
    "--max-grad-norm",
    0,
    "--on-nonfinite",
    "continue",
    "--num-warmup-steps",
    1,
]


def training(host, runs, name, steps, *more):
    """Returns the command of a run that prints its events as JSON. If `more` repeats a flag, the last value counts."""
    return [
        host,
        "run",
        "--json",
        "--data",
        SOURCES,
        "--extensions",
        "rs",
        "--valid-every",
        3,
        "--model",
        "tiny",
        "--vocab-size",
        300,
        "--seq-length",
        32,
        "--train-batch-size",
        4,
        "--valid-batch-size",
        4,
        "--max-eval-steps",
        2,
        "--save-checkpoint-steps",
        50,
        "--keep-checkpoints",
        1,
        "--gradient-accumulation-steps",
        1,
        "--num-warmup-steps",
        5,
        "--max-train-steps",
        steps,
        "--runs-dir",
        runs,
        "--name",
        name,
        "--device",
        "cpu",
        "--plugin",
        "perplexity",
        *more,
    ]
