"""What follows from a recipe, the data and the number of devices: batches, learning rates, steps; all of it printed.

Pure arithmetic, no MindSpore: `--dry-run` needs it for a thousand cards, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .data.shares import keeps_pairs
from .data.sources import Splits
from .errors import UserError
from .recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The numbers a run is made of.

    per_device: pictures a device holds at once. accumulation: such batches per update. lr: peak learning rate.
    group: rows of the global batch that are mixed with each other, of the recipe and no device. mix_group: rows that
    share a draw: `group`, or one device's batch where that holds no pairs. notes: departures from the recipe, each a
    sentence. ends_scale: what the schedule's warmup_lr and min_lr are multiplied by.
    """

    world: int
    global_batch: int
    per_device: int
    accumulation: int
    group: int
    mix_group: int
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
    per_device, mix_group, notes = divide_batch(recipe, world)
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
        group=group_of(recipe),
        mix_group=mix_group,
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


def group_of(recipe: Recipe) -> int:
    """mix.group, or the divisor of the global batch nearest to it, an even one where there is any."""
    total, wanted = recipe.batch.global_batch, recipe.mix.group
    if total % wanted == 0:
        return wanted
    step = 2 - total % 2
    return min((g for g in range(step, total + 1, step) if total % g == 0), key=lambda g: abs(math.log(g / wanted)))


def divide_batch(recipe: Recipe, world: int) -> tuple[int, int, list[str]]:
    """(pictures per device, rows of a mixing draw, notes): the largest share that fits and keeps mixing's pairs."""
    total, largest = recipe.batch.global_batch, recipe.batch.largest_per_device
    if total % world:
        near = max(total // world, 1) * world
        raise UserError(
            f"batch.global_batch {total} cannot be divided among {world} devices (nearest: {near}, {near + world})"
        )
    share, group = total // world, group_of(recipe)
    fits = [b for b in range(1, min(largest, share) + 1) if share % b == 0]
    if not (recipe.mix.mixup or recipe.mix.cutmix):
        return fits[-1], group, []
    notes = []
    if group != recipe.mix.group:
        notes.append(
            f"mixing draws once per {group} pictures instead of {recipe.mix.group}: the global batch of {total} is not"
            " made of such groups"
        )
    paired = [b for b in fits if keeps_pairs(b, group)]
    if paired:
        if paired[-1] < fits[-1]:
            notes.append(f"a device holds {paired[-1]} pictures at once, not {fits[-1]}: mixing wants an even number")
        return paired[-1], group, notes
    notes.append(
        f"mixing draws once per {fits[-1]} pictures instead of {group}: a device's {share} hold no pairs of a group, so"
        " this run mixes other pictures than one on another number of devices"
    )
    return fits[-1], fits[-1], notes


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
    size = recipe.model.image_size
    if recipe.augment.crop == "auto" and recipe.augment.crop_at(size) == "padded":
        lines.append(("crop", f"{size} pixels with 4 of padding and a random shift, as the official loader up to 32"))
    return lines + [("note", note) for note in plan.notes]
