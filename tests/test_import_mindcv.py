"""MindCV's recipes, in its own keys, become ours; what is lost is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import ROOT

from mindcv_crossvit.recipe_file import load_recipe

MINDCV = """
mode: 0
distribute: True
num_parallel_workers: 4
dataset: 'imagenet'
batch_size: 320
image_resize: 224
scale: [0.1, 1.0]
auto_augment: randaug-m9-mstd0.5-inc1
re_prob: 0.2
mixup: 0.8
cutmix: 1.0
crop_pct: 0.935
ema: True
model: 'crossvit_15'
epoch_size: 600
amp_level: 'O3'
drop_path_rate: 0.1
label_smoothing: 0.1
scheduler: 'warmup_cosine_decay'
lr: 0.0009
min_lr: 0.00001
warmup_epochs: 30
num_cycles: 2
opt: 'adamw'
weight_decay: 0.04
eps: 1e-8
lr_epoch_stair: True
some_new_key: 3
"""


def convert(folder: Path, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "theirs.yaml").write_text(text)
    script = ROOT / "scripts" / "import_mindcv_recipe.py"
    command = [sys.executable, script, folder / "theirs.yaml", folder / "ours.yaml", *more]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


def test_values_are_carried_over_and_the_batch_becomes_global(tmp_path):
    done = convert(tmp_path, MINDCV)
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(tmp_path / "ours.yaml")
    assert (recipe.model.name, recipe.model.numerics) == ("crossvit_15", "mindcv")
    assert recipe.model.drop_path_rate == 0.1
    assert (recipe.batch.global_batch, recipe.batch.largest_per_device, recipe.mix.group) == (2560, 320, 320)
    assert (recipe.optimizer.lr, recipe.optimizer.lr_batch, recipe.optimizer.weight_decay) == (9e-4, 2560, 0.04)
    assert recipe.augment.rand_augment == "rand-m9-mstd0.5-inc1" and recipe.augment.erase == 0.2
    assert recipe.augment.crop_scale == (0.1, 1.0) and recipe.evaluate.crop_fraction == 0.935
    assert recipe.schedule.epochs == 600 and recipe.schedule.stepping == "epoch" and recipe.schedule.warmup_lr == 0
    assert recipe.ema.decay == 0.9999 and recipe.run.precision == "O3"


def test_departures_and_losses_are_said_and_written_down(tmp_path):
    done = convert(tmp_path, MINDCV)
    for part in (
        "differs from the paper: batch.global_batch: 2560, the paper 4096",
        "differs from the paper: schedule.epochs: 600, the paper 300",
        "could not be carried over: num_cycles 2",
        "could not be carried over: every tensor is decayed there",
        "could not be carried over: some_new_key 3: unknown here",
        "differs from the paper: model.numerics: mindcv, the paper official",
    ):
        assert part in done.stdout
        assert part in (tmp_path / "ours.yaml").read_text()


def test_other_devices_other_batch_and_other_models_are_mindcvs(tmp_path):
    done = convert(tmp_path, "model: resnet50\nopt: momentum\nscheduler: step_decay\nbatch_size: 32\n", "4")
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(tmp_path / "ours.yaml")
    assert recipe.model.name == "mindcv/resnet50"
    assert recipe.batch.global_batch == 128
    assert recipe.optimizer.name == "sgd" and "scheduler step_decay" in done.stdout


def test_an_impossible_recipe_is_refused(tmp_path):
    done = convert(tmp_path, MINDCV.replace("epoch_size: 600", "epoch_size: 10"))
    assert done.returncode == 2 and "schedule.warmup_epochs: expected at most" in done.stderr
