"""What follows from a recipe, the data and the number of devices: batches, learning rates, steps; all of it printed.

Pure arithmetic, no MindSpore: `--dry-run` needs it for a thousand cards, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .data.sources import Splits
from .errors import UserError
from .recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The numbers a run is made of.

    per_device: pictures a device holds at once. accumulation: such batches per update. lr: peak learning rate.
    group: pictures that share a mixing draw. notes: departures from the recipe, each a sentence. ends_scale: what the
    schedule's warmup_lr and min_lr are multiplied by.
    """

    world: int
    global_batch: int
    per_device: int
    accumulation: int
    group: int
    lr: float
    train_images: int
    val_images: int
    classes: int
    steps_per_epoch: int
    total_steps: int
    data_note: str
    notes: tuple[str, ...]
    ends_scale: float = 1.0


def make_plan(recipe: Recipe, data: Splits, world: int) -> Plan:
    """Derives a plan. Raises UserError when recipe and data contradict each other or the batch cannot be divided."""
    train_images, classes = len(data.train), len(data.class_names)
    if recipe.model.num_classes not in (None, classes):
        raise UserError(
            f"model.num_classes: {recipe.model.num_classes}, but the data has {classes} classes; null takes those"
        )
    per_device, group, notes = divide_batch(recipe, world)
    global_batch = recipe.batch.global_batch
    # With repeats the official sampler keeps N // 256 * 256 of the repeated pictures; fewer than 256 all stay here.
    length = (train_images // 256 * 256 or train_images) if recipe.augment.repeats > 1 else train_images
    steps = max(length // global_batch, 1)
    if train_images < global_batch:
        notes.append(
            f"the global batch of {global_batch} is larger than the {train_images} training pictures:"
            " an update sees some of them more than once; lower batch.global_batch"
        )
    return Plan(
        world=world,
        global_batch=global_batch,
        per_device=per_device,
        accumulation=global_batch // (world * per_device),
        group=group,
        lr=scaled_lr(recipe),
        train_images=train_images,
        val_images=len(data.val),
        classes=classes,
        steps_per_epoch=steps,
        total_steps=steps * recipe.schedule.epochs,
        data_note=data.note,
        notes=tuple(notes),
        ends_scale=lr_scale(recipe) if recipe.schedule.scaled_ends else 1.0,
    )


def divide_batch(recipe: Recipe, world: int) -> tuple[int, int, list[str]]:
    """(pictures per device, mixing group, notes): the largest even share that fits and keeps groups whole."""
    total, largest = recipe.batch.global_batch, recipe.batch.largest_per_device
    if total % world:
        near = max(total // world, 1) * world
        raise UserError(
            f"batch.global_batch {total} cannot be divided among {world} devices (nearest: {near}, {near + world})"
        )
    share = total // world
    fits = [b for b in range(1, min(largest, share) + 1) if share % b == 0]
    if not (recipe.mix.mixup or recipe.mix.cutmix):
        return fits[-1], fits[-1], []
    whole = [b for b in fits if b % recipe.mix.group == 0]
    if whole:
        return whole[-1], recipe.mix.group, []
    note = f"mixing draws once per {fits[-1]} pictures instead of {recipe.mix.group}: a device holds no whole group"
    return fits[-1], fits[-1], [note]


def all_reduce_bytes(parameters: int, world: int) -> float:
    """Bytes each rank sends, and receives, in a ring all-reduce of float32 gradients."""
    return 2 * (world - 1) / world * 4 * parameters


def scaled_lr(recipe: Recipe) -> float:
    """The peak learning rate: the reference rate, scaled with the global batch."""
    return recipe.optimizer.lr * lr_scale(recipe)


def lr_scale(recipe: Recipe) -> float:
    """What the reference learning rate is multiplied by for the recipe's global batch."""
    o = recipe.optimizer
    ratio = recipe.batch.global_batch / o.lr_batch
    return {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[o.lr_scaling]


def plan_lines(recipe: Recipe, plan: Plan) -> list[tuple[str, str]]:
    """(topic, sentence) for each part of the plan that needs no model."""
    o, s = recipe.optimizer, recipe.schedule
    rule = {
        "linear": f"{o.lr:g} x {plan.global_batch}/{o.lr_batch} = ",
        "sqrt": f"{o.lr:g} x sqrt({plan.global_batch}/{o.lr_batch}) = ",
        "none": "",
    }[o.lr_scaling]
    start, end = s.warmup_lr * plan.ends_scale, s.min_lr * plan.ends_scale
    devices = f"{plan.world} device{'s' if plan.world > 1 else ''}"
    lines = [
        (
            "data",
            f"{plan.train_images:,} training and {plan.val_images:,} validation pictures, {plan.classes:,} classes"
            + (f" ({plan.data_note})" if plan.data_note else ""),
        ),
        (
            "batch",
            f"{devices} x {plan.per_device} x {plan.accumulation} accumulation"
            f" = {plan.global_batch} pictures per update",
        ),
        ("lr", f"{rule}{plan.lr:g}; {s.warmup_epochs:g} epochs warm-up from {start:g}, cosine to {end:g}"),
        ("steps", f"{plan.steps_per_epoch:,} per epoch, {plan.total_steps:,} in {s.epochs} epochs"),
    ]
    return lines + [("note", note) for note in plan.notes]
