"""Graph mode on the CPU for every test, and the helpers they share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import running  # noqa: E402


@pytest.fixture(scope="session")
def graph_mode() -> None:
    """MindSpore in graph mode on the CPU."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")


@pytest.fixture(params=["compiled", "pillow"])
def pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Pictures are prepared by pixels.cc, then by Pillow alone."""
    from mindcv_crossvit.data.pixels import compiled

    monkeypatch.setenv("CROSSVIT_PIXELS", request.param)
    compiled.cache_clear()
    assert (compiled() is None) == (request.param == "pillow")
    yield
    compiled.cache_clear()


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


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which runs of the same recipe share compiled graphs; results are the same, tests are faster."""
    place = str(tmp_path_factory.mktemp("graphs"))
    return {**os.environ, "MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": place}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cached: dict[str, str]) -> Path:
    """The run folder of a finished tiny run: 2 epochs of 5 updates, each of 2 micro-batches."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = running.call("train.py", "-c", running.TINY, "--output", folder, env=cached)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def finished_by_two(tmp_path_factory: pytest.TempPathFactory, cached: dict[str, str]) -> Path:
    """The run folder of the same run by two ranks; their logs are beside it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = running.call_msrun(2, folder.parent / "logs", "train.py", "-c", running.TINY, "--output", folder, env=cached)
    assert done.returncode == 0, (folder.parent / "logs" / "worker_0.log").read_text()[-2000:]
    return folder


LEARNS = """schedule.epochs=8 optimizer.lr=1e-2 mix.mixup=0 mix.cutmix=0 augment.rand_augment=null augment.erase=0
 augment.flip=0 batch.global_batch=128 evaluate.every_epochs=8 evaluate.crop_fraction=0.8 data.mean=[0.3,0.3,0.3]
 model.img_size=[24,16]"""


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny model that has learned something, with a resize, a crop and a mean that matter."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = [word for change in LEARNS.split() for word in ("--set", change)]
    done = running.call("train.py", "-c", running.TINY, "--output", folder, *settings)
    assert done.returncode == 0, done.stderr
    return folder
