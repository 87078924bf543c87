"""The script that users would write instead of using the host: transformers' GPT-2 with SDPA, Accelerate,
AdamW(fused=True).

Usage: peer.py CONFIG.json BATCH SEQUENCE STEPS plain|compiled|mm|onednn|checkpoint
DEVICE=cuda:0 runs it on a GPU.
Prints one line of JSON: seconds of each step, peak memory, seconds from the start to the first step's end.
"""

import time

begin = time.time()

import json
import os
import resource
import sys

import torch

config_file, batch, length, steps, kind = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
config = json.load(open(config_file))
device = torch.device(os.environ.get("DEVICE", "cpu"))
on_cpu = device.type == "cpu"


def wait():
    """Waits until the device has finished all queued work."""
    if not on_cpu:
        torch.cuda.synchronize(device)


def products():
    """Runs only the model's matrix products, in their real shapes: the forward product and both backward
    products of the linear layers, attention and the head. Returns the seconds that they take in each step."""
    rows, width, layers, heads = batch * length, config["n_embd"], config["n_layer"], config["n_head"]
    linear = [
        (rows, width, 3 * width),
        (rows, width, width),
        (rows, width, 4 * width),
        (rows, 4 * width, width),
    ]
    shapes = linear * layers + [(batch * (length - 1), width, config["vocab_size"])]
    matrices = [(torch.randn(n, k), torch.randn(k, m), torch.randn(n, m)) for n, k, m in shapes]
    outputs = [(torch.empty(n, m), torch.empty(n, k), torch.empty(k, m)) for n, k, m in shapes]
    head = width // heads
    attention = [[torch.randn(batch * heads, length, size) for size in (head, head, length, head)]] * layers
    scores = torch.empty(batch * heads, length, length)
    part = torch.empty(batch * heads, length, head)
    seconds = []
    for _ in range(steps):
        wait()
        start = time.perf_counter()
        for (x, w, y), (forward, to_x, to_w) in zip(matrices, outputs):
            if kind == "onednn":
                # The host uses oneDNN, too. Unlike torch.mm with out=, oneDNN's functions allocate their results.
                one_dnn(x, w.t())
                one_dnn(y, w)
                one_dnn(x.t(), y.t())
            else:
                torch.mm(x, w, out=forward)
                torch.mm(y, w.t(), out=to_x)
                torch.mm(x.t(), y, out=to_w)
        for query, key, weights, value in attention:
            torch.bmm(query, key.mT, out=scores)
            torch.bmm(weights, value, out=part)
            torch.bmm(weights.mT, value, out=part)  # gradient of the values
            torch.bmm(value, key.mT, out=scores)  # gradient of the weights
            torch.bmm(weights, key, out=part)  # gradient of the queries
            torch.bmm(weights.mT, query, out=part)  # gradient of the keys
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds, 0.0


def one_dnn(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def checkpoint():
    """Measures how long a checkpoint with save_pretrained and torch.save blocks the script's loop. For
    comparison, measures a plain memcpy of the same state (weights and both moments) into memory that was
    already touched."""
    import ctypes
    import tempfile

    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(**config))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.zeros(1, 8, dtype=torch.long), labels=torch.zeros(1, 8, dtype=torch.long)).loss.backward()
    optimizer.step()
    size = 3 * 4 * sum(parameter.numel() for parameter in model.parameters())
    source, target = bytearray(size), bytearray(size)
    to = (ctypes.c_char * size).from_buffer(target)
    of = (ctypes.c_char * size).from_buffer(source)
    copies, saves = [], []
    for _ in range(steps):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            model.save_pretrained(folder)
            torch.save(optimizer.state_dict(), folder + "/optimizer.pt")
            saves.append(time.perf_counter() - start)
        start = time.perf_counter()
        ctypes.memmove(to, of, size)
        copies.append(time.perf_counter() - start)
    return {"bytes": size, "memcpy_secs": copies, "save_secs": saves}


def train():
    from accelerate import Accelerator
    from transformers import GPT2Config, GPT2LMHeadModel, get_scheduler

    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(**config, attn_implementation="sdpa")).train()
    no_decay = ["bias", "ln_1.weight", "ln_2.weight", "ln_f.weight"]
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if not any(nd in n for nd in no_decay)], "weight_decay": 0.1},
        {"params": [p for n, p in named if any(nd in n for nd in no_decay)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-4, fused=True)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=10, num_training_steps=steps)
    accelerator = Accelerator(cpu=on_cpu)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if kind == "compiled":
        model = torch.compile(model)
    seconds, first = [], None
    for _ in range(steps):
        tokens = torch.randint(config["vocab_size"], (batch, length), device=device)
        start = time.perf_counter()
        loss = model(tokens, labels=tokens).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        loss.item()  # like a script that logs its loss
        seconds.append(time.perf_counter() - start)
        first = first or time.time() - begin
    return seconds, first


torch.set_num_threads(int(os.environ.get("THREADS", "2")))
if kind in ("mm", "onednn", "checkpoint") and not on_cpu:
    torch.set_default_device(device)
if kind == "checkpoint":
    print(json.dumps(checkpoint()))
    sys.exit()
seconds, first = products() if kind in ("mm", "onednn") else train()
peak = (
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if on_cpu
    else torch.cuda.max_memory_reserved(device)
)
if os.environ.get("RANK", "0") == "0":
    print(json.dumps({"step_secs": seconds, "peak_mb": peak / 2**20, "first_step_secs": first}))
