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
from .shares import share_rows
from .sources import Source
from .transforms import EvalTransform, TrainTransform

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """One batch to prepare, [B] each: pictures `indices`, their rows in the epoch's order.

    copies: which of its repetitions in the epoch each picture is.
    """

    indices: np.ndarray
    copies: np.ndarray
    rows: np.ndarray
    epoch: int = 0


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
    """Augmented pictures `images` [B, 3, S, S] with soft targets `targets` [B, classes].

    group: rows of the epoch that share a mixing draw, whoever prepares them.
    """

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
        for row in range(len(labels)):
            labels[row] = self._picture(job, row, skipped, arrays["images"][row])
        soft_targets(labels, self.num_classes, self.smoothing, arrays["targets"])
        draws = partial(stream, self.seed, Purpose.MIX, job.epoch)
        mix_groups(arrays["images"], arrays["targets"], self.mix, self.group, draws, job.rows)
        return skipped

    def _picture(self, job: Job, row: int, skipped: list[tuple[int, str]], out: np.ndarray) -> int:
        """Fills `out`, gives the label; a picture that cannot be read is replaced by the next of the set that can."""
        for attempt in range(len(self.source)):
            chosen = (int(job.indices[row]) + attempt) % len(self.source)
            try:
                image = self.source.read(chosen)
            except BadImage as error:
                if not self.skip_bad:
                    raise
                skipped.append((row, str(error)))
                continue
            draw = partial(_draw, self.seed, job.epoch, chosen, int(job.copies[row]))
            self.transform(image, draw, out)
            return int(self.source.labels[chosen])
        raise BadImage("the training set", "no picture in it can be read")


def _draw(seed: int, epoch: int, index: int, copy: int, purpose: Purpose) -> np.random.Generator:
    return stream(seed, purpose, epoch, index, copy)


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
                self.transform(self.source.read(int(index)), arrays["images"][row])
            except BadImage as error:
                if not self.skip_bad:
                    raise
                skipped.append((row, str(error)))
        return skipped


@dataclass(frozen=True)
class Order:
    """Which pictures an epoch has, in which order; the same for every number of ranks.

    size: pictures of the set. per_epoch: updates of an epoch. repeats: times a picture is seen in an epoch.
    group: rows that are mixed with each other; copies of a picture fall into different groups.
    """

    seed: int
    size: int
    global_batch: int
    per_epoch: int
    repeats: int = 1
    group: int = 1

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(indices, copies) of an epoch's rows, [per_epoch * global_batch] each.

        A permutation, each picture `repeats` times in a row, cut to the epoch's length (the official sampler keeps a
        third of the pictures with three repeats) or begun again where the epoch is longer.
        """
        length = self.per_epoch * self.global_batch
        permutation = stream(self.seed, Purpose.ORDER, epoch).permutation(self.size)
        place = np.arange(length)
        rounds, place = np.divmod(place, self.size * self.repeats)
        indices, copies = permutation[place // self.repeats], place % self.repeats + rounds * self.repeats
        return self._spread(indices), self._spread(copies)

    def _spread(self, rows: np.ndarray) -> np.ndarray:
        """Deals neighbours out to different groups, as the official sampler deals them out to different ranks."""
        groups = self.global_batch // self.group
        if self.repeats == 1 or self.global_batch % self.group or groups < 2:
            return rows
        return rows.reshape(self.per_epoch, self.group, groups).transpose(0, 2, 1).reshape(-1)


def train_jobs(order: Order, per_device: int, rank: int, world: int, start: int, stop: int) -> Iterator[Job]:
    """The jobs of one rank for updates start to stop - 1.

    A global batch is the same whatever the number of ranks. Its k-th part of `per_device` rows (see share_rows) is rank
    k % world's, in micro-batch k // world.
    """
    indices, copies, known = np.empty(0, np.int64), np.empty(0, np.int64), -1
    for update in range(start, stop):
        epoch, step = divmod(update, order.per_epoch)
        if epoch != known:
            (indices, copies), known = order.epoch(epoch), epoch
        for micro in range(order.global_batch // (world * per_device)):
            part = step * order.global_batch + share_rows(micro * world + rank, per_device, order.group)
            yield Job(indices[part], copies[part], part, epoch)


def eval_jobs(size: int, batch: int, rank: int, world: int) -> list[Job]:
    """Each picture once over all ranks: rank r evaluates r, r + world, ...; every rank has the same number of jobs."""
    mine = np.arange(rank, size, world)
    count = math.ceil(math.ceil(size / world) / batch)
    parts = [mine[k * batch : (k + 1) * batch] for k in range(count)]
    return [Job(part, np.zeros_like(part), part) for part in parts]
