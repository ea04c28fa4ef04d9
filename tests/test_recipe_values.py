"""The shipped recipes hold the published values: every key that trains something else, written down a second time.

The values are those of the CrossViT paper (table 9, section 4) and the official code's defaults, of DeiT's 384-pixel
finetuning, and of the official CrossFormer code. What no publication says is at the end of each table.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import ROOT

from mindcv_crossvit.data.transforms import resize_shorter
from mindcv_crossvit.plan import lr_scale, scaled_lr
from mindcv_crossvit.recipe import Recipe
from mindcv_crossvit.recipe_file import flat, load_recipe
from mindcv_crossvit.settings import keys_with

CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.yaml"))}
OWN = {"digits", "cifar10", "cifar100", "folder", "finetune_folder", "cabvit_h_l1_ascend", "cabvit_h_l2_ascend"}
OWN |= {"cabvit_h_l3_ascend", "cabvit_p_l0_ascend"}
"""No publication stands behind these."""

CROSSVIT: dict[str, Any] = {
    "model.drop_path_rate": 0.1,
    "data.source": "folder",
    "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225],
    "augment.crop": "resized",
    "augment.crop_scale": [0.08, 1.0],
    "augment.crop_ratio": [3 / 4, 4 / 3],
    "augment.flip": 0.5,
    "augment.affine": None,
    "augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "augment.fill": [124, 116, 104],
    "augment.erase": 0.25,
    "augment.repeats": 1,
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
    "mix.prob": 1.0,
    "mix.switch_prob": 0.5,
    "mix.group": 4096 // 32,
    "loss.label_smoothing": 0.1,
    "batch.global_batch": 4096,
    "optimizer.name": "adamw",
    "optimizer.lr": 5e-4,
    "optimizer.lr_batch": 512,
    "optimizer.lr_scaling": "linear",
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.05,
    "optimizer.no_decay": "official",
    "optimizer.clip_norm": None,
    "optimizer.layer_decay": 1.0,
    "optimizer.freeze": [],
    "ema.decay": None,
    "schedule.epochs": 300,
    "schedule.warmup_epochs": 30,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-5,
    "schedule.scaled_ends": False,
    "schedule.stepping": "epoch",
    "evaluate.crop_fraction": 0.875,
}
CROSSVIT |= {  # without a meaning in these recipes, or said by nobody
    "data.val_fraction": None,
    "data.split_seed": 0,
    "data.classes": None,
    "data.bad_images": "stop",
    "ema.warmup": True,
    "run.seed": 0,
    "run.precision": "O0",
    "run.sync_batch_norm": False,
}
REPEATED = CROSSVIT | {"augment.repeats": 3}
FINE: dict[str, Any] = {"schedule.epochs": 30, "evaluate.crop_fraction": 1.0}
FINE |= {  # DeiT's, and ours: the paper says no more than 30 epochs
    "batch.global_batch": 512,
    "mix.group": 512 // 32,
    "optimizer.lr": 5e-6,
    "optimizer.lr_scaling": "none",
    "optimizer.weight_decay": 1e-8,
    "schedule.warmup_epochs": 0,
    "schedule.min_lr": 5e-6,
}
TRANSFER = CROSSVIT | {
    "model.drop_path_rate": 0.0,
    "augment.erase": 0.0,
    "batch.global_batch": 768,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.01,
    "optimizer.lr_scaling": "none",
    "optimizer.weight_decay": 1e-4,
    "schedule.epochs": 1000,
    "schedule.warmup_epochs": 5,
    "mix.group": 96,  # ours
}
DEIT = CROSSVIT | {"optimizer.no_decay": "timm"}  # one branch: the official skip list has its tensors' names
CROSSFORMER = CROSSVIT | {
    "batch.global_batch": 8 * 128,
    "optimizer.clip_norm": 5.0,
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 5e-7,
    "schedule.min_lr": 5e-6,
    "schedule.scaled_ends": True,
    "schedule.stepping": "update",
}
VALUES: dict[str, tuple[dict[str, Any], int]] = {}
"""By recipe: its values, and the pixels of its input."""
for _name in ("tiny", "small", "base", "9", "15", "9_dagger", "15_dagger"):
    VALUES[f"crossvit_{_name}_ascend"] = CROSSVIT, 240
for _name in ("18", "18_dagger"):
    VALUES[f"crossvit_{_name}_ascend"] = REPEATED, 240
VALUES["crossvit_15_dagger_384_ascend"] = CROSSVIT | FINE, 408
VALUES["crossvit_18_dagger_384_ascend"] = REPEATED | FINE, 408
for _name in ("cifar10", "cifar100", "pet"):
    VALUES[f"transfer_{_name}"] = TRANSFER | {"data.source": "folder" if _name == "pet" else _name}, 240
for _name in ("tiny", "small", "base", "9", "15", "18", "9_dagger", "15_dagger", "18_dagger"):
    VALUES[f"deit_{_name}_ascend"] = DEIT, 224
for _names, _rate in (("_t", 0.1), ("_s pp_s", 0.2), ("_b pp_b", 0.3), ("_l pp_l pp_h", 0.5)):
    for _name in _names.split():
        VALUES[f"crossformer{_name}_ascend"] = CROSSFORMER | {"model.drop_path_rate": _rate}, 224


def trained(recipe: Recipe) -> dict[str, Any]:
    """Every key that trains something else, but for the model's own numbers."""
    values = flat(recipe.to_dict())
    own = {f"model.{key}" for key in recipe.to_dict()["model"]} - {"model.drop_path_rate"}
    return {key: value for key, value in values.items() if key not in own | {*keys_with("machine", Recipe)}}


