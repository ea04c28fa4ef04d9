"""Where a run leaves its recipe: what was changed of the given file, and where that differs from the shipped one.

What counts is what is trained. Settings that say where and how (`machine=True` in recipe.py) do not: another value of
them trains the same, but for rounding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import printable
from .models import catalog
from .recipe import Recipe
from .recipe_file import flat, load_recipe, parse_recipe, read_yaml
from .settings import keys_with

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
IMAGENET = ("folder", 1000)
TRANSFERS = {
    ("cifar10", 10): "transfer_cifar10",
    ("cifar100", 100): "transfer_cifar100",
    ("folder", 37): "transfer_pet",
}
TRANSFERRED = ("crossvit_15", "crossvit_18")
"""The paper's transfer results: their recipe by kind of source and number of classes, one for both models."""
PAPER = (("batch.global_batch", 4096), ("schedule.warmup_epochs", 30.0))
COST = "; CrossViT's first author lost about 3 points with batch 512 or 10 warm-up epochs (facebookresearch/deit#63)"
Difference = tuple[str, Any, Any]
"""A key, and its value before and after, as they would stand in YAML."""


def differences(before: Recipe, after: Recipe) -> list[Difference]:
    """Every key whose values train something else, in alphabetical order."""
    old, new, machine = flat(before.to_dict()), flat(after.to_dict()), keys_with("machine", Recipe)
    keys = sorted(key for key in old | new if key not in machine)
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def changed(path: str | Path, recipe: Recipe) -> list[Difference]:
    """What of a recipe file the recipe has otherwise; nothing when the file alone is no whole recipe."""
    original = parse_recipe(read_yaml(Path(path)), [])
    return differences(original, recipe) if original else []


def shipped(recipe: Recipe, classes: int) -> Path | None:
    """The shipped recipe of the same model and task, whose figure is published; None where there is none.

    classes: of the data. The task is told by them and the kind of source: 1,000 class folders are ImageNet's.
    """
    model, task = catalog.resolve(recipe.model.name), (recipe.data.source, classes)
    name = TRANSFERS.get(task, "") if model in TRANSFERRED else ""
    path = CONFIGS / f"{f'{model}_ascend' if task == IMAGENET else name}.yaml"
    return path if path.is_file() else None


def departures(path: str | Path, recipe: Recipe, classes: int) -> list[tuple[str, str]]:
    """(topic, sentence) for each departure: `changed` of the file, and `shipped`, what a copy has otherwise.

    recipe: the file's with the command line on top. classes: of the data. Leaving the paper's batch or warm-up is said
    with what it is known to cost.
    """
    found = changed(path, recipe)
    lines = [("changed", _line(key, old, f"{_shown(new)} instead of the recipe's")) for key, old, new in found]
    original, said = shipped(recipe, classes), [(key, old) for key, old, _ in found]
    if original and not original.samefile(path):
        for key, old, new in differences(load_recipe(original), recipe):
            if (key, old) not in said and key != "model.name":  # a transfer recipe is of two models
                text = f"{_shown(new)} instead of {CONFIGS.name}/{original.name}'s"
                lines.append(("shipped", _line(key, old, text)))
    return lines


def changes_since(update: int, before: Mapping[str, Any], recipe: Recipe) -> list[tuple[str, str]]:
    """(topic, sentence) for each key, all but the run folder, that a run had otherwise at an update.

    before: its recipe then, as plain values of a checkpoint.
    """
    old, new = flat(before), flat(recipe.to_dict())
    keys = [key for key in sorted(old | new) if old.get(key) != new.get(key) and key != "run.output"]
    text = f"since update {update:,}: {{}} is {{}} instead of {{}}"
    return [("changed", printable(text.format(key, _shown(new.get(key)), _shown(old.get(key))))) for key in keys]


def _line(key: str, old: Any, text: str) -> str:
    return f"{key} is {text} {_shown(old)}{COST if (key, old) in PAPER else ''}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
