"""Reads a recipe of MindCV and writes ours; says what differs from the paper and what cannot be carried over.

python scripts/import_mindcv_recipe.py MINDCV.yaml OURS.yaml [DEVICES]

DEVICES: how many the MindCV recipe was made for (8); its batch is per device, ours is global.
"""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from mindcv_keys import CROSSVITS, DEFAULTS, SGD, SOURCES, Values, is_cifar, lost

from mindcv_crossvit.departures import CONFIGS, differences
from mindcv_crossvit.errors import USER_ERROR, UserError, run_main
from mindcv_crossvit.models import catalog
from mindcv_crossvit.recipe import Recipe
from mindcv_crossvit.recipe_file import load_recipe, parse_recipe, read_yaml, to_yaml

# MindCV's key: (ours, how the value is carried over). What needs more than one of its keys is in `_ours`.
CARRIED: dict[str, tuple[str, Any]] = {
    "dataset": ("data.source", lambda v: SOURCES.get(v, "folder")),
    "num_parallel_workers": ("data.workers", int),
    "mean": ("data.mean", lambda v: [round(x / 255, 6) for x in v]),
    "std": ("data.std", lambda v: [round(x / 255, 6) for x in v]),
    "scale": ("augment.crop_scale", list),
    "ratio": ("augment.crop_ratio", list),
    "hflip": ("augment.flip", float),
    "auto_augment": ("augment.rand_augment", lambda v: rand_augment(v) if (v or "").startswith("randaug") else None),
    "re_prob": ("augment.erase", float),
    "aug_repeats": ("augment.repeats", lambda v: max(v, 1)),
    "mixup": ("mix.mixup", float),
    "cutmix": ("mix.cutmix", float),
    "cutmix_prob": ("mix.prob", float),
    "label_smoothing": ("loss.label_smoothing", float),
    "crop_pct": ("evaluate.crop_fraction", lambda v: min(v, 1.0)),
    "val_interval": ("evaluate.every_epochs", int),
    "drop_path_rate": ("model.drop_path_rate", lambda v: v or 0.0),
    "epoch_size": ("schedule.epochs", lambda v: v),
    "min_lr": ("schedule.min_lr", float),
    "lr_epoch_stair": ("schedule.stepping", lambda v: "epoch" if v else "update"),
    "lr": ("optimizer.lr", float),
    "opt": ("optimizer.name", lambda v: "sgd" if v.lower() in SGD else "adamw"),
    "weight_decay": ("optimizer.weight_decay", float),
    "momentum": ("optimizer.momentum", float),
    "layer_decay": ("optimizer.layer_decay", lambda v: v or 1.0),
    "keep_checkpoint_max": ("checkpoint.keep", int),
    "ckpt_save_interval": ("checkpoint.every_epochs", int),
    "log_interval": ("run.log_every", int),
    "seed": ("run.seed", int),
    "amp_level": ("run.precision", str),
}
# What MindCV does with CIFAR's pictures, whatever a recipe says.
CIFAR: Values = {
    "auto_augment": None, "color_jitter": None, "re_prob": 0.0, "hflip": 0.5, "vflip": 0.0, "crop_pct": 1.0,
    "interpolation": "bilinear", "mean": [125.307, 122.961, 113.8575], "std": [51.5865, 50.847, 51.255],
}  # fmt: skip
ANYTHING, TEXTS = ("color_jitter", "re_value"), ("auto_augment", "amp_cast_list")
KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list of numbers"}


def convert(given: Values, name: str, devices: int) -> tuple[Recipe, list[str]]:
    """Our recipe, and what could not be carried over, a sentence each.

    Raises UserError for values that MindCV would not take either, and when the recipe would not be valid.
    """
    # left empty is left out, but for the jitter, where it is none
    given = {key: value for key, value in given.items() if value is not None or key == "color_jitter"}
    problems = [said for key, value in given.items() if (said := _problem(key, value))]
    if problems:
        raise UserError(problems)
    values = {**DEFAULTS, **given}
    values["dataset"] = values["dataset"].lower()
    if is_cifar(values):
        values |= CIFAR
    recipe = parse_recipe(_ours(values, name, devices), problems)
    if recipe is None:
        raise UserError(f"as ours: {p}" for p in problems)
    missing = lost(values)
    if values["image_resize"] != (size := recipe.model.image_size):  # a CrossViT of MindCV's stretches its pictures
        missing.append(f"image_resize {values['image_resize']}: pictures of {size} pixels here")
    return recipe, missing


