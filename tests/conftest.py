"""Graph mode on the CPU for every test, and the helpers they share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


@pytest.fixture(scope="session")
def graph_mode() -> None:
    """MindSpore in graph mode on the CPU."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")


@pytest.fixture
def run_script(tmp_path: Path):
    """Runs a script of the repository as a user does, in a folder of its own: run_script("train.py", "-c", ...)."""

    def run(*arguments: object, timeout: float = 300, env: dict[str, str] | None = None):
        return subprocess.run(
            [sys.executable, ROOT / str(arguments[0]), *map(str, arguments[1:])],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
