"""The project's scripts, run as a user runs them, and what they leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "tiny.yaml"
MSRUN = Path(sys.executable).parent / "msrun"


def call(script: str, *arguments: object, timeout: float = 240, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def call_msrun(workers: int, logs: Path, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MS_NODE_TIMEOUT": "10", "MS_CPU_COMM_OP_TIMEOUT": "120"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    command = [MSRUN, "--bind_core=True", "--worker_num", workers, "--local_worker_num", workers, "--master_port", port]
    command += ["--join", "True", "--log_dir", logs, "--cluster_time_out", 60, "python", ROOT / script, *arguments]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, env=env)


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
