"""Measures the memory that gradient checkpointing saves, and the time that it costs."""

import statistics

from training import WARM, configuration, host, token_files

# A shape for which gradient checkpointing is useful: the blocks' activations take most of the memory.
DEEP = (dict(n_layer=8, n_embd=256, n_head=4, vocab_size=1024, n_positions=512), 8, 512, 4)


def gradient_checkpointing(rounds):
    """Measures the peak memory and the step time of one shape with and without gradient checkpointing."""
    sizes, batch, length, _ = DEEP
    token_files(sizes["vocab_size"])
    config = configuration("deep", sizes)
    pairs = [[host(config, DEEP, checkpointing=on) for on in (False, True)] for _ in range(rounds)]
    peaks = [statistics.median(pair[on]["peak_mb"] for pair in pairs) for on in (0, 1)]
    times = [
        statistics.median(statistics.median(pair[on]["step_secs"][WARM:]) for pair in pairs) for on in (0, 1)
    ]
    print(
        f"\ngradient checkpointing, {sizes['n_layer']} layers, width {sizes['n_embd']}, {batch} x {length} tokens: peak memory "
        f"{peaks[1]:.0f} MB, {peaks[0]:.0f} MB without ({peaks[1] / peaks[0]:.2f}x); a step takes {times[1] / times[0]:.2f}x the time"
    )
    return {
        "peak_mb": peaks[1],
        "peak_mb_without": peaks[0],
        "step_secs": times[1],
        "step_secs_without": times[0],
    }
