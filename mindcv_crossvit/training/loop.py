"""The training loop: one page that reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mindspore import nn

from ..data.draws import drop_path_scale
from ..data.loader import Batch, Loader
from ..data.views import train_jobs
from ..evaluation import Score, evaluate
from ..journal import Chrono, Journal, duration
from ..plan import Plan
from ..recipe import Recipe
from ..runtime import Runtime
from .checkpoint import CheckpointFolder
from .schedule import lr_at
from .state import State
from .step import TrainStep


class NonFiniteLoss(Exception):
    """The loss became infinite or not a number; the checkpoint before it is whole."""


@dataclass
class Training:
    """Everything the loop works with."""

    recipe: Recipe
    plan: Plan
    runtime: Runtime
    model: nn.Cell
    step: TrainStep
    state: State
    loader: Loader
    val_labels: np.ndarray
    journal: Journal
    checkpoints: CheckpointFolder | None
    about: dict[str, Any]
    chrono: Chrono = field(default_factory=Chrono)


def fit(t: Training) -> Score:
    """Trains from the state's update to the end of the recipe; returns the last score.

    Raises NonFiniteLoss on all ranks alike, with the update it happened in.
    """
    recipe, plan, state = t.recipe, t.plan, t.state
    batches = t.loader.batches("train", _jobs(t))
    score = None
    while state.update < plan.total_steps:
        epoch, step = divmod(state.update, plan.steps_per_epoch)
        lr = lr_at(recipe.schedule, plan, state.update)
        loss = _update(t, batches, lr)
        if not math.isfinite(loss):
            raise NonFiniteLoss(_non_finite_message(t, epoch, step, lr))
        state.update += 1
        t.journal.show(_progress(t, epoch, step + 1, loss, lr))
        if state.update % recipe.run.log_every == 0 or state.update == plan.total_steps:
            t.journal.say(_progress(t, epoch, step + 1, loss, lr))
        t.journal.record(update=state.update, epoch=epoch + 1, loss=loss, lr=lr)

        if step + 1 == plan.steps_per_epoch:
            last = epoch + 1 == recipe.schedule.epochs
            if last or (epoch + 1) % recipe.evaluate.every_epochs == 0:
                score = _validate(t, epoch)
            if last or (epoch + 1) % recipe.checkpoint.every_epochs == 0:
                _save(t)
    return score or _validate(t, recipe.schedule.epochs - 1)


def _jobs(t: Training) -> Iterator[Any]:
    p = t.plan
    return train_jobs(
        t.recipe.run.seed,
        p.train_images,
        p.global_batch,
        p.per_device,
        t.runtime.rank,
        p.world,
        t.state.update,
        p.total_steps,
        p.steps_per_epoch,
    )


def _update(t: Training, batches: Iterator[Batch], lr: float) -> float:
    """One update from its micro-batches; the mean loss over them and over the ranks."""
    p, rank = t.plan, t.runtime.rank
    first = not t.chrono.compile_seconds
    if first:
        t.journal.say("compiling the graph (once; large models take minutes) ...")
    t.chrono.start()
    scale = drop_path_scale(t.recipe.run.seed, t.state.update, t.state.drop_rates, p.global_batch)
    losses = []
    for micro in range(p.accumulation):
        _, arrays, skipped = next(batches)
        for _, reason in skipped:
            t.state.skipped += 1
            t.journal.say(f"skipped: {reason}")
        row = (micro * p.world + rank) * p.per_device
        inputs = arrays["images"], arrays["targets"], scale[:, row : row + p.per_device]
        if micro + 1 < p.accumulation:
            losses.append(t.step.add(*inputs))
        else:
            losses.append(t.step.apply(*inputs, lr, t.state.update + 1))
    loss = float(t.runtime.gather(np.array([np.mean(losses)], np.float32)).mean())
    t.chrono.stop(p.global_batch)
    if first:
        t.journal.say(f"compiled; the first update took {duration(t.chrono.compile_seconds)}")
    return loss


def _validate(t: Training, epoch: int) -> Score:
    score = evaluate(t.model, t.loader, t.val_labels, t.recipe.evaluate.batch, t.runtime, t.journal.say)
    t.state.is_best = score.top1 > t.state.best_top1
    t.state.best_top1 = max(score.top1, t.state.best_top1)
    t.journal.say(
        f"epoch {epoch + 1}/{t.recipe.schedule.epochs}  validation top-1 {score.top1:.2f} %  top-5 {score.top5:.2f} %"
        f"  loss {score.loss:.4f}  ({score.images:,} pictures; best {t.state.best_top1:.2f} %)"
    )
    t.journal.record(
        update=t.state.update, epoch=epoch + 1, val_top1=score.top1, val_top5=score.top5, val_loss=score.loss
    )
    return score


def _save(t: Training) -> None:
    t.runtime.check_same(t.state.parameters(), f"checkpoint at update {t.state.update}")
    if t.checkpoints:
        meta = {**t.about, **t.state.meta(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        t.checkpoints.save(t.state.tensors(), meta, t.state.is_best)


def _progress(t: Training, epoch: int, step: int, loss: float, lr: float) -> str:
    left = (t.plan.total_steps - t.state.update) * t.plan.global_batch / t.chrono.rate if t.chrono.rate else 0
    return (
        f"epoch {epoch + 1}/{t.recipe.schedule.epochs}  step {step}/{t.plan.steps_per_epoch}  loss {loss:.4f}"
        f"  lr {lr:.2e}  {t.chrono.rate:.0f} images/s  {duration(left)} left"
    )


def _non_finite_message(t: Training, epoch: int, step: int, lr: float) -> str:
    return (
        f"the loss is not finite in update {t.state.update + 1} (epoch {epoch + 1}, step {step + 1}, lr {lr:.3g});"
        " nothing was saved after it. Try a lower optimizer.lr, a longer schedule.warmup_epochs, or another run.seed"
    )
