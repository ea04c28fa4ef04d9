"""A small model of each further family through the real scripts: train, stop, resume, validate, export, predict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from running import call, call_msrun, last_json, metrics, same_run, same_to_rounding, wait_for

from mindcv_crossvit.recipe_file import load_recipe


@pytest.fixture(scope="module", params=["crossformer", "cabvit", pytest.param("deit", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """(recipe, the run folder of a finished run of it, an environment with its compiled graphs: each needs its own)."""
    recipe = ROOT / "tests" / f"tiny_{request.param}.yaml"
    graphs = tmp_path_factory.mktemp("graphs")
    cached = {**os.environ, "MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": str(graphs)}
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = call("train.py", "-c", recipe, "--output", folder, env=cached)
    assert done.returncode == 0, done.stderr
    return recipe, folder, cached


def test_a_stopped_run_resumes_bitwise(trained, tmp_path):
    recipe, finished, cached = trained
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), "-c", str(recipe), "--output", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cached)
    wait_for((folder / "log.txt").exists, process)
    wait_for(lambda: "compiling" in (folder / "log.txt").read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120) and process.returncode == 4
    assert max(m["update"] for m in metrics(folder)) < max(m["update"] for m in metrics(finished))
    done = call("train.py", "-c", recipe, "--output", folder, "--resume", "auto", env=cached)
    assert done.returncode == 0, done.stderr
    same_run(finished, folder)


def test_a_run_is_validated(trained):
    recipe, folder, cached = trained
    scores = last_json(call("validate.py", "-c", recipe, "--ckpt_path", folder, env=cached))
    assert scores["model"] == load_recipe(recipe).model.name
    assert (scores["top1"], scores["ema_top1"]) == tuple(metrics(folder)[-1][k] for k in ("val_top1", "ema_top1"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.mindir"])
def test_a_run_is_exported_and_predicts(trained, tmp_path, name):
    _, folder, _ = trained
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(picture)
    done = call("scripts/export.py", "--ckpt_path", folder, "--output", tmp_path / name, "--pictures", picture)
    assert done.returncode == 0, done.stderr
    answers = []
    for place in (folder, tmp_path / name):
        done = call("predict.py", "--ckpt_path", place, picture, "--json")
        assert done.returncode == 0, done.stderr
        answers.append([c["probability"] for c in json.loads(done.stdout)["classes"]])
    assert answers[0] == pytest.approx(answers[1], abs=1e-6) and len(answers[0]) == 2


@pytest.mark.slow
def test_batch_norms_of_two_ranks_see_the_whole_batch(tmp_path):
    """Synchronised, two ranks of 32 are one of 64, running statistics included; alone, each norms its own half."""
    recipe = ["-c", ROOT / "tests" / "tiny_cabvit.yaml", "--set", "checkpoint.every_epochs=2"]
    folders = {}
    for name, world, options in (
        ("one", 1, []),
        ("together", 2, ["--set", "run.sync_batch_norm=true"]),
        ("apart", 2, []),
    ):
        folders[name] = tmp_path / name
        words = [*recipe, *options, "--set", "batch.largest_per_device=64", "--output", folders[name]]
        done = call("train.py", *words) if world == 1 else call_msrun(2, tmp_path / f"{name}-logs", "train.py", *words)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    updates = max(m["update"] for m in metrics(folders["one"]))
    same_to_rounding(folders["one"], folders["together"], updates)
    with pytest.raises(AssertionError):
        same_to_rounding(folders["one"], folders["apart"], updates)