def test_every_recipe_is_published_or_said_to_be_our_own():
    assert CONFIGS.keys() == VALUES.keys() | OWN


@pytest.mark.parametrize("name", VALUES)
def test_a_recipe_has_the_published_values(name):
    recipe, (values, pixels) = load_recipe(CONFIGS[name]), VALUES[name]
    assert trained(recipe) == values
    model = "crossvit_15" if name.startswith("transfer") else name.removesuffix("_ascend")
    assert recipe.model.name == model and recipe.model.overrides() == {} and recipe.model.image_size == pixels


@pytest.mark.parametrize(
    "name, peak, ends, resized",
    [
        ("crossvit_9_ascend", 4e-3, (1e-6, 1e-5), 274),
        ("crossvit_15_dagger_384_ascend", 5e-6, (1e-6, 5e-6), 408),
        ("transfer_pet", 0.01, (1e-6, 1e-5), 274),
        ("deit_small_ascend", 4e-3, (1e-6, 1e-5), 256),
        ("crossformer_s_ascend", 1e-3, (1e-6, 1e-5), 256),
    ],
)
def test_rates_and_evaluation_follow_from_them(name, peak, ends, resized):
    from PIL import Image

    recipe = load_recipe(CONFIGS[name])
    scale = lr_scale(recipe) if recipe.schedule.scaled_ends else 1.0
    assert scaled_lr(recipe) == pytest.approx(peak, rel=1e-12)
    assert (recipe.schedule.warmup_lr * scale, recipe.schedule.min_lr * scale) == pytest.approx(ends, rel=1e-12)
    side = int(recipe.model.image_size / recipe.evaluate.crop_fraction)
    assert side == resized and resize_shorter(Image.new("RGB", (500, 600)), side).size[0] == resized


@pytest.mark.parametrize("name", CONFIGS)
def test_a_recipe_says_how_its_rate_steps_and_why(name):
    line = re.search(r"^  stepping: (epoch|update) +# (.+)$", CONFIGS[name].read_text(), re.MULTILINE)
    assert line and line[1] == load_recipe(CONFIGS[name]).schedule.stepping
    theirs = ("as the official runs", "as its authors did", "the rate is constant")
    ours = ("no published run to match", "as few as 5 epochs")
    assert any(reason in line[2] for reason in (ours if name in OWN else theirs))
