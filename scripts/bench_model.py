"""Times a model beside anything else: the forward pass, or the whole training step.

python scripts/bench_model.py MODEL BATCH forward|train [--ops native] [--set ARGUMENT=VALUE] [--serve]

train: loss with soft targets, gradients and AdamW, as train.py runs them. --set: an argument of the constructor, as in
--set depth=[[1,1,0]]. Prints a table: seconds from the start to the first result (compiling), then per iteration.

With --serve it is a worker that others may ask in turn, so that a drifting machine slows all alike: it prints
`ready SECONDS` after the first iteration, answers each line N on standard input with N times in seconds and the peak
resident memory in MB, and ends at `q`.
"""

import time

STARTED = time.perf_counter()

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from mindcv_crossvit import create_model, runtime
from mindcv_crossvit.ops import NAMES

ITERATIONS = 10


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time a model's forward pass or training step.", allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("batch", type=int)
    parser.add_argument("what", choices=("forward", "train"))
    parser.add_argument("--ops", choices=("auto", *NAMES), default="auto")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="ARGUMENT=VALUE")
    parser.add_argument("--size", type=int, default=240, help="pixels of the input of a MindCV model")
    parser.add_argument("--serve", action="store_true", help="answer on standard input instead of printing a table")
    return parser.parse_args()


def iteration(options: argparse.Namespace) -> Callable[[], object]:
    """One forward pass or one training step on random pictures, ready to be called."""
    overrides = {name: json.loads(value) for name, value in (c.split("=", 1) for c in options.changes)}
    model = create_model(options.model, ops=options.ops, **overrides)
    side = getattr(model, "input_size", options.size)  # MindCV's do not say
    images = np.random.default_rng(0).standard_normal((options.batch, 3, side, side), np.float32)
    return forward(model, images) if options.what == "forward" else train(model, images)


def forward(model, images: np.ndarray) -> Callable[[], object]:
    """The logits of a batch."""
    from mindspore import Tensor

    model.set_train(False)
    batch = Tensor(images)
    return lambda: model(batch).asnumpy()


def train(model, images: np.ndarray) -> Callable[[], object]:
    """One update with AdamW on smoothed targets."""
    from mindspore import ParameterTuple

    from mindcv_crossvit.training.groups import make_groups
    from mindcv_crossvit.training.optimizer import AdamW
    from mindcv_crossvit.training.step import Micro, Options, TrainStep

    targets = np.full((len(images), model.num_classes), 0.1 / model.num_classes, np.float32)
    targets[:, 0] += 0.9
    optimizer = AdamW(make_groups(list(model.trainable_params()), "official"))
    step = TrainStep(model, optimizer, Options(), ParameterTuple([]))
    micro, scalars = Micro(images, targets, np.zeros((0, len(images)), np.float32)), optimizer.scalars(1e-3, 1)
    return lambda: step.apply(micro, scalars)


def timed(run: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` iterations."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


def peak_mb() -> int:
    """Peak resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def serve(run: Callable[[], object]) -> None:
    """Answers each line N with N times and the peak memory, until `q`."""
    for line in sys.stdin:
        if line.strip() == "q":
            return
        print(*(f"{s:.6f}" for s in timed(run, int(line))), peak_mb(), flush=True)


def main() -> None:
    """Runs once to compile, then answers or prints."""
    options = arguments()
    device = runtime.start("auto").device
    run = iteration(options)
    run()
    ready = time.perf_counter() - STARTED
    run()
    if options.serve:
        print(f"ready {ready:.2f}", flush=True)
        return serve(run)
    seconds = timed(run, ITERATIONS)
    print("| model | ops | batch | what | device | first result | minimum | median | peak memory |")
    print("|---|---|--:|---|---|--:|--:|--:|--:|")
    print(
        f"| {options.model} | {options.ops} | {options.batch} | {options.what} | {device} | {ready:.1f} s"
        f" | {min(seconds) * 1e3:.1f} ms | {statistics.median(seconds) * 1e3:.1f} ms | {peak_mb()} MB |"
    )
    return None


if __name__ == "__main__":
    main()
