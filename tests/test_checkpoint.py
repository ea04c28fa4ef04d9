"""Checkpoints: whole or refused, by real damage to real files and real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.training.checkpoint import read_checkpoint, write_checkpoint
from mindcv_crossvit.training.checkpoint_folder import CheckpointFolder

META = {"model": {"name": "crossvit_9"}, "class_names": ["cat", "dog"], "update": 7}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "model.a": rng.normal(size=(3, 4)).astype(np.float32),
        "optimizer.m.a": rng.normal(size=(5,)).astype(np.float32),
    }


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "one.safetensors"
    write_checkpoint(path, tensors(), META)
    found = read_checkpoint(path)
    assert found.meta == META
    for name, value in tensors().items():
        np.testing.assert_array_equal(found.tensors[name], value)
    assert list(found.part("model")) == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]


def save(folder: CheckpointFolder, update: int, best: int = 0) -> Path:
    """A checkpoint whose best update so far is `best`."""
    meta = {**META, "update": update, "best_update": best, "best_top1": float(best or -1)}
    return folder.save(tensors(update), meta)


def damaged(whole: bytes, kind: int, rng: np.random.Generator) -> bytes:
    """Cut short, a bit flipped, two blocks swapped, a block overwritten, bytes added, or a file of another kind."""
    bad = bytearray(whole)
    first, second, size = *rng.permutation(len(whole) // 16)[:2] * 16, 16
    if kind == 0:
        return bytes(bad[: int(rng.integers(len(bad)))])
    if kind == 1:
        bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        bad[first : first + size], bad[second : second + size] = bad[second : second + size], bad[first : first + size]
    elif kind == 3:
        bad[first : first + size] = rng.bytes(size)
    elif kind == 4:
        bad += rng.bytes(int(rng.integers(1, 64)))
    else:
        begins = [b"", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x04", whole[:8], whole[: len(whole) // 2]]
        return begins[int(rng.integers(len(begins)))] + rng.bytes(int(rng.integers(len(whole))))
    return bytes(bad)


def test_200_random_damages_are_all_refused_by_name_and_the_one_before_is_used(tmp_path):
    folder, rng = CheckpointFolder(tmp_path), np.random.default_rng(0)
    for update in (1, 2):
        save(folder, update)
    newest = folder.steps()[-1]
    whole, tried = newest.read_bytes(), 0
    while tried < 200:
        bad = damaged(whole, tried % 6, rng)
        if bad == whole:  # equal blocks were swapped
            continue
        tried += 1
        newest.write_bytes(bad)
        with pytest.raises(UserError, match=r"checkpoints/step-000000002\.safetensors: "):
            read_checkpoint(newest)
        said: list[str] = []
        found = folder.newest_whole(said.append)
        assert found is not None and found.meta["update"] == 1
        assert len(said) == 1 and said[0].startswith(f"passed over: {newest}: ")
    newest.write_bytes(whole)
    assert read_checkpoint(newest).meta["update"] == 2


def test_a_foreign_file_is_refused_by_name(tmp_path):
    from safetensors.numpy import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, foreign)
    with pytest.raises(UserError, match="not a checkpoint of this suite"):
        read_checkpoint(foreign)
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_checkpoint(tmp_path / "text.ckpt")
    with pytest.raises(UserError, match=r"no such checkpoint; .* has foreign.safetensors"):
        read_checkpoint(tmp_path / "missing.safetensors")


def test_the_newest_are_kept_and_last_and_best_point_to_theirs(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for update, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(folder, update, best)
    assert [p.stem for p in folder.steps()] == ["step-000000003", "step-000000004"]
    assert read_checkpoint(tmp_path / "last.safetensors").meta["update"] == 4
    assert read_checkpoint(tmp_path / "best.safetensors").meta["update"] == 2
    assert save(CheckpointFolder(tmp_path, keep=1), 2, 2).exists()  # what was just written stays, whatever its number


def updates(folder: CheckpointFolder) -> dict[str, int]:
    """The update of every checkpoint of a folder, those set aside included, by its name there."""
    return {str(p.relative_to(folder.root)): read_checkpoint(p).meta["update"] for p in folder.root.rglob("*.safet*")}


def begin(folder: CheckpointFolder, path: Path) -> list[str]:
    said: list[str] = []
    folder.begin(read_checkpoint(path), said.append)
    return said


@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_that_goes_back_sets_later_checkpoints_aside_and_keeps_those_it_writes(keep, tmp_path):
    folder = CheckpointFolder(tmp_path, keep=9)
    for update in (4, 9, 10):
        save(folder, update, 4)
    (tmp_path / "checkpoints" / "step-000000010.safetensors").write_bytes(b"damaged")
    folder.keep, aside = keep, "checkpoints/set-aside/step-0000000"
    said = begin(folder, tmp_path / "checkpoints" / "step-000000004.safetensors")
    assert said == [
        f"set aside step-000000009, step-000000010: later than update 4, now in {folder.place / 'set-aside'}"
    ]
    assert (tmp_path / f"{aside}10.safetensors").read_bytes() == b"damaged"
    (tmp_path / f"{aside}10.safetensors").unlink()
    for update in (6, 7, 9):
        save(folder, update, 4)
        newest = folder.newest_whole()
        assert newest is not None and newest.meta["update"] == update
    assert folder.steps() == [tmp_path / "checkpoints" / f"step-00000000{n}.safetensors" for n in (7, 9)[-keep:]]
    begin(folder, tmp_path / "checkpoints" / "step-000000009.safetensors")
    assert [updates(folder)[f"{name}.safetensors"] for name in ("last", "best")] == [9, 4]
    begin(folder, tmp_path / "best.safetensors")
    assert updates(folder)[f"{aside}09-2.safetensors"] == updates(folder)[f"{aside}09.safetensors"] == 9
    assert updates(folder)["last.safetensors"] == updates(folder)["checkpoints/step-000000004.safetensors"] == 4
    back = begin(folder, tmp_path / f"{aside}09.safetensors")
    assert back == [] and updates(folder)["last.safetensors"] == 9 and len(folder.steps()) == 2


def test_the_best_is_again_what_it_was_or_said_to_be_gone(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=9)
    for update, best in ((3, 3), (4, 3), (5, 5), (6, 6)):
        save(folder, update, best)
    first, *_ = folder.steps()
    begin(folder, folder.steps()[1])
    assert updates(folder)["best.safetensors"] == 3
    begin(folder, tmp_path / "checkpoints" / "set-aside" / "step-000000005.safetensors")
    assert updates(folder)["best.safetensors"] == 5 and updates(folder)["last.safetensors"] == 5
    first.unlink()
    said = begin(folder, tmp_path / "checkpoints" / "step-000000004.safetensors")
    assert "note      the best so far, 3.00 % after update 3, is gone; the next better is kept" in said
    assert "best.safetensors" not in updates(folder)


@pytest.mark.parametrize("links", [True, False])
def test_a_kill_before_last_and_best_are_named_is_made_good_by_the_next_start(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    folder = CheckpointFolder(tmp_path)
    save(folder, 1, 1)
    meta = {**META, "update": 2, "best_update": 2, "best_top1": 2.0}
    write_checkpoint(folder.place / "step-000000002.safetensors", tensors(2), meta)
    (folder.place / ".step-000000003.safetensors.7.tmp").touch()
    (tmp_path / ".last.safetensors.7.tmp").touch()
    begin(folder, folder.steps()[-1])
    before = sorted(tmp_path.rglob("*"))
    begin(folder, folder.steps()[-1])  # nothing left to do
    assert sorted(tmp_path.rglob("*")) == before and not list(tmp_path.rglob("*.tmp"))
    assert [updates(folder)[f"{name}.safetensors"] for name in ("last", "best")] == [2, 2]


def test_last_and_best_are_tried_too_and_when_none_is_whole_all_are_named(tmp_path):
    folder, said = CheckpointFolder(tmp_path), list[str]()
    for update, best in ((5, 5), (9, 5), (10, 5)):
        save(folder, update, best)
    for path in folder.steps():
        path.write_bytes(b"damaged")
    found = folder.newest_whole(said.append)
    assert found is not None and found.meta["update"] == 5 and found.path.name == "best.safetensors"
    assert [s.split(":")[1].rpartition("/")[2] for s in said] == [f"step-0000000{n}.safetensors" for n in ("10", "09")]
    begin(folder, found.path)
    assert [p.stem for p in folder.steps()] == ["step-000000005"]
    folder.steps()[0].write_bytes(b"damaged, too")
    with pytest.raises(UserError) as caught:
        folder.newest_whole()
    assert len(caught.value.problems) == 2 and "step-000000005.safetensors: not a whole" in caught.value.problems[0]
    assert "has checkpoints, but none is whole" in caught.value.problems[1]
    assert CheckpointFolder(tmp_path / "none").newest_whole() is None


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "one.safetensors"
    write_checkpoint(path, tensors(), META)
    with pytest.raises(OSError):
        write_checkpoint(tmp_path / "missing" / "one.safetensors", tensors(1), META)
    np.testing.assert_array_equal(read_checkpoint(path).tensors["model.a"], tensors()["model.a"])


WRITER = """
import sys
import numpy as np
from mindcv_crossvit.training.checkpoint_folder import CheckpointFolder
from pathlib import Path
folder = CheckpointFolder(Path(sys.argv[1]))
for update in range(1, 100000):
    meta = {"update": update, "best_update": update, "model": {"name": "x"}, "class_names": []}
    folder.save({"model.a": np.full((300, 1000), update, np.float32)}, meta)
    print(update, flush=True)
"""


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.05)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name in ("last", "best"):
            found = read_checkpoint(tmp_path / f"{name}.safetensors")
            assert np.all(found.tensors["model.a"] == found.meta["update"])
        assert CheckpointFolder(tmp_path).newest_whole() is not None
