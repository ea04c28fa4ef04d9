"""What a user may say: typed sections from a YAML file, with `--set key=value` on top.

Nothing here imports MindSpore: a wrong key is answered in a tenth of a second. All problems are reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .data.rand_augment import parse_policy
from .errors import UserError, nearest
from .models import catalog
from .models.crossvit_config import VARIANTS, CrossViTConfig
from .settings import fill, meaning, setting

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Model:
    """Which model; the arguments after drop_path_rate override the variant's, by the official names."""

    name: str = field(metadata=meaning("a model of the suite (crossvit_15), or mindcv/NAME"))
    drop_path_rate: float = setting(0.0, "stochastic depth, linear over depth", at_least=0, below=1)
    num_classes: int | None = setting(None, "classes; null takes them from the data", at_least=1)
    img_size: tuple[int, int] | None = setting(None, "pixels of the small and the large branch", at_least=1)
    patch_size: tuple[int, int] | None = setting(None, "pixels of a patch, per branch", at_least=1)
    embed_dim: tuple[int, int] | None = setting(None, "width of each branch", at_least=1)
    depth: tuple[tuple[int, int, int], ...] | None = setting(None, "[N, M, L] per encoder", at_least=0)
    num_heads: tuple[int, int] | None = setting(None, "heads of each branch", at_least=1)
    mlp_ratio: tuple[float, ...] | None = setting(None, "hidden width over width, per branch", above=0)
    multi_conv: bool | None = setting(None, "the three-convolution stem of the dagger variants")
    input_size: int | None = setting(None, "pixels of the input of a MindCV model (224 when null)", at_least=1)

    def overrides(self) -> dict[str, Any]:
        """The official constructor's arguments that are set here."""
        names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "multi_conv")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def config(self) -> CrossViTConfig | None:
        """The numbers of a model of the suite; None for MindCV's. Raises ValueError when they cannot be built."""
        name = catalog.resolve(self.name)
        return None if name.startswith(catalog.MINDCV_PREFIX) else VARIANTS[name].with_overrides(self.overrides())

    @property
    def image_size(self) -> int:
        """Pixels of the model's square input."""
        config = self.config()
        return config.img_size[0] if config else self.input_size or 224


@dataclass(frozen=True)
class Data:
    """Where pictures come from."""

    source: str = setting("folder", "kind of data set", choices=("folder", "cifar10", "cifar100", "digits"))
    dir: str | None = setting(None, "folder of the data set (--data_dir)")
    val_fraction: float | None = setting(
        None, "share held out for validation when a folder has no train/ and val/", above=0, below=1
    )
    split_seed: int = setting(0, "seed of that split", at_least=0)
    mean: tuple[float, float, float] = setting(IMAGENET_MEAN, "subtracted per channel, of pixels in 0 to 1")
    std: tuple[float, float, float] = setting(IMAGENET_STD, "then divided by", above=0)
    workers: int = setting(
        2, "processes that prepare batches, per device; 0 prepares in the training process", at_least=0
    )
    prefetch: int = setting(2, "batches prepared ahead, per worker", at_least=1)
    bad_images: str = setting("stop", "what to do with a picture that cannot be read", choices=("stop", "skip"))


@dataclass(frozen=True)
class Affine:
    """One random rotation, scaling and shift about the centre."""

    degrees: float = setting(0.0, "rotation, uniform in -degrees to degrees", at_least=0, at_most=180)
    scale: tuple[float, float] = setting((1.0, 1.0), "zoom, uniform between the two", above=0)
    shift: float = setting(
        0.0, "shift per axis as a share of the side, uniform in -shift to shift", at_least=0, below=1
    )


