"""The keys of a MindCV 0.3.0 recipe: what they are when left out, and what of them our recipes cannot say."""

from collections.abc import Callable
from typing import Any

Values = dict[str, Any]

# fmt: off
DEFAULTS: Values = {
    "dataset": "imagenet", "train_split": "train", "val_split": "val", "num_parallel_workers": 8, "shuffle": True,
    "num_samples": None, "batch_size": 128, "drop_remainder": True, "image_resize": 224, "scale": [0.08, 1.0],
    "ratio": [0.75, 1.333], "hflip": 0.5, "vflip": 0.0, "color_jitter": 0.4, "interpolation": "bilinear",
    "auto_augment": None, "aug_splits": 0, "re_prob": 0.0, "re_scale": [0.02, 0.33], "re_ratio": [0.3, 3.3],
    "re_value": 0, "re_max_attempts": 10, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375],
    "crop_pct": 0.875, "mixup": 0.0, "cutmix": 0.0, "cutmix_prob": 1.0, "aug_repeats": 0,
    "model": "mobilenet_v2_035_224", "num_classes": None, "in_channels": 3, "drop_rate": None, "drop_path_rate": None,
    "pretrained": False, "ckpt_path": "", "resume_opt": False, "keep_checkpoint_max": 10, "ckpt_save_interval": 1,
    "ckpt_save_policy": "latest_k", "epoch_size": 90, "ema": False, "ema_decay": 0.9999, "clip_grad": False,
    "clip_value": 15.0, "layer_decay": None, "gradient_accumulation_steps": 1, "opt": "adam", "momentum": 0.9,
    "weight_decay": 1e-6, "use_nesterov": False, "weight_decay_filter": "disable", "eps": 1e-10,
    "scheduler": "cosine_decay", "lr": 1e-3, "min_lr": 1e-6, "warmup_epochs": 3, "warmup_factor": 0.0,
    "decay_epochs": 100, "decay_rate": 0.9, "multi_step_decay_milestones": [30, 60, 90], "lr_epoch_stair": False,
    "num_cycles": 1, "cycle_decay": 1.0, "loss": "CE", "label_smoothing": 0.0, "aux_factor": 0.0, "reduction": "mean",
    "amp_level": "O0", "val_amp_level": "O0", "amp_cast_list": None, "loss_scale_type": "fixed", "loss_scale": 1.0,
    "drop_overflow_update": False, "val_while_train": False, "val_interval": 1, "log_interval": 100, "seed": 42,
}
# Where things are and how the program runs: nothing of the training is lost without them.
PLACES = {
    "mode", "distribute", "device_target", "data_dir", "dataset_download", "ckpt_save_dir", "dataset_sink_mode",
    "eval_shuffle",
}
# fmt: on
SOURCES = {"imagenet": "folder", "": "folder", "cifar10": "cifar10", "cifar100": "cifar100"}
CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100}
CROSSVITS = ("crossvit_9", "crossvit_15", "crossvit_18")
SGD = ("sgd", "momentum")
COSINES = ("cosine_decay", "warmup_cosine_decay")


def is_cifar(v: Values) -> bool:
    """MindCV has a fixed pipeline for these, whatever else a recipe says."""
    return v["dataset"].startswith("cifar")


def _jitters(v: Values) -> bool:
    return v["auto_augment"] is None and bool(v["color_jitter"]) and v["color_jitter"] != [0, 0, 0]


def _is_cosine(v: Values) -> bool:
    return v["scheduler"] in COSINES


def _end_of_cosine(v: Values) -> float:
    return v["warmup_epochs"] + v["num_cycles"] * v["decay_epochs"]


def _half(v: Values) -> bool:
    return v["amp_level"] != "O0"


