"""MindCV's recipes, in its own keys, become ours; what is lost is said.

The three CrossViT recipes below have the keys and values of MindCV 0.3.0's. With CROSSVIT_MINDCV_CONFIGS naming the
`configs` folder of a clone of MindCV, every recipe in it is converted, too (0.3.0 has 179).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from mindcv_crossvit.recipe_file import flat, load_recipe, read_yaml, to_yaml

sys.path.insert(0, str(ROOT / "scripts"))
from import_mindcv_recipe import convert, rand_augment
from mindcv_keys import DEFAULTS, PLACES

THEIRS = Path(os.environ.get("CROSSVIT_MINDCV_CONFIGS", "/nonexistent"))

FIFTEEN: dict[str, Any] = yaml.safe_load("""
{mode: 0, distribute: true, num_parallel_workers: 8, val_while_train: true, dataset: imagenet, data_dir: /pictures,
shuffle: true, dataset_download: false, batch_size: 320, drop_remainder: true, image_resize: 224, scale: [0.08, 1.0],
ratio: [0.75, 1.333], hflip: 0.5, vflip: 0.0, interpolation: bicubic, auto_augment: randaug-m9-mstd0.5-inc1,
re_prob: 0.25, mixup: 0.8, cutmix: 1.0, color_jitter: 0.4, crop_pct: 0.935, ema: true, model: crossvit_15,
num_classes: 1000, pretrained: false, ckpt_path: '', keep_checkpoint_max: 30, ckpt_save_dir: ./ckpt, epoch_size: 600,
dataset_sink_mode: true, amp_level: O3, val_amp_level: O3, drop_path_rate: 0.1, loss: CE, label_smoothing: 0.1,
scheduler: warmup_cosine_decay, lr: 0.0009, min_lr: 0.00001, warmup_epochs: 30, decay_epochs: 270, decay_rate: 0.1,
num_cycles: 2, cycle_decay: 1, opt: adamw, weight_decay: 0.05, loss_scale: 512, use_nesterov: false, eps: 1.0e-8,
lr_epoch_stair: true}
""")
_OF_FIFTEEN = ("num_cycles", "cycle_decay", "lr_epoch_stair", "ema", "loss_scale")
_SHORT = {key: value for key, value in FIFTEEN.items() if key not in _OF_FIFTEEN} | yaml.safe_load(
    "{batch_size: 256, keep_checkpoint_max: 10, epoch_size: 300, loss_scale_type: dynamic, drop_overflow_update: true}"
)
EIGHTEEN = _SHORT | yaml.safe_load("{model: crossvit_18, lr: 0.0015, loss_scale: 1024, ema: true}")
NINE = _SHORT | yaml.safe_load(
    "{model: crossvit_9, image_resize: 240, lr: 0.0011, lr_epoch_stair: true, amp_level: O2, val_amp_level: O2,"
    " scheduler: cosine_decay}"
)
SHARED = {
    "model.drop_path_rate": 0.1,
    "model.numerics": "mindcv",
    "data.source": "folder",
    "data.workers": 8,
    "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225],
    "augment.crop": "resized",
    "augment.crop_scale": [0.08, 1.0],
    "augment.crop_ratio": [0.75, 1.333],
    "augment.flip": 0.5,
    "augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "augment.erase": 0.25,
    "augment.repeats": 1,
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
    "mix.prob": 1.0,
    "mix.switch_prob": 0.5,
    "loss.label_smoothing": 0.1,
    "optimizer.name": "adamw",
    "optimizer.lr_scaling": "linear",
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.05,
    "optimizer.clip_norm": None,
    "optimizer.layer_decay": 1.0,
    "schedule.warmup_epochs": 30,
    "schedule.warmup_lr": 0,
    "schedule.min_lr": 1e-5,
    "schedule.scaled_ends": False,
    "evaluate.crop_fraction": 0.935,
    "evaluate.every_epochs": 1,
    "run.seed": 42,
}


def converted(given: dict[str, Any], devices: int = 8) -> tuple[dict[str, Any], str]:
    """(our values by dotted key, what was lost)."""
    recipe, missing = convert(given, "ours", devices)
    return flat(recipe.to_dict()), "\n".join(missing)


def run(folder: Path, given: dict[str, Any] | str, *more: str) -> subprocess.CompletedProcess[str]:
    """The script as a user runs it."""
    (folder / "theirs.yaml").write_text(given if isinstance(given, str) else yaml.safe_dump(given))
    script = ROOT / "scripts" / "import_mindcv_recipe.py"
    command = [sys.executable, script, folder / "theirs.yaml", folder / "ours.yaml", *more]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


@pytest.mark.parametrize(
    "given, batch, lr, epochs, stepping, ema, precision, keep",
    [
        (NINE, 2048, 0.0011, 300, "epoch", None, "O2", 10),
        (FIFTEEN, 2560, 0.0009, 600, "epoch", 0.9999, "O3", 30),
        (EIGHTEEN, 2048, 0.0015, 300, "update", 0.9999, "O3", 10),
    ],
    ids=["9", "15", "18"],
)
def test_values_are_carried_over_and_the_batch_becomes_global(given, batch, lr, epochs, stepping, ema, precision, keep):
    ours, _ = converted(given)
    expected = SHARED | {
        "model.name": given["model"],
        "batch.global_batch": batch,
        "batch.largest_per_device": batch // 8,
    }
    expected |= {"mix.group": batch // 8, "optimizer.lr": lr, "optimizer.lr_batch": batch, "schedule.epochs": epochs}
    expected |= {"schedule.stepping": stepping, "ema.decay": ema, "run.precision": precision, "checkpoint.keep": keep}
    assert {key: ours[key] for key in expected} == expected


def test_departures_and_losses_are_said_and_written_down(tmp_path):
    done = run(tmp_path, FIFTEEN | {"some_new_key": 3})
    assert done.returncode == 0, done.stderr
    for part in (
        "differs from the paper: batch.global_batch: 2560, the paper 4096",
        "differs from the paper: schedule.epochs: 600, the paper 300",
        "differs from the paper: model.numerics: mindcv, the paper official",
        "differs from the paper: run.precision: O3, the paper O0",
        "could not be carried over: num_cycles 2",
        "could not be carried over: decay_epochs 270",
        "could not be carried over: weight_decay_filter disable: every tensor is decayed there",
        "could not be carried over: auto_augment randaug-m9-mstd0.5-inc1: MindCV's operations there",
        "could not be carried over: interpolation bicubic: MindSpore's, without antialias",
        "could not be carried over: image_resize 224: pictures of 240 pixels here",
        "could not be carried over: some_new_key 3: unknown here",
    ):
        assert part in done.stdout
        assert part in (tmp_path / "ours.yaml").read_text()
    assert load_recipe(tmp_path / "ours.yaml").name == "ours"


# Values whose effect needs another one beside it.
WITH = {
    "cycle_decay": {"num_cycles": 2},
    "decay_rate": {"scheduler": "step_decay"},
    "multi_step_decay_milestones": {"scheduler": "multi_step_decay"},
    "color_jitter": {"auto_augment": None},
    "use_nesterov": {"opt": "momentum"},
}
OTHER: dict[str, Any] = {
    "dataset": "cifar10", "train_split": "training", "val_split": "test", "num_samples": 100,
    "interpolation": "nearest", "scale": [0.1, 0.9], "cutmix_prob": 0.5, "aug_repeats": 3,
    "auto_augment": "autoaug-mstd0.5", "re_value": 0, "num_classes": 1001, "in_channels": 1, "drop_rate": 0.2,
    "drop_path_rate": 0.1, "ckpt_path": "weights.ckpt", "ckpt_save_policy": "top_k", "layer_decay": 0.7, "opt": "sgd",
    "weight_decay_filter": "norm_and_bias", "scheduler": "one_cycle", "loss": "BCE", "reduction": "sum",
    "amp_level": "O1", "val_amp_level": "O3", "amp_cast_list": "[nn.Conv2d]", "loss_scale_type": "auto",
    "color_jitter": [0.1, 0.2, 0.3], "model": "resnet18", "crop_pct": 1.15, "shuffle": False,
}  # fmt: skip


@pytest.mark.parametrize("key", DEFAULTS)
def test_no_key_is_dropped_unsaid(key):
    base = {"model": "resnet50", "opt": "adamw", "amp_level": "O2", "loss_scale_type": "fixed", "ema": True}
    base |= {"clip_grad": True, "mixup": 0.2, "re_prob": 0.5, "re_value": "random", "val_while_train": True}
    base |= {"auto_augment": "randaug-m9-mstd0.5", "ckpt_path": "", "epoch_size": 103, **WITH.get(key, {})}
    default = base.get(key, DEFAULTS[key])
    if key in OTHER:
        other = OTHER[key]
    elif isinstance(default, bool):
        other = not default
    else:
        other = [v + 0.05 for v in default] if isinstance(default, list) else default + 1 if default >= 1 else 0.75
    assert other != default and converted(base | {key: other}) != converted(base)


def test_what_changes_nothing_is_not_said():
    _, missing = converted(
        NINE
        | {"interpolation": "bicubic", "loss": "ce", "opt": "AdamW", "weight_decay_filter": "norm_and_bias"}
        | {"warmup_epochs": 0, "decay_epochs": 300, "lr_epoch_stair": False, "amp_level": "O0", "val_amp_level": "O0"}
        | {"re_prob": 0.0, "auto_augment": None, "color_jitter": None, "eps": 1e-8, "use_nesterov": True}
    )
    assert missing == "interpolation bicubic: MindSpore's, without antialias, there; Pillow's here"
    assert all(converted(NINE | {key: "x"}) == converted(NINE) for key in PLACES)


@pytest.mark.parametrize(
    "changes, said, ours",
    [
        ({"interpolation": "bilinear"}, "interpolation bilinear: Pillow's bicubic", {}),
        ({"auto_augment": "autoaug"}, "auto_augment autoaug: no such policy", {"augment.rand_augment": None}),
        ({"crop_pct": 1.15}, "crop_pct 1.15: 1 here", {"evaluate.crop_fraction": 1.0}),
        ({"epoch_size": 3, "warmup_epochs": 10}, "warmup_epochs 10: no more", {"schedule.warmup_epochs": 3}),
        ({"use_nesterov": True, "opt": "sgd"}, "use_nesterov True: no Nesterov", {"optimizer.name": "sgd"}),
        ({"pretrained": True}, "pretrained True: train.py --init-from", {}),
        ({"opt": "rmsprop", "eps": 1e-3}, "opt rmsprop: adamw here", {"optimizer.eps": 1e-8}),
        ({"clip_grad": True}, "clip_grad True: each device's gradient", {"optimizer.clip_norm": 15.0}),
        ({"image_resize": 299, "model": "inception_v3"}, "", {"model.input_size": 299}),
        ({"gradient_accumulation_steps": 2}, "", {"batch.global_batch": 4096, "batch.largest_per_device": 256}),
        (
            {"dataset": "cifar10", "num_classes": 10, "image_resize": 32, "model": "resnet18"},
            "interpolation bilinear",
            {"data.source": "cifar10", "augment.crop": "padded", "augment.rand_augment": None, "augment.erase": 0.0},
        ),
    ],
    ids=lambda v: next(iter(v), "") if isinstance(v, dict) else "",
)
def test_what_we_have_not_is_lost_aloud_and_not_refused(changes, said, ours):
    values, missing = converted(NINE | changes)
    assert said in missing and {key: values[key] for key in ours} == ours


def test_randaug_becomes_what_mindcv_makes_of_it():
    assert rand_augment("randaug-m9-n3-mstd1.5-inc0") == "rand-m9-n3-mstd0.5-inc1"
    assert rand_augment("randaug-m15-w0") == "rand-m10-mstd0.5"
    assert rand_augment("randaug-m15-mmax20") == "rand-m15-mmax20-mstd0.5"


def test_other_devices_other_batch_and_other_models_are_mindcvs(tmp_path):
    done = run(tmp_path, "model: resnet50\nopt: momentum\nscheduler: step_decay\nbatch_size: 32\n", "4")
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(tmp_path / "ours.yaml")
    assert recipe.model.name == "mindcv/resnet50"
    assert recipe.batch.global_batch == 128
    assert recipe.optimizer.name == "sgd" and "scheduler step_decay" in done.stdout


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"lr": "fast", "shuffle": "maybe"}, ["lr: expected a number, got 'fast'", "shuffle: expected true or false"]),
        ({"lr": -1}, ["as ours: optimizer.lr: expected a number above 0"]),
        ({"scale": 3}, ["scale: expected a list of numbers, got 3"]),
        ({"auto_augment": "randaug-m9.5"}, ["auto_augment: expected whole numbers"]),
    ],
)
def test_a_broken_recipe_is_refused_with_everything_wrong_in_it(tmp_path, changes, said):
    done = run(tmp_path, FIFTEEN | changes)
    assert done.returncode == 2 and not (tmp_path / "ours.yaml").exists()
    assert all(f"theirs.yaml: {part}" in done.stderr for part in said)


def test_wrong_arguments_show_the_usage(tmp_path):
    assert run(tmp_path, FIFTEEN, "eight").returncode == 2


@pytest.mark.skipif(not THEIRS.is_dir(), reason="CROSSVIT_MINDCV_CONFIGS names no folder of MindCV's recipes")
def test_every_recipe_of_mindcvs_is_converted(tmp_path):
    paths = sorted(THEIRS.rglob("*.yaml"))
    assert paths
    for path in paths:
        recipe, missing = convert(read_yaml(path), path.stem, 8)
        assert not any("unknown here" in line for line in missing), (path, missing)
        (tmp_path / "ours.yaml").write_text(to_yaml(recipe))
        assert load_recipe(tmp_path / "ours.yaml") == recipe