@dataclass(frozen=True)
class Augment:
    """What happens to a training picture, in this order."""

    crop: str = setting(
        "resized",
        "resized: random area and aspect; padded: 4 pixels of padding and a random crop; none: only resized",
        choices=("resized", "padded", "none"),
    )
    crop_scale: tuple[float, float] = setting(
        (0.08, 1.0), "area of a resized crop, share of the picture", above=0, at_most=1
    )
    crop_ratio: tuple[float, float] = setting((3 / 4, 4 / 3), "aspect of a resized crop, width over height", above=0)
    flip: float = setting(0.5, "probability of a horizontal flip", at_least=0, at_most=1)
    affine: Affine | None = setting(None, "random rotation, scaling and shift; null for none")
    rand_augment: str | None = setting(None, "policy in timm's form, e.g. rand-m9-mstd0.5-inc1; null for none")
    fill: tuple[int, int, int] = setting((124, 116, 104), "colour of uncovered pixels", at_least=0, at_most=255)
    erase: float = setting(0.0, "probability of random erasing with per-pixel noise", at_least=0, at_most=1)


@dataclass(frozen=True)
class Mix:
    """Mixup and CutMix, one draw per group of pictures, partner = the group reversed."""

    mixup: float = setting(0.0, "alpha of mixup's Beta distribution; 0 for none", at_least=0)
    cutmix: float = setting(0.0, "alpha of CutMix's; 0 for none", at_least=0)
    prob: float = setting(1.0, "probability that a group is mixed", at_least=0, at_most=1)
    switch_prob: float = setting(0.5, "probability of CutMix where both are on", at_least=0, at_most=1)
    group: int = setting(128, "pictures that share a draw (the official device batch)", at_least=2)


@dataclass(frozen=True)
class Loss:
    """Cross-entropy with soft targets."""

    label_smoothing: float = setting(0.0, "share of the target spread over all classes", at_least=0, below=1)


@dataclass(frozen=True)
class Batch:
    """The global batch is the recipe's; what a device gets follows from the number of devices."""

    global_batch: int = setting(4096, "pictures per update, over all devices", at_least=1)
    largest_per_device: int = setting(256, "pictures a device holds at once; lower it when memory runs out", at_least=1)


