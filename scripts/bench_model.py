"""Times a model beside anything else: the forward pass, or the whole training step.

python scripts/bench_model.py MODEL BATCH forward|train [--ops native] [--set ARGUMENT=VALUE] [--serve]

train: loss with soft targets, gradients and AdamW, as train.py runs them. --set: an argument of the constructor, as in
--set depth=[[1,1,0]]. Prints a table: seconds from the start to the first result (compiling), then per iteration.

With --serve it is a worker that others may ask in turn, see worker.py.
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
from worker import peak_mb, serve, timed

from mindcv_crossvit import create_model, runtime
from mindcv_crossvit.ops import NAMES, PRECISIONS

ITERATIONS = 10


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time a model's forward pass or training step.", allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("batch", type=int)
    parser.add_argument("what", choices=("forward", "train"))
    parser.add_argument("--ops", choices=("auto", *NAMES), default="auto")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="O0", help="what is float16, see mindcv_crossvit.ops"
    )
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="ARGUMENT=VALUE")
    parser.add_argument("--size", type=int, default=240, help="pixels of the input of a MindCV model")
    parser.add_argument("--serve", action="store_true", help="answer on standard input instead of printing a table")
    return parser.parse_args()


def iteration(options: argparse.Namespace) -> Callable[[], object]:
    """One forward pass or one training step on random pictures, ready to be called."""
    overrides = {name: json.loads(value) for name, value in (c.split("=", 1) for c in options.changes)}
    model = create_model(options.model, ops=options.ops, precision=options.precision, **overrides)
    side = getattr(model, "input_size", options.size)  # MindCV's do not say
    images = np.random.default_rng(0).standard_normal((options.batch, 3, side, side), np.float32)
    return forward(model, images) if options.what == "forward" else train(model, images, options.precision != "O0")


def forward(model, images: np.ndarray) -> Callable[[], object]:
    """The logits of a batch."""
    from mindspore import Tensor

    model.set_train(False)
    batch = Tensor(images)
    return lambda: model(batch).asnumpy()


def train(model, images: np.ndarray, half: bool) -> Callable[[], object]:
    """One update with AdamW on smoothed targets, in half precision with a loss scale."""
    from mindspore import ParameterTuple

    from mindcv_crossvit.training.groups import make_groups
    from mindcv_crossvit.training.optimizer import AdamW
    from mindcv_crossvit.training.step import Micro, Options, TrainStep

    classes = getattr(model, "num_classes", 1000)  # MindCV's in half precision do not say
    targets = np.full((len(images), classes), 0.1 / classes, np.float32)
    targets[:, 0] += 0.9
    optimizer = AdamW(make_groups(list(model.trainable_params()), "official"))
    step = TrainStep(model, optimizer, Options(loss_scaled=half), ParameterTuple([]))
    micro, scalars = Micro(images, targets, np.zeros((0, len(images)), np.float32)), optimizer.scalars(1e-3, 1)
    return lambda: step.apply(micro, scalars)


def main() -> None:
    """Runs once to compile, then answers or prints."""
    options = arguments()
    process = runtime.start("auto")
    process.keep_graphs(command=sys.argv[1:])
    run = iteration(options)
    run()
    ready = time.perf_counter() - STARTED
    run()
    if options.serve:
        return serve(run, ready)
    seconds = timed(run, ITERATIONS)
    print("| model | ops | batch | what | device | first result | minimum | median | peak memory |")
    print("|---|---|--:|---|---|--:|--:|--:|--:|")
    print(
        f"| {options.model} | {options.ops} | {options.batch} | {options.what} | {process.device} | {ready:.1f} s"
        f" | {min(seconds) * 1e3:.1f} ms | {statistics.median(seconds) * 1e3:.1f} ms | {peak_mb()} MB |"
    )
    return None


if __name__ == "__main__":
    main()
