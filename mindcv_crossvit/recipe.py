"""What a user may say: typed sections, each setting with its meaning, unit and range. See recipe_file for the YAML."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .model_settings import MANY, Model
from .settings import internal, meaning, setting

PRECISIONS = ("O0", "O1", "O2", "O3")
LARGEST_LR = 1e30  # multiplied by batches it still is a float32
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_INPUT = 32
"""Pixels up to which the official loader (DeiT's build_transform) only shifts a picture: CIFAR's size."""


@dataclass(frozen=True)
class Data:
    """Where pictures come from."""

    source: str = setting("folder", "kind of data set", choices=("folder", "cifar10", "cifar100", "digits"))
    dir: str | None = setting(None, "folder or pack of the data set (--data_dir)", machine=True)
    val_fraction: float | None = setting(
        None, "share held out for validation when a folder has no train/ and val/", above=0, below=1
    )
    split_seed: int = setting(0, "seed of that split", at_least=0, below=2**31)
    classes: tuple[str, ...] | None = setting(None, "only the pictures of these classes, in this order; null for all")
    mean: tuple[float, float, float] = setting(
        IMAGENET_MEAN, "subtracted per channel, of pixels in 0 to 1", at_least=-100, at_most=100
    )
    std: tuple[float, float, float] = setting(IMAGENET_STD, "then divided by", at_least=1e-4, at_most=100)
    workers: int = setting(
        2,
        "processes that prepare batches, per device; 0 prepares in the training process",
        at_least=0,
        at_most=1000,
        machine=True,
    )
    prefetch: int = setting(2, "batches prepared ahead, per worker", at_least=1, at_most=1000, machine=True)
    bad_images: str = setting("stop", "what to do with a picture that cannot be read", choices=("stop", "skip"))


@dataclass(frozen=True)
class Affine:
    """One random rotation, scaling and shift about the centre."""

    degrees: float = setting(0.0, "rotation, uniform in -degrees to degrees", at_least=0, at_most=180)
    scale: tuple[float, float] = setting((1.0, 1.0), "zoom, uniform between the two", at_least=0.01, at_most=100)
    shift: float = setting(
        0.0, "shift per axis as a share of the side, uniform in -shift to shift", at_least=0, below=1
    )


@dataclass(frozen=True)
class Augment:
    """What happens to a training picture, in this order."""

    crop: str = setting(
        "auto",
        "resized: random area and aspect; padded: 4 pixels of padding and a random crop; none: only resized; auto:"
        " padded for input of up to 32 pixels, else resized, as the official loader",
        choices=("auto", "resized", "padded", "none"),
    )
    crop_scale: tuple[float, float] = setting(
        (0.08, 1.0), "area of a resized crop, share of the picture", at_least=1e-4, at_most=1
    )
    crop_ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3), "aspect of a resized crop, width over height", at_least=0.01, at_most=100
    )
    flip: float = setting(0.5, "probability of a horizontal flip", at_least=0, at_most=1)
    affine: Affine | None = setting(None, "random rotation, scaling and shift; null for none")
    rand_augment: str | None = setting(None, "policy in timm's form, e.g. rand-m9-mstd0.5-inc1; null for none")
    fill: tuple[int, int, int] = setting((124, 116, 104), "colour of uncovered pixels", at_least=0, at_most=255)
    erase: float = setting(0.0, "probability of random erasing with per-pixel noise", at_least=0, at_most=1)
    repeats: int = setting(1, "times a picture is seen in an epoch, each with its own draws", at_least=1, at_most=16)

    def crop_at(self, size: int) -> str:
        """`crop` for an input of `size` pixels, no longer auto."""
        if self.crop != "auto":
            return self.crop
        return "padded" if size <= SMALL_INPUT else "resized"


@dataclass(frozen=True)
class Mix:
    """Mixup and CutMix, one draw per group of pictures, partner = the group reversed."""

    mixup: float = setting(0.0, "alpha of mixup's Beta distribution; 0 for none", at_least=0, at_most=1000)
    cutmix: float = setting(0.0, "alpha of CutMix's; 0 for none", at_least=0, at_most=1000)
    prob: float = setting(1.0, "probability that a group is mixed", at_least=0, at_most=1)
    switch_prob: float = setting(0.5, "probability of CutMix where both are on", at_least=0, at_most=1)
    group: int = setting(128, "pictures that share a draw (the official device batch)", at_least=2, at_most=MANY)


@dataclass(frozen=True)
class Loss:
    """Cross-entropy with soft targets."""

    label_smoothing: float = setting(0.0, "share of the target spread over all classes", at_least=0, below=1)


@dataclass(frozen=True)
class Batch:
    """The global batch is the recipe's; what a device gets follows from the number of devices."""

    global_batch: int = setting(
        4096,
        "pictures per update, over all devices",
        auto="a power of two from 8 to 64, near a 25th of the training pictures",
        at_least=1,
        at_most=MANY,
    )
    largest_per_device: int = setting(
        256,
        "pictures a device holds at once; lower it when memory runs out",
        at_least=1,
        at_most=MANY,
        machine=True,
    )


@dataclass(frozen=True)
class Optimizer:
    """AdamW or SGD with momentum, in PyTorch's form."""

    name: str = setting("adamw", "update rule", choices=("adamw", "sgd"))
    lr: float = setting(
        5e-4,
        "reference learning rate, at lr_batch pictures per update",
        auto="from the update rule, and whether weights are given (--init-from)",
        above=0,
        at_most=LARGEST_LR,
    )
    lr_batch: int = setting(512, "global batch the reference rate belongs to", at_least=1, at_most=MANY)
    lr_scaling: str = setting("linear", "how lr follows the global batch", choices=("linear", "sqrt", "none"))
    betas: tuple[float, float] = setting((0.9, 0.999), "adamw: decay of the moments per update", at_least=0, below=1)
    eps: float = setting(1e-8, "adamw: added to the root of the second moment", above=0)
    momentum: float = setting(0.9, "sgd: share of the velocity that stays", at_least=0, below=1)
    weight_decay: float = setting(0.05, "adamw: decoupled, times lr; sgd: added to the gradient", at_least=0)
    no_decay: str = setting(
        "official",
        "official: biases and 1-D tensors are not decayed; timm: tokens and position embeddings neither",
        choices=("official", "timm"),
    )
    clip_norm: float | None = setting(None, "largest global norm of the ranks' mean gradient; null for any", above=0)
    layer_decay: float = setting(
        1.0, "each earlier encoder learns this many times slower; 1 for none", above=0, at_most=1
    )
    freeze: tuple[str, ...] = setting(
        (), "parameters that stay as they are, as patterns of names: patch_embed.*, blocks.0.*"
    )


@dataclass(frozen=True)
class Ema:
    """An exponential moving average of the weights, scored beside them."""

    decay: float | None = setting(
        None,
        "share that stays per update, e.g. 0.9999; null for no average",
        auto="1 - 10 / updates of the run: the average reaches back over a tenth of it",
        above=0,
        below=1,
    )
    warmup: bool = setting(True, "begin with small shares: min(decay, (1 + updates) / (10 + updates))")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine."""

    epochs: int = setting(
        300, "passes over the training set", auto="as many as give 500 updates, from 5 to 100", at_least=1, at_most=MANY
    )
    warmup_epochs: float = setting(30.0, "epochs of linear warm-up", auto="a tenth of the epochs", at_least=0)
    warmup_lr: float = setting(1e-6, "learning rate at the start", at_least=0, at_most=LARGEST_LR)
    min_lr: float = setting(1e-5, "learning rate at the end", at_least=0, at_most=LARGEST_LR)
    scaled_ends: bool = setting(False, "warmup_lr and min_lr follow the global batch as optimizer.lr does")
    stepping: str = setting(
        "update",
        "update: with every update; epoch: once per epoch and one epoch late, as in the official runs",
        choices=("update", "epoch"),
    )


@dataclass(frozen=True)
class Evaluate:
    """Validation while training and by validate.py."""

    every_epochs: int = setting(
        1, "epochs between validations; the last epoch is always validated", at_least=1, machine=True
    )
    batch: int = setting(64, "pictures per device and step", at_least=1, at_most=MANY, machine=True)
    crop_fraction: float = setting(
        0.875, "input size over the resized shorter side, centre crop", at_least=0.1, at_most=1
    )


@dataclass(frozen=True)
class Checkpoint:
    """What is kept."""

    every_epochs: int = setting(
        1, "epochs between checkpoints; the last epoch is always saved", at_least=1, machine=True
    )
    every_updates: int | None = setting(
        None, "updates between further checkpoints; null for none", at_least=1, machine=True
    )
    keep: int = setting(2, "newest checkpoints kept, besides the best", at_least=1, machine=True)
    on_failure: str = setting(
        "stop",
        "when one cannot be written (full disk): stop with exit code 7, or go on and try again at the next",
        choices=("stop", "go_on"),
        machine=True,
    )


@dataclass(frozen=True)
class Run:
    """Where and how."""

    seed: int = setting(0, "of weights, order, augmentation and drop path", at_least=0, below=2**31)
    output: str | None = setting(
        None,
        "run folder, in a recipe below the working folder (--output); null: runs/NAME, with a number if taken",
        machine=True,
    )
    device: str = setting(
        "auto", "auto takes Ascend where there is one", choices=("auto", "CPU", "Ascend"), machine=True
    )
    ops: str = setting(
        "auto",
        "implementation of the primitives",
        choices=("auto", "standard", "fused", "composed", "native"),
        machine=True,
    )
    precision: str = setting(
        "O0", "what is float16, O0 nothing to O3 all but norms, softmax and loss", choices=PRECISIONS
    )
    distribute: bool | None = setting(None, "several devices; null: when started by msrun (--distribute)", machine=True)
    sync_batch_norm: bool = setting(
        False, "batch norms see the micro-batches of all devices at once; CabViT's, not those of MindCV's models"
    )
    log_every: int = setting(50, "updates between log lines", at_least=1, machine=True)
    compare_every: int | None = setting(
        None,
        "updates between comparisons of the ranks' parameters, besides those at the start and at every checkpoint",
        at_least=1,
        machine=True,
    )


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. Sections that are left out have their defaults: the ImageNet recipe of the paper."""

    name: str = field(metadata={**meaning("a short name; the run folder is called after it"), "machine": True})
    model: Model
    data: Data
    augment: Augment
    mix: Mix
    loss: Loss
    batch: Batch
    optimizer: Optimizer
    ema: Ema
    schedule: Schedule
    evaluate: Evaluate
    checkpoint: Checkpoint
    run: Run
    auto: tuple[str, ...] = internal(())
    """Keys whose value is still `auto`; see adapt."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they would stand in a YAML file."""
        values = _plain(asdict(self))
        for key in values.pop("auto"):
            section, name = key.split(".")
            values[section][name] = "auto"
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
