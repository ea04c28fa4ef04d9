"""The settings a recipe leaves to the data (`auto`), answered in order, each with the sentence the plan shows.

The rules are this suite's own, made for a few hundred to some ten thousand pictures; any of them is overruled by
writing a value. 500 updates for a small set are what "Big Transfer" (arXiv 1912.11370, section 3.3) found to be enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .data.images import BadImage
from .data.sources import Source, Splits
from .errors import UserError
from .models.catalog import family_of
from .recipe import Recipe
from .settings import check_value

UPDATES = 500
SAMPLE = 64
"""Pictures looked at to learn their size."""
SMALLEST_SIDE = 48
REFERENCE_LR = {("adamw", True): 2e-4, ("adamw", False): 1e-3, ("sgd", True): 1e-2, ("sgd", False): 5e-2}
"""Learning rate by update rule and by whether weights are given, at optimizer.lr_batch pictures per update."""


def adapt(
    recipe: Recipe, data: Splits, pretrained: bool, begun: Mapping[str, Any] | None = None
) -> tuple[Recipe, list[str]]:
    """The recipe without `auto`, and a sentence for each setting that had it.

    pretrained: whether the run begins with given weights.
    begun: the recipe of the run that is gone on with, as plain values; it decided already. Raises UserError when one
        of them cannot be.
    """
    rules: list[tuple[str, Callable[[Recipe, Splits, bool], tuple[Any, str]]]] = [
        ("model.img_size", _img_size),
        ("batch.global_batch", _global_batch),
        ("schedule.epochs", _epochs),
        ("schedule.warmup_epochs", _warmup),
        ("optimizer.lr", _lr),
        ("ema.decay", _decay),
    ]
    said = []
    for key, rule in rules:
        if key in recipe.auto:
            decided = _value(recipe, begun, key) if begun else None
            value, why = (decided, "as the run began") if decided is not None else rule(recipe, data, pretrained)
            recipe = _with(recipe, key, value)
            said.append(f"{key} {_shown(value)}: {why}")
    return replace(recipe, auto=()), said


def typical_side(source: Source) -> int:
    """The median shorter side, in pixels, of a sample of a set's pictures; those that cannot be read are left out."""
    sides = []
    for index in np.linspace(0, len(source) - 1, min(len(source), SAMPLE)).astype(int):
        try:
            sides.append(min(source.read(int(index)).size))
        except BadImage:
            continue
    return int(np.median(sides)) if sides else 0


def _img_size(recipe: Recipe, data: Splits, pretrained: bool) -> tuple[Any, str]:
    config = recipe.model.config()
    assert config  # a MindCV model has no such setting
    side = typical_side(data.train)
    seen = f"the pictures' shorter side is {side} pixels at the median"
    if not side or side >= 0.75 * config.input_size:
        return config.img_size, f"the variant's; {seen}"
    smaller = family_of(config).sized(config, max(side, SMALLEST_SIDE))
    return smaller, f"{seen}; position embeddings of given weights are resized"


def _global_batch(recipe: Recipe, data: Splits, pretrained: bool) -> tuple[Any, str]:
    count = len(data.train)
    batch = 2 ** round(math.log2(max(count / 25, 1)))
    return min(max(batch, 8), 64), f"near a 25th of the {count:,} training pictures"


def _epochs(recipe: Recipe, data: Splits, pretrained: bool) -> tuple[Any, str]:
    steps = _steps(recipe, data)
    epochs = min(max(math.ceil(UPDATES / steps), 5), 100)
    return epochs, f"{epochs * steps:,} updates, {steps:,} per epoch"


def _warmup(recipe: Recipe, data: Splits, pretrained: bool) -> tuple[Any, str]:
    return recipe.schedule.epochs / 10, f"a tenth of the {recipe.schedule.epochs} epochs"


def _lr(recipe: Recipe, data: Splits, pretrained: bool) -> tuple[Any, str]:
    o = recipe.optimizer
    begin = "given weights" if pretrained else "fresh weights"
    return REFERENCE_LR[o.name, pretrained], f"for {o.name} from {begin}, at {o.lr_batch} pictures per update"


def _decay(recipe: Recipe, data: Splits, pretrained: bool) -> tuple[Any, str]:
    updates = _steps(recipe, data) * recipe.schedule.epochs
    return max(round(1 - 10 / updates, 6), 0.5), f"the average reaches back over a tenth of the {updates:,} updates"


def _steps(recipe: Recipe, data: Splits) -> int:
    return max(len(data.train) // recipe.batch.global_batch, 1)


def _value(recipe: Recipe, values: Mapping[str, Any], key: str) -> Any:
    section, name = key.split(".")
    inner = values.get(section)
    value = inner.get(name) if isinstance(inner, Mapping) else None
    try:
        return None if value is None else check_value(type(getattr(recipe, section)), key, value)
    except ValueError as error:
        raise UserError(f"the recipe that the run began with: {error}") from error


def _with(recipe: Recipe, key: str, value: Any) -> Recipe:
    section, name = key.split(".")
    return replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})


def _shown(value: Any) -> str:
    return "/".join(str(v) for v in value) if isinstance(value, tuple) else f"{value:g}" if value else str(value)
