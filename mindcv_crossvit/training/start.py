"""Where a run begins: fresh, from its own checkpoint, or from given weights. Decided before MindSpore is imported.

What wins: --resume PATH, then --resume auto (the run folder's newest whole checkpoint), then --init-from, then
fresh weights. A run that goes on does so in its own folder, see journal.choose_folder.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.sources import Splits
from ..departures import changes_since
from ..errors import UserError, user_path
from ..journal import has_run, names_hash
from ..models import catalog
from ..plan import Plan
from ..recipe import Recipe
from ..recipe_file import flat
from ..weights.fit import Fit, fit, is_head
from ..weights.read import Weights, read_weights
from .checkpoint import SUFFIX, Checkpoint, Described, read_checkpoint
from .checkpoint_folder import CheckpointFolder

POSITION = {
    "global_batch": "batch.global_batch",
    "train_images": "training pictures",
    "steps_per_epoch": "updates per epoch",
}
"""What an update's place in the order of pictures depends on, by its name in a plan and in a checkpoint."""
RESUMED = ("recipe", "world", "applied", "best_top1", "best_update", "skipped", "loss_scale", *POSITION)
"""What a checkpoint must say, besides model, classes and update, for a run to go on from it."""
PLACES = ("run.output", "data.dir", "data.workers", "data.prefetch")
"""Keys that may differ between the machines of a run: where things are there, and who prepares batches."""


def find_checkpoint(recipe: Recipe, folder: Path, resume: str | None, say=print) -> Checkpoint | None:
    """The checkpoint to go on from; None for a new run.

    folder: the run's. Raises UserError when a named one is not whole or not in a run folder, or when there are some
    and none is whole.
    """
    if resume is None:
        return None
    if resume != "auto":
        checkpoint = _complete(read_checkpoint(resolve(user_path(resume, "--resume"))))
        if not has_run(folder):
            raise UserError(
                f"--resume {resume}: {folder} is no run folder; to go on in a new one, put the checkpoint there as"
                f" checkpoints/step-{checkpoint.meta['update']:09d}{SUFFIX} and give --output and --resume auto"
            )
        return checkpoint
    found = CheckpointFolder(folder, recipe.checkpoint.keep).newest_whole(say)
    return found and _complete(found)


def _complete(checkpoint: Checkpoint) -> Checkpoint:
    """Refuses to go on from what has weights only, converted ones for example. Raises UserError."""
    if missing := [key for key in RESUMED if checkpoint.meta.get(key) is None]:
        raise UserError(
            f"{checkpoint.path}: a run cannot go on from it, it does not say its {', '.join(missing)};"
            " --init-from begins a new one with its weights"
        )
    return checkpoint


def resolve(path: Path) -> Path:
    """A checkpoint's path; a run folder stands for its last one."""
    return path / f"last{SUFFIX}" if path.is_dir() else path


def check_resumed(
    checkpoint: Checkpoint, recipe: Recipe, plan: Plan, class_names: tuple[str, ...]
) -> list[tuple[str, str]]:
    """(topic, sentence) for what the recipe says otherwise than when the checkpoint was written.

    Raises UserError for another model, other classes, and where its update would be another place in the order of
    pictures, with every difference.
    """
    problems = _misfits(checkpoint, recipe, class_names)
    for key, words in POSITION.items():
        was, now = checkpoint.meta[key], getattr(plan, key)
        if was != now:
            text = f"{words} {'is' if '.' in words else 'are'} {now:,}, {was:,} when it was written"
            problems.append(f"{text}: update {checkpoint.meta['update']:,} would be another place in the run")
    if problems:
        raise UserError(f"{checkpoint.path}: {problem}" for problem in problems)
    return changes_since(checkpoint.meta["update"], checkpoint.meta["recipe"], recipe)


def other_devices(meta: Mapping[str, Any], plan: Plan, norms_batches: bool) -> str:
    """What it means that a checkpoint was made by devices of another number or size; empty where it was not.

    meta: what the checkpoint says of itself. norms_batches: whether the model has batch norms.
    """
    before = meta["world"], meta.get("per_device", plan.per_device)
    if before == (plan.world, plan.per_device):
        return ""
    devices = f"{plan.world} device{'s' if plan.world > 1 else ''} x {plan.per_device}"
    same = f"{devices} pictures instead of {before[0]} x {before[1]}: the same global batches in the same order"
    drawn = meta.get("mix_group", plan.mix_group)
    if drawn != plan.mix_group:
        return f"{same}, but mixing draws once per {plan.mix_group} pictures, not {drawn}: other training from here"
    if norms_batches:
        return f"{same}, but batch norms see other batches: results differ by more than rounding"
    return f"{same}; results agree to rounding, not bitwise"