LOST: tuple[tuple[str, Callable[[Values], Any], str], ...] = (
    # the data
    ("dataset", lambda v: v["dataset"] not in SOURCES, "a folder per class here"),
    (
        "num_classes",
        lambda v: v["num_classes"] not in (None, CLASSES.get(v["dataset"], v["num_classes"])),
        "as many as the data has here",
    ),
    ("in_channels", lambda v: v["in_channels"] != 3, "3 here"),
    ("num_samples", lambda v: v["num_samples"] is not None, "all pictures here"),
    ("train_split", lambda v: v["train_split"] != "train", "the folder train/ here"),
    ("val_split", lambda v: v["val_split"] != "val", "the folder val/ here"),
    ("shuffle", lambda v: not v["shuffle"], "every epoch has an order of its own here"),
    ("drop_remainder", lambda v: not v["drop_remainder"], "an update always has a whole batch here"),
    # the pictures
    ("interpolation", lambda v: v["interpolation"] != "bicubic", "Pillow's bicubic with antialias here"),
    (
        "interpolation",
        lambda v: v["interpolation"] == "bicubic",
        "MindSpore's, without antialias, there; Pillow's here",
    ),
    ("image_resize", lambda v: is_cifar(v) and v["image_resize"] != 32, "cropped before it is resized there, not here"),
    ("crop_pct", lambda v: v["crop_pct"] > 1, "1 here"),
    ("vflip", lambda v: v["vflip"], "no vertical flip here"),
    ("color_jitter", _jitters, "no colour jitter here"),
    (
        "auto_augment",
        lambda v: (v["auto_augment"] or "").startswith("randaug"),
        "MindCV's operations there, 14, of which four are other ones, with a deviation of 0.5 whatever is said;"
        " timm's 15 here",
    ),
    ("auto_augment", lambda v: not (v["auto_augment"] or "randaug").startswith("randaug"), "no such policy here"),
    ("aug_splits", lambda v: v["aug_splits"], "no splits here"),
    ("re_prob", lambda v: v["re_prob"], "boxes of uniform aspect there, of log-uniform aspect here"),
    ("re_value", lambda v: v["re_prob"] and v["re_value"] != "random", "boxes are filled with noise here"),
    ("re_scale", lambda v: v["re_prob"] and v["re_scale"] != [0.02, 0.33], "0.02 to 1/3 here"),
    ("re_ratio", lambda v: v["re_prob"] and max(v["re_ratio"]) not in (3.3, 3.333), "0.3 to 1/0.3 here"),
    ("re_max_attempts", lambda v: v["re_prob"] and v["re_max_attempts"] != 10, "10 here"),
    ("aug_repeats", lambda v: v["aug_repeats"] > 1, "a picture's copies on several ranks are alike there, not here"),
    # the model
    ("drop_rate", lambda v: v["drop_rate"], "no dropout here but a model's own"),
    ("pretrained", lambda v: v["pretrained"], "train.py --init-from takes weights here"),
    ("ckpt_path", lambda v: v["ckpt_path"], "train.py --init-from takes weights here"),
    ("resume_opt", lambda v: v["resume_opt"], "train.py --resume goes on with a run here"),
    # the loss
    ("loss", lambda v: v["loss"].lower() != "ce", "cross-entropy here"),
    ("aux_factor", lambda v: v["aux_factor"], "no auxiliary loss here"),
    ("reduction", lambda v: v["reduction"] != "mean", "the mean here"),
    # the learning rate
    ("scheduler", lambda v: not _is_cosine(v), "a cosine here"),
    ("num_cycles", lambda v: _is_cosine(v) and v["num_cycles"] > 1, "one cosine over all epochs here"),
    ("cycle_decay", lambda v: _is_cosine(v) and v["num_cycles"] > 1 and v["cycle_decay"] != 1, "not used here"),
    ("decay_rate", lambda v: v["scheduler"].endswith(("step_decay", "exponential_decay")), "not used here"),
    ("multi_step_decay_milestones", lambda v: v["scheduler"] == "multi_step_decay", "not used here"),
    (
        "decay_epochs",
        lambda v: _is_cosine(v) and _end_of_cosine(v) != v["epoch_size"],
        "epochs of a cosine there, which ends with the run here",
    ),
    (
        "warmup_epochs",
        lambda v: _is_cosine(v) and 0 < v["warmup_epochs"] <= v["epoch_size"],
        "the cosine begins after them there, and runs over all epochs here, as in the paper",
    ),
    ("warmup_epochs", lambda v: v["warmup_epochs"] > v["epoch_size"], "no more than the run has here"),
    (
        "lr_epoch_stair",
        lambda v: v["lr_epoch_stair"],
        "a rate per epoch here, too, but an epoch late, as in the paper",
    ),
    # the update
    ("opt", lambda v: v["opt"].lower() not in ("adamw", *SGD), "adamw here, which wants another learning rate"),
    ("eps", lambda v: v["opt"].lower() == "adamw" and v["eps"] not in (1e-8, 1e-10), "not used there; 1e-8 here"),
    ("use_nesterov", lambda v: v["use_nesterov"] and v["opt"].lower() in SGD, "no Nesterov momentum here"),
    (
        "weight_decay_filter",
        lambda v: v["weight_decay_filter"] == "disable" and v["layer_decay"] is None,
        "every tensor is decayed there; biases and norms are not here, as in the paper",
    ),
    (
        "weight_decay_filter",
        lambda v: v["weight_decay_filter"] == "auto",
        "biases are decayed there, and not here, as in the paper",
    ),
    ("clip_grad", lambda v: v["clip_grad"], "each device's gradient is clipped there, the mean of all here"),
    (
        "ema_decay",
        lambda v: v["ema"],
        "times 1 - exp(-updates / 2000) there, at most (1 + updates) / (10 + updates) here",
    ),
    ("amp_level", lambda v: v["amp_level"] == "O3", "norms, softmax and loss stay float32 here"),
    ("amp_cast_list", lambda v: v["amp_cast_list"], "not here"),
    ("val_amp_level", lambda v: v["val_amp_level"] != v["amp_level"], "scored as it is trained here"),
    ("loss_scale_type", lambda v: _half(v) and v["loss_scale_type"] != "dynamic", "a dynamic loss scale here"),
    ("loss_scale", lambda v: _half(v) and v["loss_scale"] != 65536, "begins with 65,536 here"),
    (
        "drop_overflow_update",
        lambda v: _half(v) and not v["drop_overflow_update"],
        "updates whose gradients overflow are left out here",
    ),
    # the run
    ("ckpt_save_policy", lambda v: v["ckpt_save_policy"] == "top_k", "the newest and the best are kept here"),
)
"""(MindCV's key, whether its value does there what cannot be said here, what is done here instead)."""


def lost(v: Values) -> list[str]:
    """What a MindCV recipe says and ours cannot, a sentence each; v: with defaults."""
    found = [f"{key} {v[key]}: {text}" for key, applies, text in LOST if applies(v)]
    unknown = sorted(set(v) - set(DEFAULTS) - PLACES)
    return found + [f"{key} {v[key]}: unknown here" for key in unknown if v[key]]
