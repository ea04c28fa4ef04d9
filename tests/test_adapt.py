"""Settings left to the data: each rule's answer, in words and numbers, and who overrules it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mindcv_crossvit.adapt import adapt, typical_side
from mindcv_crossvit.data.images import BadImage
from mindcv_crossvit.data.sources import Splits
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.plan import make_plan
from mindcv_crossvit.recipe_file import load_recipe, to_yaml

FOLDER = ROOT / "configs" / "finetune_folder.yaml"


@dataclass(frozen=True)
class Sides:
    """Pictures of given sizes; a size of 0 is a picture that cannot be read."""

    sizes: tuple[tuple[int, int], ...]

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self.sizes), np.int64)

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, index: int) -> Image.Image:
        if not self.sizes[index][0]:
            raise BadImage(str(index), "broken")
        return Image.new("RGB", self.sizes[index])


def splits(count: int, size: tuple[int, int] = (500, 375)) -> Splits:
    return Splits(Sides((size,) * count), Sides((size,) * 9), ("a", "b"))


def adapted(count: int, *changes: str, size: tuple[int, int] = (500, 375), pretrained: bool = True):
    return adapt(load_recipe(FOLDER, changes), splits(count, size), pretrained)


def test_a_recipe_says_what_is_left_open_and_keeps_it_in_a_file(tmp_path):
    recipe = load_recipe(FOLDER)
    assert set(recipe.auto) >= {"model.img_size", "batch.global_batch", "schedule.epochs", "optimizer.lr", "ema.decay"}
    again = tmp_path / "finetune_folder.yaml"
    again.write_text(to_yaml(recipe))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    "count, batch, epochs", [(40, 8, 100), (200, 8, 20), (800, 32, 20), (1600, 64, 20), (60_000, 64, 5)]
)
def test_batch_epochs_and_average_follow_from_the_number_of_pictures(count, batch, epochs):
    recipe, said = adapted(count)
    assert not recipe.auto
    assert (recipe.batch.global_batch, recipe.schedule.epochs) == (batch, epochs)
    assert recipe.schedule.warmup_epochs == epochs / 10
    plan = make_plan(recipe, splits(count), 1)
    assert recipe.ema.decay == pytest.approx(1 - 10 / plan.total_steps, abs=1e-6)
    assert any(f"{plan.total_steps:,} updates" in text for text in said)
    assert {text.split()[0] for text in said} == set(load_recipe(FOLDER).auto)


@pytest.mark.parametrize(
    "size, expected", [((500, 375), (240, 224)), ((181, 400), (240, 224)), ((96, 130), (96, 96)), ((8, 8), (48, 48))]
)
def test_the_picture_size_follows_from_the_pictures(size, expected):
    recipe, said = adapted(100, size=size)
    assert recipe.model.img_size == expected
    assert f"{min(size)} pixels" in said[0]


def test_pictures_that_cannot_be_read_do_not_count():
    assert typical_side(Sides(((0, 0), (80, 90), (100, 95), (60, 200)))) == 80
    assert typical_side(Sides(((0, 0),))) == 0


def test_given_weights_change_the_learning_rate_and_a_value_overrules_the_rule():
    assert adapted(100)[0].optimizer.lr < adapted(100, pretrained=False)[0].optimizer.lr
    recipe, said = adapted(100, "schedule.epochs=7", "optimizer.lr=1e-5")
    assert (recipe.schedule.epochs, recipe.optimizer.lr) == (7, 1e-5)
    assert recipe.schedule.warmup_epochs == 0.7
    assert not any("optimizer.lr" in text or "schedule.epochs" in text for text in said)


def test_a_run_that_is_gone_on_with_keeps_its_numbers():
    begun, _ = adapted(100, pretrained=True)
    recipe, said = adapt(load_recipe(FOLDER), splits(900, (64, 64)), False, begun.to_dict())
    assert recipe == begun
    assert all("as the run began" in text for text in said)


def test_auto_is_refused_where_there_is_no_rule():
    with pytest.raises(UserError, match=r"optimizer.momentum: expected a number from 0 below 1, got 'auto'"):
        load_recipe(FOLDER, ["optimizer.momentum=auto"])
