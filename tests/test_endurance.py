"""2,000 updates with forty checkpoints: no rank grows. And half precision that overflows for real. Slow."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from running import ROOT, TINY, free_port, msrun_words
from supervised import Supervised

from mindcv_crossvit.training.checkpoint_folder import CheckpointFolder

pytestmark = pytest.mark.slow
SMALL = ["model.img_size=[16, 16]", "model.embed_dim=[8, 16]", "model.depth=[[1, 1, 0]]", "model.num_heads=[2, 2]"]
SMALL += ["model.patch_size=[4, 8]", "model.mlp_ratio=[2, 2, 1]"]


def two_ranks(config: Path, folder: Path, *changes: str, script: str = "train.py") -> list[object]:
    words = [*msrun_words(2, free_port()), "python", ROOT / script, "-c", config, "--output", folder]
    return [*words, *(word for change in changes for word in ("--set", change))]


def test_two_thousand_updates_keep_memory_and_files_flat(tmp_path):
    """Of each of two ranks, from update 200 on: resident memory within 3 %, open files the same."""
    changes = [*SMALL, "batch.global_batch=64", "schedule.epochs=91", "checkpoint.every_updates=50"]
    changes += ["checkpoint.every_epochs=100", "evaluate.every_epochs=10", "data.workers=1"]
    job = Supervised(tmp_path / "logs", two_ranks(ROOT / "configs" / "digits.yaml", tmp_path / "run", *changes))
    seen: dict[str, list[tuple[int, int, int]]] = {"rank 0": [], "rank 1": []}
    while job.process.poll() is None:
        for name, said in job.people().items():
            place = Path(f"/proc/{said['pid']}")
            try:
                resident = int((place / "statm").read_text().split()[1])
                handles = len(os.listdir(place / "fd"))
            except (OSError, IndexError):
                continue
            if name in seen and 200 <= (said.get("update") or 0) < 2000:
                seen[name].append((said["update"], resident, handles))
        time.sleep(0.5)
    code, said = job.end()
    assert code == 0, said[-3000:]
    assert [p.stem for p in CheckpointFolder(tmp_path / "run").steps()] == ["step-000002000", "step-000002002"]
    (tmp_path / "samples.json").write_text(json.dumps(seen))
    for name, samples in seen.items():
        updates, resident, handles = np.array(samples).T
        assert len(samples) > 20 and updates[0] < 400 and updates[-1] > 1900
        assert resident.max() <= 1.03 * resident.min(), (name, resident.tolist())
        assert handles.max() <= np.median(handles) + 2, (name, handles.tolist())  # a log, a checkpoint being written


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
