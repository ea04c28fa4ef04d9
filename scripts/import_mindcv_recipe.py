"""Reads a recipe of MindCV and writes ours; says what differs from the paper and what cannot be carried over.

python scripts/import_mindcv_recipe.py MINDCV.yaml OURS.yaml [DEVICES]

DEVICES: how many the MindCV recipe was made for (8); its batch is per device, ours is global.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit.errors import USER_ERROR, UserError, run_main
from mindcv_crossvit.models import catalog
from mindcv_crossvit.recipe import Recipe
from mindcv_crossvit.recipe_file import flat, load_recipe, parse_recipe, read_yaml, to_yaml

# MindCV's key: (ours, how the value is carried over). Its defaults for keys that a recipe leaves out follow below.
CARRIED: dict[str, tuple[str, Any]] = {
    "num_parallel_workers": ("data.workers", int),
    "scale": ("augment.crop_scale", list),
    "ratio": ("augment.crop_ratio", list),
    "hflip": ("augment.flip", float),
    "auto_augment": ("augment.rand_augment", lambda v: v.replace("randaug", "rand", 1) if v else None),
    "re_prob": ("augment.erase", float),
    "aug_repeats": ("augment.repeats", lambda v: max(int(v), 1)),
    "mixup": ("mix.mixup", float),
    "cutmix": ("mix.cutmix", float),
    "cutmix_prob": ("mix.prob", float),
    "label_smoothing": ("loss.label_smoothing", float),
    "crop_pct": ("evaluate.crop_fraction", float),
    "val_interval": ("evaluate.every_epochs", int),
    "drop_path_rate": ("model.drop_path_rate", lambda v: v or 0.0),
    "epoch_size": ("schedule.epochs", int),
    "warmup_epochs": ("schedule.warmup_epochs", float),
    "min_lr": ("schedule.min_lr", float),
    "lr_epoch_stair": ("schedule.stepping", lambda v: "epoch" if v else "update"),
    "lr": ("optimizer.lr", float),
    "weight_decay": ("optimizer.weight_decay", float),
    "momentum": ("optimizer.momentum", float),
    "eps": ("optimizer.eps", float),
    "layer_decay": ("optimizer.layer_decay", lambda v: v or 1.0),
    "keep_checkpoint_max": ("checkpoint.keep", int),
    "ckpt_save_interval": ("checkpoint.every_epochs", int),
    "seed": ("run.seed", int),
    "amp_level": ("run.precision", str),
}
DEFAULTS = {
    "batch_size": 128,
    "seed": 42,
    "hflip": 0.5,
    "crop_pct": 0.875,
    "epoch_size": 90,
    "lr": 1e-3,
    "min_lr": 1e-6,
    "warmup_epochs": 3,
    "warmup_factor": 0.0,
    "eps": 1e-10,
    "weight_decay": 1e-6,
    "opt": "adam",
    "scheduler": "cosine_decay",
    "gradient_accumulation_steps": 1,
    "ema_decay": 0.9999,
    "lr_epoch_stair": False,
    "weight_decay_filter": "disable",
}
# Where they are, how they run: nothing of the training is lost without them.
# fmt: off
OF_THE_RUN = {
    "mode", "distribute", "val_while_train", "log_interval", "device_target", "dataset", "data_dir", "train_split",
    "val_split", "dataset_download", "shuffle", "num_samples", "drop_remainder", "interpolation", "in_channels",
    "num_classes", "pretrained", "ckpt_path", "resume_opt", "ckpt_save_dir", "ckpt_save_policy", "dataset_sink_mode",
    "val_amp_level", "loss_scale", "loss_scale_type", "drop_overflow_update", "image_resize", "eval_shuffle", "model",
    "re_value", "decay_epochs", "decay_rate", "use_nesterov", "color_jitter", "reduction",
}
# fmt: on
MINDCV_CROSSVITS = ("crossvit_9", "crossvit_15", "crossvit_18")
HANDLED = (
    set(DEFAULTS) | set(CARRIED) | OF_THE_RUN | {"ema", "num_cycles", "cycle_decay", "clip_grad", "clip_value", "loss"}
)


def convert(given: dict[str, Any], name: str, devices: int) -> tuple[Recipe, list[str]]:
    """Our recipe, and what could not be carried over, a sentence each. Raises UserError when it would not be valid."""
    values = {**DEFAULTS, **given}
    ours: dict[str, Any] = {"name": name, "model": {"name": model_name(str(values.get("model", "")))}}
    if values.get("model") in MINDCV_CROSSVITS:
        put(ours, "model.numerics", "mindcv")
    for key, (target, carry) in CARRIED.items():
        if key in values:
            put(ours, target, carry(values[key]))
    batch = values["batch_size"] * devices * values["gradient_accumulation_steps"]
    put(ours, "batch.global_batch", batch)
    put(ours, "batch.largest_per_device", values["batch_size"])
    put(ours, "mix.group", values["batch_size"])
    put(ours, "optimizer.lr_batch", batch)
    put(ours, "optimizer.lr_scaling", "linear")
    put(ours, "optimizer.name", "sgd" if values["opt"] in ("sgd", "momentum") else "adamw")
    put(ours, "schedule.warmup_lr", values["lr"] * values["warmup_factor"])
    if values.get("ema"):
        put(ours, "ema", {"decay": values["ema_decay"], "warmup": False})
    if values.get("clip_grad"):
        put(ours, "optimizer.clip_norm", values.get("clip_value", 15.0))
    problems: list[str] = []
    recipe = parse_recipe(ours, problems)
    if recipe is None:
        raise UserError(f"as ours: {p}" for p in problems)
    return recipe, lost(values)


def model_name(name: str) -> str:
    """The suite's model where it has one, else MindCV's own."""
    try:
        return catalog.resolve(name)
    except ValueError:
        return f"{catalog.MINDCV_PREFIX}{name}"


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets section.key."""
    section, _, last = key.rpartition(".")
    (values.setdefault(section, {}) if section else values)[last] = value


