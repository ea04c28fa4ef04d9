"""The learning rate as a pure function of the update: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from ..plan import Plan
from ..recipe import Schedule


def lr_at(schedule: Schedule, plan: Plan, update: int) -> float:
    """The rate of update `update` (from 0): linear warm-up, then a cosine over the whole run.

    The cosine begins at update 0 and is not re-based after the warm-up, as in the official runs; neither end is scaled
    with the batch. With stepping `epoch` the rate changes once per epoch and lags one epoch, as in those runs: epochs 0
    and 1 both have the warm-up's first rate.
    """
    if schedule.stepping == "epoch":
        epoch = max(update // plan.steps_per_epoch - 1, 0)
        return _rate(schedule, plan.lr, epoch, schedule.warmup_epochs, schedule.epochs)
    warmup = round(schedule.warmup_epochs * plan.steps_per_epoch)
    return _rate(schedule, plan.lr, update, warmup, plan.total_steps)


def _rate(schedule: Schedule, peak: float, now: int, warmup: float, end: int) -> float:
    if now < warmup:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * now / warmup
    return schedule.min_lr + (peak - schedule.min_lr) * (1 + math.cos(math.pi * now / end)) / 2
