"""How a data set is looked at: which pictures, in which order, as which arrays. A batch is a function of its job."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from ..recipe import Mix
from .draws import Purpose, stream
from .images import BadImage
from .mixing import mix_groups, soft_targets
from .sources import Source
from .transforms import EvalTransform, TrainTransform

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """One batch to prepare: pictures `indices`, rows first_row, first_row + 1, ... of their epoch."""

    indices: np.ndarray
    epoch: int = 0
    first_row: int = 0


class View(Protocol):
    """Fills the arrays of one batch."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each float32 array of a batch."""
        ...

    def fill(self, job: Job, arrays: Arrays) -> list[tuple[int, str]]:
        """Prepares the batch in place; returns (row, reason) of pictures that were skipped. Raises BadImage."""
        ...


@dataclass(frozen=True)
class TrainView:
    """Augmented pictures `images` [B, 3, S, S] with soft targets `targets` [B, classes]."""

    source: Source
    transform: TrainTransform
    num_classes: int
    smoothing: float
    mix: Mix
    group: int
    batch: int
    seed: int
    skip_bad: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See View."""
        size = self.transform.size
        return {"images": (self.batch, 3, size, size), "targets": (self.batch, self.num_classes)}

    def fill(self, job: Job, arrays: Arrays) -> list[tuple[int, str]]:
        """See View."""
        skipped: list[tuple[int, str]] = []
        labels = np.empty(len(job.indices), np.int64)
        for row, index in enumerate(job.indices):
            arrays["images"][row], labels[row] = self._picture(job.epoch, int(index), row, skipped)
        soft_targets(labels, self.num_classes, self.smoothing, arrays["targets"])
        first_group = job.first_row // self.group
        mix_groups(
            arrays["images"],
            arrays["targets"],
            self.mix,
            self.group,
            lambda k: stream(self.seed, Purpose.MIX, job.epoch, first_group + k),
        )
        return skipped

    def _picture(self, epoch: int, index: int, row: int, skipped: list[tuple[int, str]]) -> tuple[np.ndarray, int]:
        """A picture and its label; one that cannot be read is replaced by the next of the set that can."""
        for attempt in range(len(self.source)):
            chosen = (index + attempt) % len(self.source)
            try:
                image = self.source.read(chosen)
            except BadImage as error:
                if not self.skip_bad:
                    raise
                skipped.append((row, str(error)))
                continue
            draw = partial(_draw, self.seed, epoch, chosen)
            return self.transform(image, draw), int(self.source.labels[chosen])
        raise BadImage("the training set", "no picture in it can be read")


def _draw(seed: int, epoch: int, index: int, purpose: Purpose) -> np.random.Generator:
    return stream(seed, purpose, epoch, index)


@dataclass(frozen=True)
class EvalView:
    """Pictures as they are evaluated, `images` [B, 3, S, S]; rows beyond the job's pictures are left as they are."""

    source: Source
    transform: EvalTransform
    batch: int
    skip_bad: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See View."""
        return {"images": (self.batch, 3, self.transform.size, self.transform.size)}

    def fill(self, job: Job, arrays: Arrays) -> list[tuple[int, str]]:
        """See View."""
        skipped: list[tuple[int, str]] = []
        for row, index in enumerate(job.indices):
            try:
                arrays["images"][row] = self.transform(self.source.read(int(index)))
            except BadImage as error:
                if not self.skip_bad:
                    raise
                skipped.append((row, str(error)))
        return skipped


def epoch_order(seed: int, epoch: int, size: int, length: int) -> np.ndarray:
    """The pictures of one epoch, [length]: a permutation of range(size), begun again where length is larger."""
    order = stream(seed, Purpose.ORDER, epoch).permutation(size)
    return np.resize(order, length)


def train_jobs(
    seed: int,
    size: int,
    global_batch: int,
    per_device: int,
    rank: int,
    world: int,
    start: int,
    stop: int,
    per_epoch: int,
) -> Iterator[Job]:
    """The jobs of one rank for updates start to stop - 1.

    Row g of a global batch belongs to micro-batch g // (world * per_device) and in it to rank
    (g // per_device) % world, whatever the number of ranks: the global batch is the same.
    """
    order, order_epoch = np.empty(0, np.int64), -1
    for update in range(start, stop):
        epoch, step = divmod(update, per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(seed, epoch, size, per_epoch * global_batch), epoch
        for micro in range(global_batch // (world * per_device)):
            first = step * global_batch + (micro * world + rank) * per_device
            yield Job(order[first : first + per_device], epoch, first)


def eval_jobs(size: int, batch: int, rank: int, world: int) -> list[Job]:
    """Each picture once over all ranks: rank r evaluates r, r + world, ...; every rank has the same number of jobs."""
    mine = np.arange(rank, size, world)
    count = math.ceil(math.ceil(size / world) / batch)
    return [Job(mine[k * batch : (k + 1) * batch]) for k in range(count)]
