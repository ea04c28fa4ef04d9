"""Models of each further family through the real scripts: train, stop, resume, validate, export, predict.

A small one of each, and, in the slow tests, the smallest that its authors released.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from running import call, call_msrun, last_json, metrics, photos, same_run, same_to_rounding, wait_for

from mindcv_crossvit.models.crossformer_groups import block_groups
from mindcv_crossvit.recipe_file import load_recipe
from mindcv_crossvit.training.checkpoint import read_checkpoint

EMBEDDED = ["model.patch_size=[12,16]", "model.img_size=[24,16]", "model.depth=[[1,1,0]]", 'data.classes=["0","1"]']
EMBEDDED += ["batch.global_batch=64", "batch.largest_per_device=64", "mix.group=8"]
RECIPES = {  # a file, and changes of it
    "crossformer": ("tiny_crossformer", []),
    "cabvit": ("tiny_cabvit", []),
    "deit": ("tiny_deit", []),
    "t2t": ("tiny", [*EMBEDDED, "model.hybrid_backbone=t2t"]),
    "performer": ("tiny", [*EMBEDDED, "model.hybrid_backbone=performer"]),
}
QUICK = ("crossformer", "cabvit")
REAL = {  # the smallest released members, on pictures of this size
    "crossformer_t": 224,
    "cabvit_h_l1": 64,
    "deit_tiny": 64,
}


def real_settings(name: str, root: Path) -> list[str]:
    """Changes of a member's own recipe that leave its model, and a few updates of four pictures."""
    changes = [f"model.img_size={REAL[name]}", f"data.dir={root}", "data.val_fraction=0.3", "data.workers=1"]
    changes += ["batch.global_batch=4", "batch.largest_per_device=4", "mix.group=4", "evaluate.batch=4"]
    return [*changes, "schedule.epochs=2", "schedule.warmup_epochs=1", "ema.decay=0.9"]


@dataclass(frozen=True)
class Trained:
    """A finished run: the words that name its recipe, its folder, and an environment with its compiled graphs."""

    words: list[str]
    folder: Path
    env: dict[str, str]


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in RECIPES),
        *(pytest.param(name, marks=pytest.mark.slow) for name in REAL),
    ],
)
def trained(request, tmp_path_factory, cached) -> Trained:
    """A finished run of each."""
    if request.param in REAL:
        root = photos(tmp_path_factory.mktemp("photos"), {"a": 10, "b": 10}, size=REAL[request.param])
        path, changes = ROOT / "configs" / f"{request.param}_ascend.yaml", real_settings(request.param, root)
    else:
        name, changes = RECIPES[request.param]
        path = ROOT / "tests" / f"{name}.yaml"
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["-c", str(path), *(word for change in changes for word in ("--set", change))]
    done = call("train.py", *words, "--output", folder, env=cached, timeout=900)
    assert done.returncode == 0, done.stderr
    return Trained(words, folder, cached)


def test_the_small_crossformer_pads_long_groups_and_cools():
    config = load_recipe(ROOT / "tests" / "tiny_crossformer.yaml").model.config()
    blocks = [(s, b) for s, depth in enumerate(config.depths) for b in range(depth)]
    groups = [block_groups(config, s, b, 8 >> s, 8 >> s) for s, b in blocks]
    assert any(g.interval > 1 and g.padded for g in groups) and any(g.interval == 1 and g.padded for g in groups)
    assert any(config.has_acl(s, b) for s, b in blocks)


def test_a_stopped_run_resumes_bitwise(trained, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *trained.words, "--output", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=trained.env)
    wait_for((folder / "log.txt").exists, process)
    wait_for(lambda: "compiling" in (folder / "log.txt").read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=600) and process.returncode == 4
    assert max(m["update"] for m in metrics(folder)) < max(m["update"] for m in metrics(trained.folder))
    resumed = call("train.py", *trained.words, "--output", folder, "--resume", "auto", env=trained.env, timeout=900)
    assert resumed.returncode == 0, resumed.stderr
    same_run(trained.folder, folder)


def test_a_run_is_validated(trained):
    scores = last_json(call("validate.py", *trained.words, "--ckpt_path", trained.folder, env=trained.env, timeout=600))
    assert scores["model"] == read_checkpoint(trained.folder / "last.safetensors").meta["model"]["name"]
    last = metrics(trained.folder)[-1]
    assert (scores["top1"], scores["ema_top1"]) == (last["val_top1"], last["ema_top1"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.mindir"])
def test_a_run_is_exported_and_predicts(trained, tmp_path, name):
    folder = trained.folder
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(picture)
    target = tmp_path / name
    done = call("scripts/export.py", "--ckpt_path", folder, "--output", target, "--pictures", picture, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = []
    for place in (folder, target):
        done = call("predict.py", "--ckpt_path", place, picture, "--json", timeout=600)
        assert done.returncode == 0, done.stderr
        answers.append([c["probability"] for c in json.loads(done.stdout)["classes"]])
    assert answers[0] == pytest.approx(answers[1], abs=1e-6) and len(answers[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("ops", ["composed", "standard"])
def test_batch_norms_of_two_ranks_see_the_whole_batch(ops, tmp_path):
    """Synchronised, two ranks of 32 are one of 64, running statistics included; alone, each norms its own half.

    With a large eps: a bias before another batch norm has no gradient but rounding, of which AdamW would make steps.
    """
    changes = ("checkpoint.every_epochs=2", f"run.ops={ops}", "optimizer.eps=1e-3", "batch.largest_per_device=64")
    recipe = ["-c", ROOT / "tests" / "tiny_cabvit.yaml", *(word for change in changes for word in ("--set", change))]
    folders = {}
    for name, world, options in (
        ("one", 1, []),
        ("together", 2, ["--set", "run.sync_batch_norm=true"]),
        ("apart", 2, []),
    ):
        folders[name] = tmp_path / name
        words = [*recipe, *options, "--output", folders[name]]
        done = call("train.py", *words) if world == 1 else call_msrun(2, tmp_path / f"{name}-logs", "train.py", *words)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    updates = max(m["update"] for m in metrics(folders["one"]))
    same_to_rounding(folders["one"], folders["together"], updates)
    with pytest.raises(AssertionError):
        same_to_rounding(folders["one"], folders["apart"], updates)