@dataclass(frozen=True)
class Optimizer:
    """AdamW in PyTorch's form."""

    name: str = setting("adamw", "update rule", choices=("adamw",))
    lr: float = setting(5e-4, "reference learning rate, at lr_batch pictures per update", above=0)
    lr_batch: int = setting(512, "global batch the reference rate belongs to", at_least=1)
    lr_scaling: str = setting("linear", "how lr follows the global batch", choices=("linear", "sqrt", "none"))
    betas: tuple[float, float] = setting((0.9, 0.999), "decay of the moments per update", at_least=0, below=1)
    eps: float = setting(1e-8, "added to the root of the second moment", above=0)
    weight_decay: float = setting(0.05, "decoupled weight decay, times lr", at_least=0)
    no_decay: str = setting(
        "official",
        "official: biases and 1-D tensors are not decayed; timm: tokens and position embeddings neither",
        choices=("official", "timm"),
    )


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine."""

    epochs: int = setting(300, "passes over the training set", at_least=1)
    warmup_epochs: float = setting(30.0, "epochs of linear warm-up", at_least=0)
    warmup_lr: float = setting(1e-6, "learning rate at the start; not scaled with the batch", at_least=0)
    min_lr: float = setting(1e-5, "learning rate at the end; not scaled with the batch", at_least=0)


@dataclass(frozen=True)
class Evaluate:
    """Validation while training and by validate.py."""

    every_epochs: int = setting(1, "epochs between validations; the last epoch is always validated", at_least=1)
    batch: int = setting(64, "pictures per device and step", at_least=1)
    crop_fraction: float = setting(0.875, "input size over the resized shorter side, centre crop", above=0, at_most=1)


@dataclass(frozen=True)
class Checkpoint:
    """What is kept."""

    every_epochs: int = setting(1, "epochs between checkpoints; the last epoch is always saved", at_least=1)
    keep: int = setting(2, "newest checkpoints kept, besides the best", at_least=1)


@dataclass(frozen=True)
class Run:
    """Where and how."""

    seed: int = setting(0, "of weights, order, augmentation and drop path", at_least=0, below=2**31)
    output: str | None = setting(None, "run folder (--output); null: runs/NAME, with a number if taken")
    device: str = setting("auto", "auto takes Ascend where there is one", choices=("auto", "CPU", "Ascend"))
    ops: str = setting("auto", "implementation of the primitives", choices=("auto", "standard", "composed"))
    distribute: bool | None = setting(None, "several devices; null: when started by msrun (--distribute)")
    log_every: int = setting(50, "updates between log lines", at_least=1)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. Sections that are left out have their defaults: the ImageNet recipe of the paper."""

    name: str = field(metadata=meaning("a short name; the run folder is called after it"))
    model: Model
    data: Data
    augment: Augment
    mix: Mix
    loss: Loss
    batch: Batch
    optimizer: Optimizer
    schedule: Schedule
    evaluate: Evaluate
    checkpoint: Checkpoint
    run: Run

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they would stand in a YAML file."""
        return _plain(asdict(self))


def load_recipe(path: str | Path, changes: Sequence[str] = (), options: dict[str, Any] | None = None) -> Recipe:
    """Reads a recipe file.

    changes: `key=value` texts from --set, the value in YAML.
    options: dotted keys with values from other options (--data_dir is data.dir), applied last.
    Raises UserError with every problem found, each with file, key, value and what was expected.
    """
    path = Path(path)
    problems: list[str] = []
    values = read_yaml(path)
    for change in changes:
        _apply_change(values, change, problems)
    for key, value in (options or {}).items():
        _assign(values, key, value, problems, key)
    recipe = parse_recipe(values, problems)
    if recipe is None or problems:
        raise UserError(f"{path}: {p}" for p in problems)
    return recipe


def parse_recipe(values: Any, problems: list[str]) -> Recipe | None:
    """A recipe from plain values; what is wrong is added to `problems`."""
    before = len(problems)
    recipe = fill(Recipe, values, problems)
    if recipe is not None:
        problems.extend(_contradictions(recipe))
    return recipe if len(problems) == before else None


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file, numbers like 1e-3 as numbers. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such recipe{_nearby(path)}")
    from omegaconf import OmegaConf

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # the YAML reader raises many kinds; all mean that the file cannot be read
        raise UserError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections with keys, got {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    names = [str(p) for p in sorted(folder.glob("*.yaml"))]
    return f"; {nearest(str(path), names)}" if names else ""


def _apply_change(values: dict[str, Any], change: str, problems: list[str]) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        problems.append(f"--set {change}: expected key=value, such as --set schedule.epochs=10")
        return
    from omegaconf import OmegaConf

    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]  # type: ignore[index, call-overload]
    except Exception:  # as above: any failure means that the value is not YAML
        problems.append(f"--set {change}: the value is not readable as YAML")
        return
    _assign(values, key.strip(), value, problems, f"--set {key.strip()}")


def _assign(values: dict[str, Any], key: str, value: Any, problems: list[str], said: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            problems.append(f"{said}: {section} is not a section")
            return
    values[last] = value


def _contradictions(recipe: Recipe) -> list[str]:
    """What types and ranges cannot see."""
    found: list[str] = []
    try:
        recipe.model.config()
    except ValueError as error:
        found.append(f"model: {error}")
    if recipe.augment.rand_augment is not None:
        try:
            parse_policy(recipe.augment.rand_augment)
        except ValueError as error:
            found.append(f"augment.rand_augment: {error}")
    for key, pair in (
        ("augment.crop_scale", recipe.augment.crop_scale),
        ("augment.crop_ratio", recipe.augment.crop_ratio),
    ):
        if pair[0] > pair[1]:
            found.append(f"{key}: expected the smaller value first, got {list(pair)}")
    affine = recipe.augment.affine
    if affine and affine.scale[0] > affine.scale[1]:
        found.append(f"augment.affine.scale: expected the smaller value first, got {list(affine.scale)}")
    if recipe.schedule.warmup_epochs > recipe.schedule.epochs:
        found.append(
            f"schedule.warmup_epochs: expected at most schedule.epochs ({recipe.schedule.epochs}),"
            f" got {recipe.schedule.warmup_epochs:g}"
        )
    if recipe.name in ("", ".", "..") or any(c in recipe.name for c in "/\\\0"):
        found.append(f"name: expected a plain name without slashes, got {recipe.name!r}")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_yaml(recipe: Recipe) -> str:
    """A recipe file that gives this recipe again."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(recipe.to_dict()))
