"""The training loop: one page that reads top to bottom."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from mindspore import nn

from ..chrono import Chrono, duration
from ..data.draws import drop_path_scale
from ..data.loader import Loader
from ..data.shares import share_rows
from ..data.views import Job, Order, train_jobs
from ..evaluation import Score, evaluate, scoring
from ..journal import Journal, NotSaved
from ..plan import Plan
from ..presence import mark
from ..process import StopRequest
from ..recipe import Recipe
from ..runtime import Runtime
from .feed import Feed
from .saving import NonFiniteLoss, Saver
from .schedule import lr_at
from .state import State, ema_keep
from .step import Micro, Outcome, TrainStep


class Stopped(Exception):
    """SIGTERM or SIGINT asked for an end; everything was saved."""


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
    saver: Saver
    stop: StopRequest
    chrono: Chrono = field(default_factory=Chrono)


def fit(t: Training) -> Score:
    """Trains from the state's update to the end of the recipe; returns the last score of the raw weights.

    Raises NonFiniteLoss, Stopped, NotSaved, or UserError for a picture that cannot be read, on all ranks alike and in
    the same update; RuntimeError when their parameters differ.
    """
    recipe, plan, state = t.recipe, t.plan, t.state
    feed = Feed(t.loader.batches("train", _jobs(t)), t.loader.views["train"].shapes(), t.runtime)
    score = None
    while state.update < plan.total_steps:
        epoch, step = divmod(state.update, plan.steps_per_epoch)
        lr = lr_at(recipe.schedule, plan, state.update)
        number = state.update + 1
        loss, finite, stop_asked = _update(t, feed, lr)
        if problem := _diverged(t, loss, finite):
            if state.update == number:  # left out, but counted
                t.journal.record(update=state.update, epoch=epoch + 1, loss=loss, lr=lr)
            if t.saver.update != (state.update or None):  # the parameters are those before it
                with contextlib.suppress(NotSaved):
                    t.saver.save(state, must=False)
            where = f"in update {number} (epoch {epoch + 1}, step {step + 1}, lr {lr:.3g})"
            raise NonFiniteLoss(f"{problem} {where}; {t.saver.outlook}")
        if recipe.run.compare_every and state.update % recipe.run.compare_every == 0:
            t.runtime.check_same(state.parameters(), f"after update {state.update}")
        t.journal.show(_progress(t, epoch, step + 1, loss, lr))
        if state.update % recipe.run.log_every == 0 or state.update == plan.total_steps:
            t.journal.say(_progress(t, epoch, step + 1, loss, lr))
        t.journal.record(update=state.update, epoch=epoch + 1, loss=loss, lr=lr)

        due = stop_asked
        if step + 1 == plan.steps_per_epoch:
            last = epoch + 1 == recipe.schedule.epochs
            if last or (epoch + 1) % recipe.evaluate.every_epochs == 0:
                score = _validate(t, epoch)
            if last or state.is_best or (epoch + 1) % recipe.checkpoint.every_epochs == 0:
                due = True
        every = recipe.checkpoint.every_updates
        if due or (every and state.update % every == 0):
            t.saver.save(state, must=stop_asked or state.update == plan.total_steps)
        if stop_asked:
            raise Stopped(f"on request after update {state.update:,}; go on with --resume auto")
    if state.skipped:
        t.journal.say(
            f"skipped   {state.skipped:,} times a training picture could not be read and another took its place"
        )
    return score or _score(t)


def _jobs(t: Training) -> Iterator[Job]:
    p = t.plan
    order = Order(
        t.recipe.run.seed, p.train_images, p.global_batch, p.steps_per_epoch, t.recipe.augment.repeats, p.group
    )
    return train_jobs(order, p.per_device, t.runtime.rank, p.world, t.state.update, p.total_steps)


def _update(t: Training, feed: Feed, lr: float) -> tuple[float, bool, bool]:
    """One update from its micro-batches.

    Mean loss over them and the ranks, whether the update was made, whether any rank was asked to stop. Left out for an
    overflow it counts, but with a loss that is not finite the state stays that of the update before.
    """
    p, state = t.plan, t.state
    compiles = not t.chrono.compile_seconds
    if compiles:
        t.journal.say("compiling the graph (once; large models take minutes) ...")
    t.chrono.start()
    waited = t.loader.waited
    draws = drop_path_scale(t.recipe.run.seed, state.update, state.drop_rates, p.global_batch)
    losses, finite = [], True
    for micro in range(p.accumulation):
        mark("waiting for data", update=state.update + 1)
        arrays = feed.take()
        mark("compiling" if compiles else "computing")
        rows = share_rows(micro * p.world + t.runtime.rank, p.per_device, p.group)
        inputs = Micro(arrays["images"], arrays["targets"], draws[:, rows])
        if micro + 1 < p.accumulation:
            losses.append(t.step.add(inputs, state.loss_scale.scale))
        else:
            outcome = _apply(t, inputs, lr)
            losses.append(outcome.loss)
            finite = outcome.finite
    mine = np.array([np.mean(losses), t.stop.asked, t.loader.waited - waited, *feed.news()], np.float32)
    everyone = t.runtime.gather(mine)
    said, (cannot_go_on, skipped, new) = everyone.mean(0), everyone[:, 3:].sum(0)
    overflowed = not finite and state.loss_scale.dynamic and math.isfinite(said[0])
    if finite or overflowed:
        state.update += 1
        state.applied += finite
        state.loss_scale.after(finite)
    t.chrono.stop(p.global_batch, float(said[2]))
    state.skipped += int(skipped)
    for reason in feed.hear(cannot_go_on, new):
        t.journal.say(f"skipped: {reason}")
    if compiles:
        t.journal.say(f"compiled; the first update took {duration(t.chrono.compile_seconds)}")
    if overflowed:
        t.journal.say(f"update {state.update} left out: gradients overflowed; loss scale {state.loss_scale.scale:g}")
    return float(said[0]), finite, bool(said[1] > 0)


def _apply(t: Training, inputs: Micro, lr: float) -> Outcome:
    state = t.state
    scalars = state.optimizer.scalars(lr, state.applied + 1)
    keep = ema_keep(t.recipe.ema, state.applied) if state.ema else 0.0
    return t.step.apply(inputs, scalars, state.loss_scale.scale, keep)


def _validate(t: Training, epoch: int) -> Score:
    """Scores the weights, and their moving average where there is one."""

    score = _score(t)
    values = {"val_top1": score.top1, "val_top5": score.top5, "val_loss": score.loss, "val_images": score.images}
    best, average = score.top1, ""
    if t.state.ema:
        with t.state.averaged():
            ema = _score(t)
        values |= {"ema_top1": ema.top1, "ema_top5": ema.top5, "ema_loss": ema.loss}
        best, average = max(best, ema.top1), f"  average {ema.top1:.2f} %"
    if best > t.state.best_top1:
        t.state.best_top1, t.state.best_update = best, t.state.update
    t.journal.say(
        f"epoch {epoch + 1}/{t.recipe.schedule.epochs}  validation top-1 {score.top1:.2f} %{average}"
        f"  top-5 {score.top5:.2f} %  loss {score.loss:.4f}"
        f"  ({score.images:,} pictures; best {t.state.best_top1:.2f} %)"
    )
    t.journal.record(update=t.state.update, epoch=epoch + 1, **values)
    return score


def _score(t: Training) -> Score:
    with scoring(t.model) as logits:
        return evaluate(logits, t.loader, t.val_labels, t.recipe.evaluate.batch, t.runtime, t.journal.say)


def _progress(t: Training, epoch: int, step: int, loss: float, lr: float) -> str:
    left = (t.plan.total_steps - t.state.update) * t.plan.global_batch / t.chrono.rate if t.chrono.rate else 0
    return (
        f"epoch {epoch + 1}/{t.recipe.schedule.epochs}  step {step}/{t.plan.steps_per_epoch}  loss {loss:.4f}"
        f"  lr {lr:.2e}  {t.chrono.rate:.0f} images/s, {t.chrono.wait_share:.0%} waiting for data"
        f"  {duration(left)} left"
    )


def _diverged(t: Training, loss: float, finite: bool) -> str:
    """What makes it useless to go on after an update; empty for nothing."""
    scale = t.state.loss_scale
    if not math.isfinite(loss):
        return "the loss is not finite"
    if scale.exhausted:
        return f"the gradients overflow, even with the loss scaled by {scale.scale:g},"
    return "" if finite or scale.dynamic else "the gradients are not finite"
