"""A rank's micro-batches, and what it met on the way to them that all ranks must hear of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..data.loader import Batch
from ..data.views import Arrays
from ..errors import Problem
from ..runtime import Runtime


class Feed:
    """Takes batches from a loader.

    A batch that cannot be prepared must not keep a rank from an update in which the others wait for it: it goes on with
    zeros, and after the update all ranks end together, see `hear`. Unreadable pictures that were replaced are counted,
    and named when they are met for the first time.
    """

    def __init__(self, batches: Iterator[Batch], shapes: dict[str, tuple[int, ...]], runtime: Runtime):
        self.batches, self.shapes, self.runtime = batches, shapes, runtime
        self._problem: Problem | None = None
        self._skipped = 0
        self._named: set[str] = set()
        self._new: list[str] = []

    def take(self) -> Arrays:
        """The arrays of the next batch, valid until the one after it is taken. Raises Problem on a single rank."""
        if self._problem is None:
            try:
                _, arrays, skipped = next(self.batches)
            except Problem as error:
                if self.runtime.world == 1:
                    raise
                self._problem = error
            else:
                self._skipped += len(skipped)
                self._new += dict.fromkeys(reason for _, reason in skipped if reason not in self._named)
                self._named.update(self._new)
                return arrays
        return {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}

    def news(self) -> tuple[bool, int, int]:
        """What the ranks add up: whether this one cannot go on, pictures skipped and names new since `hear`."""
        return self._problem is not None, self._skipped, len(self._new)

    def hear(self, cannot_go_on: float, new: float) -> list[str]:
        """Why pictures were skipped that were not named before, by any rank; called by all with the sums of `news`.

        Raises the same Problem on all of them when one cannot go on, see Runtime.agree.
        """
        if cannot_go_on:
            self.runtime.agree(self._problem)
        texts = self.runtime.texts("\n".join(self._new)) if new else []
        self._skipped, self._new = 0, []
        heard = list(dict.fromkeys(line for text in texts for line in text.splitlines()))
        self._named.update(heard)
        return heard
