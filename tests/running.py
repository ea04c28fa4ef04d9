"""The project's scripts, run as a user runs them, and what they leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from mindcv_crossvit.training.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "tiny.yaml"
MSRUN = Path(sys.executable).parent / "msrun"


def call(script: str, *arguments: object, timeout: float = 240, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def cannot(reason: str) -> NoReturn:
    """Skips a test that the machine gives no right to run; before a release (CROSSVIT_RELEASE) it fails instead."""
    if os.environ.get("CROSSVIT_RELEASE"):
        pytest.fail(f"a release wants this test to be run: {reason}")
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def msrun_env(env: dict[str, str] | None = None) -> dict[str, str]:
    found = {**(env or os.environ), "OMP_NUM_THREADS": "1", "MS_NODE_TIMEOUT": "10", "MS_CPU_COMM_OP_TIMEOUT": "120"}
    return {**found, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"}


def msrun_words(workers: int, port: int) -> list[object]:
    words = [MSRUN, "--bind_core=True", "--worker_num", workers, "--local_worker_num", workers]
    return [*words, "--master_port", port, "--cluster_time_out", 60]


def call_msrun(
    workers: int, logs: Path, script: str, *arguments: object, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    command = [*msrun_words(workers, free_port()), "--join", "True", "--log_dir", logs, "python", ROOT / script]
    words = [str(c) for c in [*command, *arguments]]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=msrun_env(env))


def wait_for(condition, process: subprocess.Popen, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, "the run ended too early"
        time.sleep(0.02)


def same_run(one: Path, two: Path) -> None:
    """Bitwise the same tensors and counters, of the last checkpoint and of the best, and the same metrics."""
    for which in ("last", "best"):
        whole, resumed = (read_checkpoint(f / f"{which}.safetensors") for f in (one, two))
        assert whole.tensors.keys() == resumed.tensors.keys()
        for name, value in whole.tensors.items():
            np.testing.assert_array_equal(resumed.tensors[name], value, err_msg=f"{which} {name}")
        for key in ("update", "applied", "best_top1", "best_update", "loss_scale"):
            assert whole.meta[key] == resumed.meta[key], (which, key)
    assert metrics(two) == metrics(one)


def same_to_rounding(one: Path, two: Path, update: int = 24) -> None:
    """The same run by another number of ranks: losses, scores, and every tensor of the checkpoint after `update`."""
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if name in ("loss", "val_loss", "ema_loss"):
                assert abs(value - b[name]) < 2e-5, (name, a, b)
            else:
                assert value == b[name], (name, a, b)
    a, b = (read_checkpoint(f / "checkpoints" / f"step-{update:09d}.safetensors").tensors for f in (one, two))
    assert a.keys() == b.keys() and any(name.startswith("ema.") for name in a)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=2e-5, err_msg=name)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last_json(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def photos(folder: Path, classes: dict[str, int], size: int = 40) -> Path:
    """Class folders of pictures whose colour gives the class away."""
    rng = np.random.default_rng(0)
    for k, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 60, (size, size + 5, 3), np.uint8)
            pixels[..., k % 3] += 180
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder
