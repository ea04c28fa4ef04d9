"""Checkpoints: whole or refused, by real damage to real files and real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.training.checkpoint import CheckpointFolder, read_checkpoint, write_checkpoint

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
        folder.save(tensors(update), {**META, "update": update}, False)
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
    for update, best in ((1, True), (2, True), (3, False), (4, False)):
        folder.save(tensors(update), {**META, "update": update}, best)
    assert [p.stem for p in folder.steps()] == ["step-000000003", "step-000000004"]
    assert read_checkpoint(tmp_path / "last.safetensors").meta["update"] == 4
    assert read_checkpoint(tmp_path / "best.safetensors").meta["update"] == 2


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "one.safetensors"
    write_checkpoint(path, tensors(), META)
    with pytest.raises(OSError):
        write_checkpoint(tmp_path / "missing" / "one.safetensors", tensors(1), META)
    np.testing.assert_array_equal(read_checkpoint(path).tensors["model.a"], tensors()["model.a"])


WRITER = """
import sys
import numpy as np
from mindcv_crossvit.training.checkpoint import CheckpointFolder
from pathlib import Path
folder = CheckpointFolder(Path(sys.argv[1]))
for update in range(1, 100000):
    meta = {"update": update, "model": {"name": "x"}, "class_names": []}
    folder.save({"model.a": np.full((300, 1000), update, np.float32)}, meta, True)
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