def beginning(recipe: Recipe, data: Splits, resumed: Checkpoint | None) -> dict[str, Any]:
    """All that a run depends on and that its ranks find out by themselves, by name: it must be the same on all."""
    place = f"after update {resumed.meta['update']:,} ({resumed.checksum})" if resumed else "new"
    found: dict[str, Any] = {"the run's beginning": place, "the hash of the class names": names_hash(data.class_names)}
    for part, source in (("training", data.train), ("validation", data.val)):
        found[f"the number of {part} pictures"] = len(source)
        found[f"the checksum of the {part} labels"] = zlib.crc32(np.ascontiguousarray(source.labels).tobytes())
    return found | {key: value for key, value in flat(recipe.to_dict()).items() if key not in PLACES}


def check_fits(checkpoint: Described, recipe: Recipe, class_names: tuple[str, ...]) -> None:
    """Refuses a checkpoint of another model or other classes. Raises UserError with every difference."""
    if problems := _misfits(checkpoint, recipe, class_names):
        raise UserError(f"{checkpoint.path}: {problem}" for problem in problems)


def _misfits(checkpoint: Described, recipe: Recipe, class_names: tuple[str, ...]) -> list[str]:
    meta, problems = checkpoint.meta, []
    try:
        given, ours = (_every_number(model) for model in (meta["model"], model_of(recipe)))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{checkpoint.path}: what it says of its model makes none: {error}") from error
    differing = [key for key in {**given, **ours} if _plain(given.get(key)) != _plain(ours.get(key))]
    if differing and differing != ["name"]:
        problems += [f"model.{k} is {given.get(k)} in the checkpoint, {ours.get(k)} in the recipe" for k in differing]
    theirs = tuple(meta["class_names"])
    if theirs != class_names:
        problems.append(_class_difference(theirs, class_names))
    return problems


def read_initial(path: str, class_names: tuple[str, ...]) -> Weights:
    """The weights a new run begins with (--init-from), from a file of any known kind or a run folder.

    The heads of a checkpoint of this suite are left out where its classes are others. Raises UserError.
    """
    weights = read_weights(resolve(Path(path)))
    theirs = tuple(weights.meta["class_names"]) if weights.meta else class_names
    if theirs == class_names:
        return weights
    note = f"its heads are for {len(theirs)} other classes ({', '.join(theirs[:3])}, ...)"
    tensors = {n: t for n, t in weights.tensors.items() if not is_head(n)}
    return replace(weights, tensors=tensors, notes=(*weights.notes, note))


def check_initial(weights: Weights, recipe: Recipe, classes: int) -> None:
    """Refuses initial weights that do not fit a model of the suite, before MindSpore starts. Raises UserError."""
    config = recipe.model.config()
    if config:
        fit_initial(weights, catalog.parameter_shapes(config, classes), getattr(config, "numerics", None))


def fit_initial(weights: Weights, shapes: Mapping[str, tuple[int, ...]], numerics: str | None) -> Fit:
    """Initial weights as a model takes them: positions resized, other heads fresh. Raises UserError."""
    return fit(weights, shapes, numerics, new_head=True)


def model_of(recipe: Recipe) -> dict[str, Any]:
    """What makes two models the same: the name in the suite's spelling and the overrides."""
    return {"name": catalog.resolve(recipe.model.name), **recipe.model.overrides()}


def _every_number(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's name and all that defines it; of MindCV's, what was said."""
    name, overrides = catalog.resolve(model["name"]), {k: v for k, v in model.items() if k != "name"}
    if name.startswith(catalog.MINDCV_PREFIX):
        return dict(model)
    return {"name": name, **asdict(catalog.VARIANTS[name].with_overrides(overrides))}


def _class_difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if len(theirs) != len(ours):
        return f"it was trained on {len(theirs)} classes, the data has {len(ours)}"
    first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"class {first} is {theirs[first]!r} in the checkpoint and {ours[first]!r} in the data"


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