def _problem(key: str, value: Any) -> str:
    """What is wrong with the type of a value, by that of MindCV's default; empty for nothing."""
    example = DEFAULTS.get(key, value)
    if key in ANYTHING or key not in DEFAULTS:
        return ""
    kind = type(example) if example is not None else str if key in TEXTS else float
    if kind is list:
        fits = isinstance(value, list) and all(map(_is_number, value))
    else:
        fits = isinstance(value, kind) if kind in (bool, str) else _is_number(value)
    return "" if fits else f"{key}: expected {KINDS[kind]}, got {value!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _ours(v: Values, name: str, devices: int) -> dict[str, Any]:
    """The plain values of our recipe."""
    ours: dict[str, Any] = {"name": name, "model": _model(v)}
    for key, (target, carry) in CARRIED.items():
        put(ours, target, carry(v[key]))
    batch = v["batch_size"] * devices * v["gradient_accumulation_steps"]
    put(ours, "augment.crop", "padded" if is_cifar(v) else "resized")
    put(ours, "batch.global_batch", batch)
    put(ours, "batch.largest_per_device", v["batch_size"])
    put(ours, "evaluate.batch", v["batch_size"])
    put(ours, "mix.group", max(v["batch_size"], 2))
    put(ours, "optimizer.lr_batch", batch)
    put(ours, "optimizer.lr_scaling", "linear")
    put(ours, "schedule.warmup_epochs", min(v["warmup_epochs"], v["epoch_size"]))
    put(ours, "schedule.warmup_lr", v["lr"] * v["warmup_factor"])
    if not v["val_while_train"]:
        put(ours, "evaluate.every_epochs", v["epoch_size"])
    if v["ema"]:
        put(ours, "ema.decay", v["ema_decay"])
    if v["clip_grad"]:
        put(ours, "optimizer.clip_norm", v["clip_value"])
    return ours


def _model(v: Values) -> dict[str, Any]:
    """The suite's model where it has one, with MindCV's arithmetic where that is another; else MindCV's own."""
    if v["model"] in CROSSVITS:
        return {"name": v["model"], "numerics": "mindcv"}
    try:
        return {"name": catalog.resolve(v["model"])}
    except ValueError:
        return {"name": f"{catalog.MINDCV_PREFIX}{v['model']}", "input_size": v["image_resize"]}


def rand_augment(policy: str) -> str:
    """timm's string for MindCV's: magnitudes deviate by 0.5 whatever it says, and any `inc` is on. Raises UserError."""
    parts = dict(re.findall(r"-([a-z]+)(\d[\d.]*)", policy))
    try:
        numbers = {key: int(value) for key, value in parts.items() if key in ("m", "n", "mmax")}
    except ValueError as error:
        raise UserError(f"auto_augment: expected whole numbers after m, n and mmax, got {policy!r}") from error
    numbers["m"] = min(numbers.get("m", 10), numbers.get("mmax", 10))
    words = [f"{key}{number}" for key, number in numbers.items()]
    return "-".join(["rand", *words, "mstd0.5", *(["inc1"] if "inc" in parts else [])])


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets section.key."""
    section, _, last = key.rpartition(".")
    values.setdefault(section, {})[last] = value


def from_paper(recipe: Recipe) -> list[str]:
    """Where the recipe trains something else than the shipped one for the same model."""
    path = CONFIGS / f"{recipe.model.name}_ascend.yaml"
    if not path.is_file():
        return []
    return [f"{key}: {ours}, the paper {theirs}" for key, theirs, ours in differences(load_recipe(path), recipe)]


def main() -> int:
    """Converts one file."""
    devices = sys.argv[3] if len(sys.argv) == 4 else "8"
    if len(sys.argv) not in (3, 4) or not devices.isdecimal() or not int(devices):
        print(__doc__)
        return USER_ERROR
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    given = read_yaml(source)
    try:
        recipe, missing = convert(given, target.stem, int(devices))
    except UserError as error:
        raise UserError(f"{source}: {problem}" for problem in error.problems) from error
    parts = {"differs from the paper": from_paper(recipe), "could not be carried over": missing}
    notes = [f"{title}: {line}" for title, lines in parts.items() for line in lines]
    head = "".join(f"# {line}\n" for line in (f"From MindCV's {source.name}.", *notes))
    target.write_text(head + to_yaml(recipe), encoding="utf-8")
    print("\n".join([*notes, f"wrote {target}"]))
    return 0


if __name__ == "__main__":
    run_main(main)
