"""Batches are a function of their job alone: of no worker, rank or restart. With real processes on real digits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from reference import reference
from worker_scripts import NumberView, numbered

from mindcv_crossvit.data import views
from mindcv_crossvit.data.draws import Purpose, drop_path_scale, stream
from mindcv_crossvit.data.loader import Loader
from mindcv_crossvit.data.sources import EncodedSource, Source, Splits, open_data
from mindcv_crossvit.data.transforms import EvalTransform, Normalise, TrainTransform
from mindcv_crossvit.data.views import Arrays, EvalView, Job, Order, TrainView, View, eval_jobs, train_jobs
from mindcv_crossvit.errors import MachineError, UserError
from mindcv_crossvit.recipe import Augment, Data, Mix

Bytes = tuple[dict[str, bytes], list[tuple[int, str]]]
GLOBAL, PER_DEVICE, PER_EPOCH = 32, 8, 3
PIXELS = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


@cache
def digits() -> Splits:
    return open_data(Data(source="digits"))


def few(count: int, bad: Iterable[int] = ()) -> EncodedSource:
    """The first digits, some of which cannot be read."""
    whole = digits().train
    assert isinstance(whole, EncodedSource)
    files = [b"no picture" if k in set(bad) else whole.files[k] for k in range(count)]
    return EncodedSource(files, whole.labels[:count], "digits")


def train_view(source: Source | None = None, skip_bad: bool = False, batch: int = PER_DEVICE) -> TrainView:
    augment = Augment(rand_augment="rand-m9-mstd0.5-inc1", erase=0.25)
    return TrainView(
        source=source or digits().train,
        transform=TrainTransform(16, augment, PIXELS),
        num_classes=10,
        smoothing=0.1,
        mix=Mix(mixup=0.8, cutmix=1.0, group=4),
        group=4,
        batch=batch,
        seed=3,
        skip_bad=skip_bad,
    )


def eval_view(source: Source | None = None, skip_bad: bool = False) -> EvalView:
    return EvalView(source or digits().val, EvalTransform(16, 0.875, PIXELS), 25, skip_bad)


def order(size: int = 1437, per_epoch: int = PER_EPOCH, repeats: int = 1, seed: int = 3) -> Order:
    return Order(seed, size, GLOBAL, per_epoch, repeats, group=4)


def jobs(
    start: int = 0, stop: int = 5, rank: int = 0, world: int = 1, per_device: int = PER_DEVICE, **how: int
) -> Iterator[Job]:
    return train_jobs(order(**how), per_device, rank, world, start, stop)


def job(pictures: Iterable[int], epoch: int = 0, first_row: int = 0, copy: int = 0) -> Job:
    indices = np.array(list(pictures))
    return Job(indices, np.full(len(indices), copy), np.arange(first_row, first_row + len(indices)), epoch)


def run(loader: Loader, view: str, work: Iterable[Job]) -> list[Bytes]:
    """Of each batch the bytes of the rows that belong to pictures, and what was skipped.

    In evaluation a skipped row, as one beyond the last picture, holds anything: nobody looks at it.
    """
    result = []
    for job, arrays, skipped in loader.batches(view, work):
        void = {row for row, _ in skipped} if view.startswith("val") else set()
        rows = [row for row in range(len(job.indices)) if row not in void]
        result.append(({name: array[rows].tobytes() for name, array in arrays.items()}, list(skipped)))
    return result


def filled(view: View, job: Job) -> Arrays:
    arrays = {name: np.full(shape, np.nan, np.float32) for name, shape in view.shapes().items()}
    assert view.fill(job, arrays) == []
    return arrays


# Workers


def test_batches_are_the_same_bytes_for_every_number_of_workers():
    views = {"train": train_view(), "val": eval_view()}
    results = []
    for workers in (0, 1, 2):
        with Loader(views, workers) as loader:
            results.append((run(loader, "train", jobs()), run(loader, "val", eval_jobs(360, 25, 0, 1))))
    assert len(results[0][0]) == 20 and len(results[0][1]) == 15
    assert results[0] == results[1] == results[2]
    assert len({images["images"] for images, _ in results[0][0]}) == 20


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Loader]:
    bad = few(40, bad=(5, 6, 39))
    views: dict[str, View] = {
        "stop": train_view(bad),
        "skip": train_view(bad, skip_bad=True),
        "hopeless": train_view(few(12, bad=range(12)), skip_bad=True),
        "val stop": eval_view(bad),
        "val skip": eval_view(bad, skip_bad=True),
        "numbers": NumberView(slow=1),
    }
    with Loader(views, 2, prefetch=4) as loader:
        yield loader


@pytest.fixture(scope="module")
def no_workers(two_workers: Loader) -> Loader:
    return Loader(two_workers.views, 0)


def test_a_batch_does_not_change_until_the_next_is_taken(two_workers):
    for job, arrays, _ in two_workers.batches("numbers", numbered(range(2, 30))):
        time.sleep(0.005)
        assert arrays["number"].tolist() == [job.rows[0]] * 2


def test_the_order_is_that_of_the_jobs_even_if_one_takes_long(two_workers):
    found = [float(arrays["number"][0]) for _, arrays, _ in two_workers.batches("numbers", numbered(range(20)))]
    assert found == list(range(20))


def test_no_jobs_give_no_batches(two_workers, no_workers):
    for loader in (two_workers, no_workers):
        assert list(loader.batches("numbers", [])) == []


def test_a_pass_that_was_given_up_does_not_write_into_the_next(two_workers):
    """Job 1 is still being prepared, for the second slot, when the next pass begins."""
    assert next(two_workers.batches("numbers", numbered(range(8)))).job.rows[0] == 0
    for job, arrays, _ in two_workers.batches("numbers", numbered(range(100, 104))):
        time.sleep(0.2)
        assert arrays["number"].tolist() == [job.rows[0]] * 2


@pytest.mark.parametrize("view", ["stop", "val stop"])
def test_a_bad_picture_stops_with_its_name(two_workers, no_workers, view):
    for loader in (two_workers, no_workers):
        with pytest.raises(UserError) as caught:
            run(loader, view, [job(range(8))])
        assert str(caught.value) == (
            "a picture cannot be read: digits picture 5: cannot identify image file;"
            " mend it, or set data.bad_images=skip"
        )


@pytest.mark.parametrize("view", ["skip", "val skip"])
def test_what_is_skipped_is_the_same_for_every_number_of_workers(two_workers, no_workers, view):
    work = [job(range(start, start + 8), 1, start) for start in (0, 8, 16, 24, 32)]
    first, *_, last = results = run(two_workers, view, work)
    assert run(no_workers, view, work) == results
    with Loader({view: two_workers.views[view]}, 1) as one_worker:
        assert run(one_worker, view, work) == results
    assert [row for row, _ in first[1]] == ([5, 5, 6] if view == "skip" else [5, 6])
    assert [row for row, _ in last[1]] == [7]
    assert all(reason.startswith("digits picture ") for _, skipped in results for _, reason in skipped)
    assert sum(len(skipped) for _, skipped in results) == (4 if view == "skip" else 3)


def test_a_skipped_training_picture_is_replaced_by_the_next_good_one():
    view = replace(train_view(few(40, bad=(5, 6, 39)), skip_bad=True), mix=Mix())
    arrays = {name: np.zeros(shape, np.float32) for name, shape in view.shapes().items()}
    view.fill(job([5, 7, 39, 0, 6, 1, 2, 3]), arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array[0], array[1], name)  # 5 and 6 are bad: 7 takes their place
        np.testing.assert_array_equal(array[2], array[3], name)  # 39 is the last: 0 takes its place
        np.testing.assert_array_equal(array[4], array[1], name)
    assert not np.array_equal(arrays["images"][5], arrays["images"][6])


def test_a_set_without_a_good_picture_stops(two_workers, no_workers):
    for loader in (two_workers, no_workers):
        with pytest.raises(UserError, match="the training set: no picture in it can be read"):
            run(loader, "hopeless", [job(range(8))])


def test_the_time_callers_wait_is_counted(no_workers):
    before = no_workers.waited
    list(no_workers.batches("numbers", numbered([1])))
    assert no_workers.waited - before >= 0.4


def test_a_worker_that_dies_is_no_fault_of_the_recipe():
    said = "a data worker process died; most often memory ran out"
    with Loader({"numbers": NumberView(fatal=3)}, 2) as loader, pytest.raises(MachineError, match=said):
        list(loader.batches("numbers", numbered(range(8))))


@pytest.mark.parametrize("workers", [0, 1])
def test_closing_twice_is_fine(workers):
    loader = Loader({"numbers": NumberView()}, workers)
    list(loader.batches("numbers", numbered(range(3))))
    loader.close()
    loader.close()
    Loader({"numbers": NumberView()}, workers).close()


# Whole processes


def start(what: str) -> subprocess.Popen[str]:
    command = [sys.executable, ROOT / "tests" / "worker_scripts.py", what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize("when", ["after_start", "while_starting"])
def test_workers_die_with_their_parent(when):
    parent = start(when)
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    try:
        assert len(workers) == 2 and all(alive(w) for w in workers)
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(alive(w) for w in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [w for w in workers if alive(w)]
    finally:
        for process in (parent.pid, *workers):
            if alive(process):
                os.kill(process, signal.SIGKILL)
        parent.communicate(timeout=10)


@pytest.mark.parametrize("what", ["hold_a_batch", "signal_everyone"])
def test_a_program_goes_on(what):
    """That still reads a batch after its loader has ended; that is asked to stop together with its workers."""
    output, errors = start(what).communicate(timeout=60)
    assert (output, errors) == ("ended\n", "")


def test_neither_workers_nor_recipes_import_mindspore():
    code = (
        "import sys, mindcv_crossvit.data.loader, mindcv_crossvit.data.sources, mindcv_crossvit.recipe\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('mindspore', 'mindcv', 'torch', 'sklearn')))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Jobs


def global_rows(world: int, per_device: int, stop: int = 5, **how: int) -> dict[tuple[int, int], tuple[int, int]]:
    """(picture, copy) of each (epoch, row) that the ranks prepare together; each row once."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for rank in range(world):
        mine = list(jobs(0, stop, rank, world, per_device, **how))
        assert len(mine) == stop * GLOBAL // (world * per_device)
        for work in mine:
            assert len(work.indices) == len(work.copies) == per_device
            for index, copy, row in zip(work.indices.tolist(), work.copies.tolist(), work.rows.tolist(), strict=True):
                assert (work.epoch, row) not in found
                found[work.epoch, row] = index, copy
    return dict(sorted(found.items()))


