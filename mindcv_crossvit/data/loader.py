"""Worker processes that prepare batches ahead, in shared memory; results do not depend on their number."""

from __future__ import annotations

import multiprocessing
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from math import prod
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from ..errors import MachineError, UserError
from ..process import die_with_parent, ignore_stop_signals, stop_signals_held
from . import pixels
from .images import BadImage
from .views import Arrays, Job, View

SHARED_MEMORY = Path("/dev/shm")
MEMORY = Path("/proc/meminfo")
SIZES = {"train": "batch.largest_per_device", "val": "evaluate.batch"}
"""What says how large the batches of a view are."""


class Batch(NamedTuple):
    """A prepared batch; `arrays` are valid until the next batch is taken."""

    job: Job
    arrays: Arrays
    skipped: list[tuple[int, str]]


class Loader:
    """Prepares the batches of several views with one set of workers.

    workers: processes; with 0 everything is done when a batch is asked for.
    prefetch: batches ahead per worker.
    `waited` counts the seconds callers had to wait for a batch.
    """

    def __init__(self, views: Mapping[str, View], workers: int, prefetch: int = 2):
        self.views, self.waited = dict(views), 0.0
        slots = workers * prefetch + 1 if workers else 1
        _check_room({name: _slot_bytes(view.shapes()) * slots for name, view in views.items()}, workers > 0)
        self._memory = {name: _Memory(view.shapes(), slots) for name, view in views.items()} if workers else {}
        self._pool = None
        if workers:
            pixels.compiled()  # once, not by every worker
            memory = {
                name: (block.name, view.shapes())
                for (name, view), block in zip(views.items(), self._memory.values(), strict=True)
            }
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, _start_worker, (self.views, memory))
            with stop_signals_held():
                self._pool.submit(_begin)  # starts all workers

    def batches(self, view: str, jobs: Iterable[Job]) -> Iterator[Batch]:
        """The batches of `jobs`, in order.

        Raises UserError for a picture that cannot be read, MachineError for storage that fails and a lost worker.
        """
        try:
            yield from self._prefetched(view, iter(jobs)) if self._pool else self._inline(view, jobs)
        except BadImage as error:
            raise UserError(f"a picture cannot be read: {error}; mend it, or set data.bad_images=skip") from error
        except BrokenProcessPool as error:
            raise MachineError(
                "a data worker process died; most often memory ran out: lower data.workers or data.prefetch"
            ) from error

    def _inline(self, view: str, jobs: Iterable[Job]) -> Iterator[Batch]:
        arrays = {name: np.zeros(shape, np.float32) for name, shape in self.views[view].shapes().items()}
        for job in jobs:
            started = perf_counter()
            skipped = self.views[view].fill(job, arrays)
            self.waited += perf_counter() - started
            yield Batch(job, arrays, skipped)

    def _prefetched(self, view: str, jobs: Iterator[Job]) -> Iterator[Batch]:
        assert self._pool is not None
        memory = self._memory[view]
        free = deque(range(memory.slots))
        waiting: deque[tuple[Job, int, Future[list[tuple[int, str]]]]] = deque()
        try:
            while True:
                while free and (job := next(jobs, None)) is not None:
                    waiting.append((job, free[0], self._pool.submit(_work, view, job, free.popleft())))
                if not waiting:
                    return
                started = perf_counter()
                skipped = waiting[0][2].result()
                self.waited += perf_counter() - started
                job, slot, _ = waiting.popleft()
                yield Batch(job, memory.arrays(slot), skipped)
                free.append(slot)
        finally:  # given up before the end: the slots are free when nobody writes to them any more
            wait([future for _, _, future in waiting if not future.cancel()])

    def close(self) -> None:
        """Ends the workers and gives the memory back."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for memory in self._memory.values():
            memory.close()
        self._pool, self._memory = None, {}

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _slot_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(4 * prod(shape) for shape in shapes.values())


def _check_room(needed: Mapping[str, int], shared: bool) -> None:
    """Memory that is promised and not there ends a process without a word, much later. needed: bytes for each view."""
    total, free = sum(needed.values()), _free(shared)
    if free is None or total <= free:
        return
    size = SIZES.get(max(needed, key=lambda name: needed[name]), "the batch")
    where = f"shared memory, {SHARED_MEMORY}" if shared else "memory, this machine"
    lower = f"{size}, data.workers or data.prefetch, or enlarge it (containers: --shm-size)" if shared else size
    raise UserError(f"batches need {total / 1e9:.2f} GB of {where} has {free / 1e9:.2f} GB: lower {lower}")


def _free(shared: bool) -> int | None:
    """Bytes of shared memory, or of any, that are free; None where it cannot be known."""
    if shared:
        return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None
    if not MEMORY.is_file():
        return None
    found = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    return 1024 * int(found["MemAvailable"].split()[0])


class _Memory:
    """Slots for batches in one block of shared memory."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], slots: int, name: str | None = None):
        self.shapes, self.slots, self._owner = shapes, slots, name is None
        self._slot_bytes = _slot_bytes(shapes)
        self._block = SharedMemory(name, create=name is None, size=0 if name else max(self._slot_bytes * slots, 1))
        self.name = self._block.name

    def arrays(self, slot: int) -> Arrays:
        """The arrays of one slot."""
        assert self._block.buf is not None
        offset, found = slot * self._slot_bytes, {}
        for name, shape in self.shapes.items():
            found[name] = np.frombuffer(self._block.buf, np.float32, prod(shape), offset).reshape(shape)
            offset += 4 * prod(shape)
        return found

    def close(self) -> None:
        try:
            self._block.close()
        except BufferError:  # a caller still holds a batch; the memory goes with that
            self._block.close = lambda: None
        if self._owner:
            self._block.unlink()


_views: dict[str, View] = {}
_worker_memory: dict[str, _Memory] = {}


def _start_worker(views: dict[str, View], memory: dict[str, tuple[str, dict[str, tuple[int, ...]]]]) -> None:
    ignore_stop_signals()
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    die_with_parent(parent.pid)
    _views.update(views)
    for view, (name, shapes) in memory.items():
        _worker_memory[view] = _Memory(shapes, 0, name)


def _begin() -> None:
    """Nothing: the first thing to do."""


def _work(view: str, job: Job, slot: int) -> list[tuple[int, str]]:
    return _views[view].fill(job, _worker_memory[view].arrays(slot))
