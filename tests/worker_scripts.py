"""Views for tests of the loader that need no pictures, and small programs to be run, and killed, as processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindcv_crossvit.data.loader import Batch, Loader
from mindcv_crossvit.data.sources import Source
from mindcv_crossvit.data.views import Arrays, Job


@dataclass(frozen=True)
class NumberView:
    """Batches that hold their job's number, and take their time or end their process when told to."""

    slow: int = -1
    fatal: int = -1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"number": (2,), "process": (1,)}

    def fill(self, job: Job, arrays: Arrays) -> list[tuple[int, str]]:
        number = job.rows[0]
        if number == self.fatal:
            os._exit(1)
        time.sleep(0.4 if number == self.slow else 0)
        arrays["number"][:], arrays["process"][:] = number, os.getpid()
        return []


def numbered(numbers: Iterable[int]) -> Iterable[Job]:
    return (Job(np.arange(2), np.zeros(2, np.int64), np.full(2, number)) for number in numbers)


@dataclass(frozen=True)
class SlowSource:
    """The pictures of another source, each after some seconds."""

    source: Source
    seconds: float

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Image.Image:
        time.sleep(self.seconds)
        return self.source.read(index)


class SlowToStart(NumberView):
    """A view that takes a worker a second to receive."""

    def __reduce__(self):
        return _slowly, ()


def _slowly() -> SlowToStart:
    time.sleep(1)
    return SlowToStart()


def _say_workers() -> None:
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)


def _until_both_work(batches: Iterator[Batch]) -> None:
    seen = set()
    while len(seen) < 2:
        time.sleep(0.002)
        seen.add(float(next(batches).arrays["process"][0]))


def after_start() -> None:
    """Says the workers' ids when both have prepared a batch, then waits."""
    loader = Loader({"numbers": NumberView()}, 2)
    _until_both_work(loader.batches("numbers", numbered(count())))
    _say_workers()
    time.sleep(60)


def while_starting() -> None:
    """Says the workers' ids when both have been sent what they need and are still unpacking it."""

    def watch() -> None:
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        _say_workers()

    threading.Thread(target=watch).start()
    next(Loader({"numbers": SlowToStart()}, 2).batches("numbers", numbered(count())))
    time.sleep(60)


def hold_a_batch() -> None:
    """Closes a loader in the middle of a pass whose batch it still reads."""
    loader = Loader({"numbers": NumberView()}, 1, prefetch=8)
    batches = loader.batches("numbers", numbered(range(90)))
    batch = next(batches)
    loader.close()
    assert batch.arrays["number"].tolist() == [0, 0]
    del batches
    print("ended", flush=True)


def signal_everyone() -> None:
    """Goes on after the signals of a scheduler or a terminal, which reach every process of the group."""
    os.setpgrp()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with Loader({"numbers": NumberView()}, 2) as loader:
        batches = loader.batches("numbers", numbered(count()))
        _until_both_work(batches)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.killpg(0, number)
            time.sleep(0.2)
        _until_both_work(batches)
    print("ended", flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
