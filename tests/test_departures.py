"""Leaving a recipe is said aloud: by the command line, or in a copy of a shipped one; places and devices are not."""

from __future__ import annotations

import pytest
from conftest import ROOT

from mindcv_crossvit.departures import departures, shipped
from mindcv_crossvit.recipe import Recipe
from mindcv_crossvit.recipe_file import flat, load_recipe
from mindcv_crossvit.settings import keys_with

NINE = ROOT / "configs" / "crossvit_9_ascend.yaml"
COST = "; CrossViT's first author lost about 3 points with batch 512 or 10 warm-up epochs (facebookresearch/deit#63)"
MACHINE = """name data.dir data.workers data.prefetch batch.largest_per_device evaluate.every_epochs evaluate.batch
 checkpoint.every_epochs checkpoint.every_updates checkpoint.keep checkpoint.on_failure model.num_classes
 run.output run.device run.ops run.distribute run.log_every run.compare_every"""


def said(path, *changes: str, classes: int = 1000) -> list[str]:
    """The lines of the plan."""
    return [f"{topic} {text}" for topic, text in departures(path, load_recipe(path, changes), classes)]


def copy(folder, *pairs: tuple[str, str], of=NINE):
    """A recipe of a user: a shipped one with some words replaced."""
    text = of.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def test_the_papers_recipe_is_left_aloud_with_what_it_is_known_to_cost(tmp_path):
    assert said(NINE) == []
    assert said(
        NINE, "batch.global_batch=512", "augment.crop_scale=[0.1, 1]", "schedule.warmup_epochs=10", "run.precision=O3"
    ) == [
        "changed augment.crop_scale is [0.1, 1.0] instead of the recipe's [0.08, 1.0]",
        f"changed batch.global_batch is 512 instead of the recipe's 4096{COST}",
        "changed run.precision is O3 instead of the recipe's O0",
        f"changed schedule.warmup_epochs is 10.0 instead of the recipe's 30.0{COST}",
    ]


def test_a_copy_is_compared_with_the_shipped_recipe_and_each_key_said_once(tmp_path):
    mine = copy(tmp_path, ("global_batch: 4096 ", "global_batch: 512 "), ("name: crossvit_9_ascend", "name: mine"))
    shipped_line = f"shipped batch.global_batch is 512 instead of configs/crossvit_9_ascend.yaml's 4096{COST}"
    assert said(mine) == [shipped_line]
    assert said(mine, "optimizer.clip_norm=1", "augment.affine.degrees=5") == [
        "changed augment.affine.degrees is 5.0 instead of the recipe's null",
        "changed augment.affine.scale is [1.0, 1.0] instead of the recipe's null",
        "changed augment.affine.shift is 0.0 instead of the recipe's null",
        "changed optimizer.clip_norm is 1.0 instead of the recipe's null",
        shipped_line,
    ]
    assert said(mine, "batch.global_batch=1024") == [
        "changed batch.global_batch is 1024 instead of the recipe's 512",
        shipped_line.replace("is 512", "is 1024"),
    ]
    assert said(mine, "batch.global_batch=4096") == ["changed batch.global_batch is 4096 instead of the recipe's 512"]
    assert said(mine, classes=10) == []  # another task: nothing is published for it


def test_transfer_recipes_have_shipped_originals_for_both_models(tmp_path):
    path = ROOT / "configs" / "transfer_cifar100.yaml"
    mine = copy(tmp_path, ("name: crossvit_15 ", "name: crossvit_18_240 "), ("lr: 0.01 ", "lr: 0.1 "), of=path)
    assert said(mine, classes=100) == ["shipped optimizer.lr is 0.1 instead of configs/transfer_cifar100.yaml's 0.01"]


@pytest.mark.parametrize(
    "name, classes, original",
    [
        ("crossvit_18_dagger_384_ascend", 1000, "crossvit_18_dagger_384_ascend"),
        ("deit_9_ascend", 1000, "deit_9_ascend"),
        ("crossformer_t_ascend", 1000, "crossformer_t_ascend"),
        ("transfer_cifar10", 10, "transfer_cifar10"),
        ("transfer_pet", 37, "transfer_pet"),
        ("transfer_pet", 36, None),
        ("cifar10", 10, None),
        ("digits", 10, None),
        ("finetune_folder", 12, None),
    ],
)
def test_the_original_is_known_by_model_and_task(name, classes, original):
    found = shipped(load_recipe(ROOT / "configs" / f"{name}.yaml"), classes)
    assert (found.stem if found else None) == original


def test_a_model_of_mindcvs_has_no_original(tmp_path):
    mine = copy(tmp_path, ("name: crossvit_9  ", "name: mindcv/resnet50  "))
    assert shipped(load_recipe(mine), 1000) is None


def test_machine_keys_are_these_and_are_not_said(tmp_path):
    assert set(keys_with("machine", Recipe)) == set(MACHINE.split())
    changes = ["name=other", "data.dir=/x", "data.workers=1", "data.prefetch=9", "batch.largest_per_device=7"]
    changes += ["evaluate.every_epochs=3", "evaluate.batch=9", "checkpoint.every_epochs=3", "checkpoint.keep=9"]
    changes += ["checkpoint.every_updates=5", "checkpoint.on_failure=go_on", "model.num_classes=1000", "run.output=x"]
    changes += ["run.device=CPU", "run.ops=standard", "run.distribute=false", "run.log_every=1", "run.compare_every=9"]
    before, after = (flat(load_recipe(NINE, c).to_dict()) for c in ((), changes))
    assert {key for key in before if before[key] != after[key]} == set(MACHINE.split())
    assert said(NINE, *changes) == []