@pytest.mark.parametrize(
    "world, per_device", [(1, 8), (1, 16), (2, 4), (2, 8), (2, 16), (4, 8), (4, 4), (8, 4), (32, 1)]
)
def test_all_ranks_together_have_the_rows_of_one(world, per_device):
    assert global_rows(world, per_device) == global_rows(1, GLOBAL)


@pytest.mark.parametrize("repeats", [2, 3])
def test_all_ranks_together_have_the_repeated_rows_of_one(repeats):
    for world, per_device in ((2, 8), (4, 4)):
        assert global_rows(world, per_device, repeats=repeats) == global_rows(1, GLOBAL, repeats=repeats)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_micro_batches_come_before_ranks_in_a_global_batch(world):
    for rank in range(world):
        for k, work in enumerate(jobs(0, 7, rank, world, per_device=4)):
            update, micro = divmod(k, GLOBAL // (world * 4))
            epoch, step = divmod(update, PER_EPOCH)
            first = step * GLOBAL + (micro * world + rank) * 4
            assert work.epoch == epoch and work.rows.tolist() == list(range(first, first + 4))


def test_updates_take_the_rows_of_an_epoch_in_order():
    rows = global_rows(1, PER_DEVICE, 2 * PER_EPOCH)
    assert list(rows) == [(epoch, row) for epoch in range(2) for row in range(PER_EPOCH * GLOBAL)]
    for epoch in range(2):
        indices, copies = order().epoch(epoch)
        found = [rows[epoch, row] for row in range(PER_EPOCH * GLOBAL)]
        assert found == list(zip(indices.tolist(), copies.tolist(), strict=True))


@pytest.mark.parametrize("start", [1, PER_EPOCH, PER_EPOCH + 1, 7])
def test_starting_in_the_middle_gives_the_same_tail(start):
    def listed(work: Iterable[Job]) -> list[tuple[int, list[int], list[int]]]:
        return [(job.epoch, job.rows.tolist(), job.indices.tolist()) for job in work]

    for rank in range(2):
        whole = listed(jobs(0, 9, rank, 2))
        assert listed(jobs(start, 9, rank, 2)) == whole[start * GLOBAL // (2 * PER_DEVICE) :]


def test_batches_after_a_restart_are_the_same_bytes(two_workers):
    work = list(jobs(size=40))
    assert run(two_workers, "skip", work[11:]) == run(two_workers, "skip", work)[11:]


def test_epochs_have_other_orders_and_other_augmentation():
    whole = order(size=1440, per_epoch=45)
    (first, copies), (second, _) = whole.epoch(0), whole.epoch(1)
    assert sorted(first) == sorted(second) == list(range(1440)) and not copies.any()
    assert (first == second).mean() < 0.01
    view = replace(train_view(), mix=Mix())
    pictures = [filled(view, job(range(8), epoch))["images"] for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert all(not np.array_equal(a, b) for a, b in zip(pictures[0], pictures[2], strict=True))


def test_another_seed_is_another_order():
    assert (order(seed=3).epoch(0)[0] == order(seed=4).epoch(0)[0]).mean() < 0.1


def test_a_global_batch_larger_than_the_set_takes_every_picture_again_as_another_copy():
    rows = list(global_rows(1, GLOBAL, PER_EPOCH, size=10).values())
    assert len(rows) == PER_EPOCH * GLOBAL == len(set(rows))
    counts = np.bincount([index for index, _ in rows], minlength=10)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("repeats", [2, 3])
def test_a_repeated_picture_has_every_copy_once_each_in_another_group(repeats):
    """As in the official repeated sampler: copies follow each other, dealt out in turn; here to 8 groups of 4."""
    rows = global_rows(1, GLOBAL, PER_EPOCH, repeats=repeats)
    seen: dict[int, list[tuple[int, int]]] = {}
    for (_, row), (index, copy) in rows.items():
        seen.setdefault(index, []).append((row // 4, copy))
    assert len(seen) == -(-PER_EPOCH * GLOBAL // repeats)
    assert sum(len(places) == repeats for places in seen.values()) >= len(seen) - 1
    for places in seen.values():
        assert {copy for _, copy in places} == set(range(len(places)))
        assert len({group for group, _ in places}) == len(places)


def test_the_order_is_timms_repeated_sampler_with_a_mixing_group_for_each_of_its_ranks(monkeypatch):
    known = reference("repeats.json")
    given = SimpleNamespace(permutation=lambda size: np.array(known["order"]))
    monkeypatch.setattr(views, "stream", lambda *_: given)
    ranks, updates = len(known["ranks"]), len(known["ranks"][0]) // 16
    indices, _ = Order(0, known["pictures"], 16 * ranks, updates, known["repeats"], group=16).epoch(0)
    for rank, theirs in enumerate(known["ranks"]):
        assert indices.reshape(updates, ranks, 16)[:, rank].reshape(-1).tolist() == theirs


def test_copies_of_a_picture_have_other_draws():
    view = replace(train_view(), mix=Mix())
    first, again, other = (filled(view, job(range(8), copy=copy))["images"] for copy in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert all(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 64, 65, 200])
def test_every_picture_is_evaluated_once_and_every_rank_has_as_many_jobs(size, batch, world):
    work = [eval_jobs(size, batch, rank, world) for rank in range(world)]
    assert len({len(mine) for mine in work}) == 1
    indices = [int(index) for mine in work for job in mine for index in job.indices]
    assert sorted(indices) == list(range(size))
    assert all(len(job.indices) <= batch for mine in work for job in mine)
    assert all(any(len(mine[k].indices) for mine in work) for k in range(len(work[0])))


def test_an_evaluation_job_without_pictures_is_a_batch(no_workers):
    work = eval_jobs(2, 25, 2, 3)
    assert [len(job.indices) for job in work] == [0]
    assert run(no_workers, "val skip", work) == [({"images": b""}, [])]


# Streams of random numbers


def test_streams_differ_in_everything_they_are_for():
    bits = {"seed": 31, "epoch": 32, "index": 40, "copy": 16}
    plain = {"seed": 0, "purpose": Purpose.ORDER, "epoch": 0, "index": 0, "copy": 0}
    largest = {name: (1 << width) - 1 for name, width in bits.items()}
    cases = [{**plain, "purpose": purpose} for purpose in Purpose]
    cases += [{**plain, name: 1 << bit} for name, width in bits.items() for bit in range(width)]
    cases += [{**plain, name: value} for name, value in largest.items()]
    cases += [{**largest, "purpose": purpose} for purpose in Purpose]
    first = {stream(**case).bytes(16) for case in cases}  # type: ignore[arg-type]
    assert len(first) == len(cases)


def test_drop_path_keeps_and_scales_with_the_right_chance():
    rates = (0.0, 0.1, 0.3, 0.5)
    values = np.concatenate([drop_path_scale(3, update, rates, 256) for update in range(100)], 1)
    assert values.dtype == np.float32 and values.shape == (4, 25600)
    assert (values[0] == 1).all()
    for rate, row in zip(rates[1:], values[1:], strict=True):
        assert set(np.unique(row)) == {np.float32(0), np.float32(1) / (np.float32(1) - np.float32(rate))}
        assert abs((row == 0).mean() - rate) < 2.58 * np.sqrt(rate * (1 - rate) / row.size)
        assert abs(row.mean() - 1) < 2.58 * np.sqrt(rate / (1 - rate) / row.size)
    between = np.corrcoef(values[1:])
    assert np.abs(between - np.eye(3)).max() < 4 / np.sqrt(values.shape[1])


def test_drop_path_is_a_function_of_seed_and_update():
    first = drop_path_scale(3, 7, (0.5, 0.5), 64)
    np.testing.assert_array_equal(first, drop_path_scale(3, 7, (0.5, 0.5), 64))
    assert not np.array_equal(first[0], first[1])
    for other in (drop_path_scale(3, 8, (0.5, 0.5), 64), drop_path_scale(4, 7, (0.5, 0.5), 64)):
        assert not np.array_equal(first, other)


@dataclass(frozen=True)
class WideView(NumberView):
    """Batches of so many numbers."""

    numbers: int = 10**12

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"number": (self.numbers,)}


@pytest.mark.parametrize(
    "workers, said",
    [
        (0, r"batches need 4000\.00 GB of memory, this machine has [\d.]+ GB: lower evaluate\.batch$"),
        (1, r"need 12000\.00 GB of shared memory, /dev/shm has .* GB: lower evaluate\.batch, data\.workers or data"),
    ],
)
def test_batches_larger_than_the_memory_are_refused_with_the_setting_that_makes_them_large(workers, said):
    with pytest.raises(UserError, match=said):
        Loader({"train": NumberView(), "val": WideView()}, workers)
