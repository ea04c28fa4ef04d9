"""The learning rate as a pure function of the update: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from ..plan import Plan
from ..recipe import Schedule


def lr_at(schedule: Schedule, plan: Plan, update: int) -> float:
    """The rate of update `update` (from 0): linear warm-up, then a cosine over the whole run.

    The cosine begins at update 0 and is not re-based after the warm-up, as in the official runs; the ends are scaled
    with the batch if the recipe says so. With stepping `epoch` the rate changes once per epoch and lags one epoch, as
    in CrossViT's runs: epochs 0 and 1 both have the warm-up's first rate.
    """
    if schedule.stepping == "epoch":
        epoch = max(update // plan.steps_per_epoch - 1, 0)
        return _rate(schedule, plan, epoch, schedule.warmup_epochs, schedule.epochs)
    warmup = round(schedule.warmup_epochs * plan.steps_per_epoch)
    return _rate(schedule, plan, update, warmup, plan.total_steps)


def _rate(schedule: Schedule, plan: Plan, now: int, warmup: float, end: int) -> float:
    first, last = schedule.warmup_lr * plan.ends_scale, schedule.min_lr * plan.ends_scale
    if now < warmup:
        return first + (plan.lr - first) * now / warmup
    return last + (plan.lr - last) * (1 + math.cos(math.pi * now / end)) / 2
