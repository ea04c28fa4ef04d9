"""2,000 updates with forty checkpoints: no rank grows. And half precision that overflows for real. Slow."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from running import ROOT, TINY, free_port, msrun_words
from supervised import Supervised

from mindcv_crossvit.training.checkpoint_folder import CheckpointFolder

pytestmark = pytest.mark.slow


def two_ranks(config: Path, folder: Path, *changes: str, script: str = "train.py") -> list[object]:
    words = [*msrun_words(2, free_port()), "python", ROOT / script, "-c", config, "--output", folder]
    return [*words, *(word for change in changes for word in ("--set", change))]


class Sample(NamedTuple):
    """Of a rank, in an update: bytes it, and its data workers, hold; of /dev/shm; open files of all.

    own: without pages of files, such as code, which the kernel takes away when others want memory, and gives back.
    """

    update: int
    rank: int
    rank_own: int
    workers: int
    workers_own: int
    shared: int
    handles: int


def sample(pid: int, update: int) -> Sample:
    """Raises OSError when one of the processes is gone."""
    place = Path("/proc") / str(pid)
    workers = [int(w) for task in (place / "task").iterdir() for w in (task / "children").read_text().split()]
    mapped = re.findall(r"/dev/shm/\S+$", (place / "maps").read_text(), re.MULTILINE)  # none that is deleted
    handles = sum(len(os.listdir(f"/proc/{p}/fd")) for p in (pid, *workers))
    shared = sum(512 * os.stat(path).st_blocks for path in set(mapped))
    held = [sum(resident(p)[k] for p in group) for group in ([pid], workers) for k in (0, 1)]
    return Sample(update, *held, shared, handles)


def resident(pid: int) -> tuple[int, int]:
    """Bytes of a process in memory, all of them and its own."""
    found = {k: int(v) for k, v in re.findall(r"(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())}
    return 1024 * found["VmRSS"], 1024 * (found["RssAnon"] + found["RssShmem"])


def test_two_thousand_updates_keep_memory_and_files_flat(tmp_path):
    """The digits recipe, only longer, by two ranks: from update 200 on memory within 3 %, open files the same."""
    changes = ["schedule.epochs=91", "checkpoint.every_updates=50"]
    job = Supervised(tmp_path / "logs", two_ranks(ROOT / "configs" / "digits.yaml", tmp_path / "run", *changes))
    seen: dict[str, list[Sample]] = {"rank 0": [], "rank 1": []}
    while job.process.poll() is None:
        for name, said in job.people().items():
            with contextlib.suppress(OSError, IndexError):
                if name in seen and 200 <= (said.get("update") or 0) < 2000:
                    seen[name].append(sample(said["pid"], said["update"]))
        time.sleep(0.5)
    code, said = job.end()
    assert code == 0, said[-3000:]
    assert [p.stem for p in CheckpointFolder(tmp_path / "run").steps()] == ["step-000002000", "step-000002002"]
    (tmp_path / "samples.json").write_text(json.dumps(seen))
    for name, samples in seen.items():
        rank = Sample(*map(np.array, zip(*samples, strict=True)))
        assert len(samples) > 20 and rank.update[0] < 400 and rank.update[-1] > 1900
        for what in ("rank_own", "workers_own", "shared"):
            held = getattr(rank, what)
            assert 0 < held.max() <= 1.03 * held.min(), (name, what, held.tolist())
        for held in (rank.rank, rank.workers):
            assert held.max() <= 1.03 * held[0], (name, held.tolist())
        assert rank.handles.max() <= np.median(rank.handles) + 2, (name, rank.handles.tolist())  # a log, a checkpoint


HALF = ['data.classes=["0","1"]', "batch.global_batch=2", "batch.largest_per_device=1", "mix.mixup=0", "mix.cutmix=0"]
HALF += ["schedule.epochs=1", "schedule.warmup_epochs=0", "model.depth=[[1, 1, 0]]", "run.compare_every=1"]


@pytest.mark.parametrize("precision", ["O2", "O3"])
def test_gradients_that_overflow_in_float16_are_left_out_by_all_ranks(tmp_path, precision):
    """One picture a rank makes gradients of 65536 times their size too large; the ranks are compared every update."""
    changes = [*HALF, f"run.precision={precision}"]
    code, said = Supervised(tmp_path / "logs", two_ranks(TINY, tmp_path / "run", *changes)).end(400)
    assert code == 0, said[-3000:]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "update 1 left out: gradients overflowed; loss scale 32768" in log
    newest = CheckpointFolder(tmp_path / "run").newest_whole()
    assert newest and newest.meta["update"] == 144
    assert newest.meta["applied"] == 144 - log.count("left out: gradients overflowed")


def ends_with_the_state_before(folder: Path, code: int, said: str) -> dict:
    """Both ranks ended for a loss that is not finite, with the state before it on disk; the checkpoint's metadata."""
    assert code == 3 and "supervise: restart" not in said, said[-3000:]
    newest = CheckpointFolder(folder).newest_whole()
    assert newest and all(np.isfinite(tensor).all() for tensor in newest.tensors.values())
    update = newest.meta["update"]
    for rank in (0, 1):
        assert f"ended: rank {rank} ended with code 3: the loss is not finite in update {update + 1} " in said
    assert f"the state before it is on disk: the checkpoint after update {update}. Try a lower optimizer.lr" in said
    assert f'"update": {update + 1},' not in (folder / "metrics.jsonl").read_text()
    return newest.meta


def test_a_loss_that_is_not_finite_in_float16_ends_all_ranks_with_the_state_before_it(tmp_path):
    changes = [*HALF, "run.precision=O2", "optimizer.lr=1e30"]
    code, said = Supervised(tmp_path / "logs", two_ranks(TINY, tmp_path / "run", *changes)).end(400)
    ends_with_the_state_before(tmp_path / "run", code, said)
    assert "less float16 than run.precision=O2" in said


@pytest.mark.parametrize("precision", ["O0", "O3"])
def test_a_loss_that_is_not_finite_on_one_rank_is_not_applied_on_any(tmp_path, precision):
    """Far from any other save."""
    changes = [*HALF, f"run.precision={precision}"]
    command = two_ranks(TINY, tmp_path / "run", *changes, script="tests/nan_train.py")
    code, said = Supervised(tmp_path / "logs", command).end(400)
    meta = ends_with_the_state_before(tmp_path / "run", code, said)
    assert meta["update"] == 6 and (meta["applied"] == 6 or precision == "O3")
    assert [p.stem for p in CheckpointFolder(tmp_path / "run").steps()] == ["step-000000006"]
