"""Trained models that answer: pictures in, logits out. MindSpore is imported when a model is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .attention_picture import Panel
from .data.transforms import EvalTransform, Normalise
from .errors import UserError
from .models.catalog import MINDCV_PREFIX, VARIANTS, family_of, resolve
from .recipe import Recipe
from .recipe_file import parse_recipe
from .training.checkpoint import Checkpoint, Described

if TYPE_CHECKING:
    from mindspore import nn

    from .models.attention_maps import AttentionMaps, AttentionReader


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to a model's input, as in validation.

    image_size: pixels of the square input. crop_fraction: that over the resized shorter side, above 0 to 1.
    mean, std: per channel, of pixels in 0 to 1.
    """

    image_size: int
    crop_fraction: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def transform(self) -> EvalTransform:
        """RGB picture of any size -> float32 [3, image_size, image_size]."""
        return EvalTransform(self.image_size, self.crop_fraction, Normalise(self.mean, self.std))


class Predictor(Protocol):
    """A trained model, wherever it comes from."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """What its pictures must go through."""
        ...

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 [B, 3, S, S] -> float32 [B, classes]; each new B may compile anew."""
        ...


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """The recipe a checkpoint was trained by. Raises UserError when it has none that this version understands."""
    problems: list[str] = []
    recipe = parse_recipe(checkpoint.meta.get("recipe"), problems)
    if recipe is None:
        raise UserError(f"{checkpoint.path}: the recipe in it: {problem}" for problem in problems)
    return recipe


def preprocessing_of(checkpoint: Checkpoint) -> Preprocessing:
    """What a checkpoint's model was validated with. Raises UserError, see recipe_of."""
    recipe = recipe_of(checkpoint)
    return Preprocessing(recipe.model.image_size, recipe.evaluate.crop_fraction, recipe.data.mean, recipe.data.std)


def model_from_checkpoint(
    checkpoint: Checkpoint, ops: str = "auto", part: str = "model", precision: str | None = None
) -> nn.Cell:
    """The trained model, in evaluation mode.

    ops: `auto` (by device), `standard`, `composed` or `native`. part: `model`, or `ema` for the moving average.
    precision: O0 to O3, None for what it was trained in.
    Raises UserError when the checkpoint's tensors do not fit its own description, or MindCV has no such model.
    """
    from .build import build_model
    from .training.state import load_model

    recipe = recipe_of(checkpoint)
    run = replace(recipe.run, ops=ops, precision=precision or recipe.run.precision)
    recipe = replace(recipe, run=run)
    model = build_model(recipe, len(checkpoint.meta["class_names"]))
    load_model(model, checkpoint, part)
    return model.set_train(False)


class CheckpointPredictor:
    """A Predictor from a checkpoint; `model` is the Cell, see model_from_checkpoint for what it raises."""

    def __init__(self, checkpoint: Checkpoint, part: str = "model", ops: str = "auto", precision: str | None = None):
        self.class_names = tuple(checkpoint.meta["class_names"])
        self.preprocessing = preprocessing_of(checkpoint)
        self.model = model_from_checkpoint(checkpoint, ops, part, precision)
        self._reader: AttentionReader | None = None

    def logits(self, images: np.ndarray) -> np.ndarray:
        """See Predictor."""
        from mindspore import Tensor

        return self.model(Tensor(images)).asnumpy()

    def with_attention(self, images: np.ndarray) -> tuple[np.ndarray, list[list[Panel]]]:
        """The logits, and what each picture's class tokens attend to; of the same pass. Only models of this suite."""
        from .models.attention_maps import AttentionReader

        self._reader = self._reader or AttentionReader(self.model)
        maps = self._reader(images)
        return maps.logits, attention_panels(maps)


def attention_panels(maps: AttentionMaps) -> list[list[Panel]]:
    """Four panels of each picture: the last encoder's cross-attention, mean over heads, and rollout, per branch."""
    from .models.attention_maps import patch_grid, rollout

    small, large = (patch_grid(cross.mean(1)) for cross in maps.cross)
    rolled_small, rolled_large = (patch_grid(rollout(blocks)[:, 0]) for blocks in maps.blocks)
    titles = [
        "last encoder: small branch's\ntoken reads large patches",
        "last encoder: large branch's\ntoken reads small patches",
    ]
    titles += ["rollout,\nsmall branch", "rollout,\nlarge branch"]
    rows = zip(small, large, rolled_small, rolled_large, strict=True)
    return [[Panel(title, grid) for title, grid in zip(titles, row, strict=True)] for row in rows]


def padded(pictures: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """1 to `batch` arrays of one shape, float32 [3, S, S] -> [batch, 3, S, S]; rows beyond them are zero."""
    images = np.zeros((batch, *pictures[0].shape), np.float32)
    images[: len(pictures)] = pictures
    return images


@dataclass(frozen=True)
class Answer:
    """One of the likeliest classes of a picture: its name, its number from 0, its probability, 0 to 1."""

    name: str
    index: int
    probability: float


def top_classes(logits: np.ndarray, class_names: tuple[str, ...], count: int) -> list[Answer]:
    """The `count` likeliest classes by softmax, likeliest first; of equal logits the lower number first.

    logits: [classes] of one picture. Raises UserError when they are not finite.
    """
    if not np.isfinite(logits).all():
        raise UserError("the model's outputs are not finite: its weights are of a run that diverged")
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    best = np.argsort(-logits, kind="stable")[:count]
    return [Answer(class_names[int(i)], int(i), float(probabilities[i])) for i in best]


def check_request(trained: Described, top: int | None, part: str, attention: bool) -> int:
    """The number of classes to name: `top`, or 5, or all where there are fewer.

    Raises UserError with everything a checkpoint, or a file exported from one, cannot give.
    """
    classes, name = len(trained.meta["class_names"]), trained.meta["model"]["name"]
    problems = []
    if top is not None and not 1 <= top <= classes:
        problems.append(f"--top {top}: expected 1 to {classes}, the classes of {trained.path}")
    if not isinstance(trained, Checkpoint):
        if part == "ema":
            problems.append(f"--weights ema: {trained.path} has the weights that were exported; leave the option out")
        if attention:
            problems.append(f"--attention: {trained.path} gives logits only; draw with the checkpoint")
    else:
        if part == "ema" and not trained.part("ema"):
            problems.append(f"--weights ema: {trained.path} has no moving average (ema.decay was null); use model")
        if attention and not _attends(trained.meta["model"]):
            problems.append(
                f"--attention: this {name} has no class tokens that read another branch; only CrossViT with its"
                " cross-attention has"
            )
    if problems:
        raise UserError(problems)
    return min(5, classes) if top is None else top


def _attends(model: Mapping[str, Any]) -> bool:
    """Whether attention can be drawn of a model: its name and overrides."""
    name = resolve(model["name"])
    if name.startswith(MINDCV_PREFIX):
        return False
    config = VARIANTS[name].with_overrides({key: value for key, value in model.items() if key != "name"})
    return family_of(config).attends(config)
