"""Exact scores: every picture once, whatever the batch size and the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn

from .data.loader import Loader
from .data.views import eval_jobs
from .errors import Problem
from .presence import mark
from .runtime import Runtime

VIEW = "val"
Logits = Callable[[np.ndarray], np.ndarray]
"""From images, float32 [B, 3, S, S], to logits, float32 [B, classes]."""


@dataclass(frozen=True)
class Score:
    """A score over a whole set, all ranks together.

    top1, top5: percent. loss: mean cross-entropy in nats. images: pictures counted. skipped: unreadable pictures.
    """

    top1: float
    top5: float
    loss: float
    images: int
    skipped: int = 0


@contextmanager
def scoring(model: nn.Cell) -> Iterator[Logits]:
    """A model's logits, in evaluation mode as long as it lasts."""
    was_training = model.training
    model.set_train(False)
    try:
        yield lambda images: model(Tensor(images)).asnumpy()
    finally:
        model.set_train(was_training)


def evaluate(
    logits_of: Logits,
    loader: Loader,
    labels: np.ndarray,
    batch: int,
    runtime: Runtime,
    say: Callable[[str], None] = print,
) -> Score:
    """Scores logits on the loader's `val` view.

    labels: [N] of the whole set. batch: pictures per rank and step. Logits of the padding rows are masked out; the
    per-picture outcomes of all ranks are put back into the set's order and summed there in float64, so that the
    result does not depend on how they were divided. Raises the same Problem on all ranks when one of them cannot go
    on, for a picture that it cannot read, and RuntimeError when a picture was not counted once.
    """
    jobs = eval_jobs(len(labels), batch, runtime.rank, runtime.world)
    losses = np.full((len(jobs), batch), np.nan, np.float32)
    positions = np.full((len(jobs), batch), -1, np.int32)
    skipped: list[str] = []
    problem = None
    try:
        for k, (job, arrays, bad) in enumerate(loader.batches(VIEW, jobs)):
            mark("validating" if k else "compiling")
            count = len(job.indices)
            logits = logits_of(arrays["images"])[:count]
            losses[k, :count], positions[k, :count] = outcomes(logits, labels[job.indices])
            for row, reason in bad:
                positions[k, row] = -1
                skipped.append(reason)
    except Problem as error:
        problem = error
    runtime.agree(problem)
    reasons = [line for text in runtime.texts("\n".join(skipped)) for line in text.splitlines()]
    if runtime.is_main:
        for reason in reasons:
            say(f"skipped: {reason}")
        if reasons:
            say(f"skipped   {len(reasons):,} of {len(labels):,} validation pictures cannot be read")
    return _total(_in_order(losses, runtime), _in_order(positions, runtime), len(labels), len(reasons))


def outcomes(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cross-entropy, position of the true class from 0) of each row; [B, classes] and [B] -> [B], [B].

    Of equal logits the first class is ahead, as for argmax. Where the true logit is not a number, it is last.
    """
    logits = logits.astype(np.float64)
    true = logits[np.arange(len(labels)), labels][:, None]
    top = logits.max(1, keepdims=True)
    loss = np.log(np.exp(logits - top).sum(1)) + (top - true)[:, 0]
    before = np.arange(logits.shape[1])[None] < labels[:, None]
    ahead = (~(logits <= true)) | ((logits == true) & before)
    return loss, ahead.sum(1)


def _in_order(values: np.ndarray, runtime: Runtime) -> np.ndarray:
    """[jobs, batch] of every rank -> [world * jobs * batch] in the set's order: rank r had r, r + world, ..."""
    return runtime.gather(values).reshape(runtime.world, -1).T.reshape(-1)


def _total(losses: np.ndarray, positions: np.ndarray, size: int, skipped: int) -> Score:
    counted = positions >= 0
    images = int(counted.sum())
    if images + skipped != size:
        raise RuntimeError(f"{images} pictures were counted and {skipped} skipped, but the set has {size}")
    where = positions[counted]
    return Score(
        top1=100 * float((where < 1).sum()) / max(images, 1),
        top5=100 * float((where < 5).sum()) / max(images, 1),
        loss=float(losses[counted].astype(np.float64).sum()) / max(images, 1),
        images=images,
        skipped=skipped,
    )
