"""The learning rate as a pure function of the update: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from ..plan import Plan
from ..recipe import Schedule


def lr_at(schedule: Schedule, plan: Plan, update: int) -> float:
    """The rate of update `update` (from 0): linear warm-up, then a cosine over the whole run.

    The cosine begins at update 0 and is not re-based after the warm-up, as in the official runs; those stepped once
    per epoch, this one steps with every update.
    """
    warmup = round(schedule.warmup_epochs * plan.steps_per_epoch)
    if update < warmup:
        return schedule.warmup_lr + (plan.lr - schedule.warmup_lr) * update / warmup
    return schedule.min_lr + (plan.lr - schedule.min_lr) * (1 + math.cos(math.pi * update / plan.total_steps)) / 2