def lost(values: dict[str, Any]) -> list[str]:
    """What a MindCV recipe says and ours cannot."""
    found = []
    if values.get("num_cycles", 1) > 1:
        found.append(f"num_cycles {values['num_cycles']}: one cosine over all epochs here")
    if values["scheduler"] not in ("cosine_decay", "warmup_cosine_decay"):
        found.append(f"scheduler {values['scheduler']}: a cosine here")
    elif values["warmup_epochs"]:
        found.append("the cosine is re-based after the warm-up there, and runs over all epochs here, as in the paper")
    if values["opt"] not in ("adamw", "sgd", "momentum"):
        found.append(f"opt {values['opt']}: adamw here")
    if values["weight_decay_filter"] == "disable":
        found.append("every tensor is decayed there; biases and norms are not here, as in the paper")
    if values.get("loss", "CE") != "CE":
        found.append(f"loss {values['loss']}: cross-entropy here")
    if values.get("loss_scale_type", "fixed") == "fixed" and values.get("amp_level", "O0") != "O0":
        found.append("a fixed loss scale there, a dynamic one here")
    if values.get("re_prob") and values.get("re_value", 0) != "random":
        found.append("erased boxes are filled with a constant there, with noise here")
    if str(values.get("model", "")).startswith("crossvit") and values.get("image_resize", 224) != 240:
        found.append(f"pictures of {values.get('image_resize', 224)} pixels stretched to 240 there, 240 here")
    return found + [f"{key} {values[key]}: unknown here" for key in sorted(set(values) - HANDLED) if values[key]]


def from_paper(recipe: Recipe) -> list[str]:
    """Where the recipe differs from the paper's for the same model; places and workers are not counted."""
    path = ROOT / "configs" / f"{recipe.model.name}_ascend.yaml"
    if not path.is_file():
        return []
    paper, ours = flat(load_recipe(path).to_dict()), flat(recipe.to_dict())
    skipped = ("run.", "data.", "checkpoint.", "evaluate.every", "evaluate.batch", "batch.largest", "name")
    keys = [k for k in sorted(paper | ours) if paper.get(k) != ours.get(k) and not k.startswith(skipped)]
    return [f"{key}: {ours.get(key)}, the paper {paper.get(key)}" for key in keys]


def main() -> int:
    """Converts one file."""
    if len(sys.argv) not in (3, 4):
        print(__doc__)
        return USER_ERROR
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    recipe, missing = convert(read_yaml(source), target.stem, int(sys.argv[3]) if len(sys.argv) == 4 else 8)
    parts = {"differs from the paper": from_paper(recipe), "could not be carried over": missing}
    notes = [f"{title}: {line}" for title, lines in parts.items() for line in lines]
    head = "".join(f"# {line}\n" for line in (f"From MindCV's {source.name}.", *notes))
    target.write_text(head + to_yaml(recipe), encoding="utf-8")
    print("\n".join([*notes, f"wrote {target}"]))
    return 0


if __name__ == "__main__":
    run_main(main)
