"""Checkpoints of a run as it goes: all ranks know whether one is there, and nothing broken is saved."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..journal import Journal, NotSaved
from ..presence import mark
from ..recipe import Recipe
from ..runtime import Runtime
from .checkpoint_folder import CheckpointFolder
from .state import State


class NonFiniteLoss(Exception):
    """The loss, the gradients or the parameters became infinite or not a number; no checkpoint has such parameters."""


@dataclass
class Saver:
    """Writes a run's checkpoints.

    folder: None on ranks other than 0. about: what they say of themselves besides the state's counters. update,
    best: the newest checkpoint's update, None before the first, and the best score saved with its update.
    """

    recipe: Recipe
    runtime: Runtime
    journal: Journal
    folder: CheckpointFolder | None
    about: dict[str, Any]
    update: int | None
    best: tuple[float, int]

    def save(self, state: State, must: bool) -> None:
        """Writes a checkpoint on rank 0 and lets all ranks know whether it is there.

        must: the run ends after it. Raises NotSaved on all ranks when it could not be written and that or the recipe
        does not allow to go on, and NonFiniteLoss instead of saving parameters that are not finite.
        """
        mark("saving")
        self.runtime.check_same(state.parameters(), f"checkpoint at update {state.update}")
        tensors = state.tensors()
        if broken := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
            raise NonFiniteLoss(f"{broken[0]} is not finite after update {state.update}; {self.outlook}")
        problem = self._write(tensors, state) if self.folder else None
        if not self.runtime.gather(np.array([problem is not None], np.int32)).any():
            self.update, self.best = state.update, (state.best_top1, state.best_update)
            return
        state.best_top1, state.best_update = self.best  # a score counts with its weights
        message = f"NOT SAVED after update {state.update:,}: {problem or 'rank 0 says why'}"
        if must or self.recipe.checkpoint.on_failure == "stop":
            raise NotSaved(f"{message}; the checkpoint before it is whole: make room, then --resume auto")
        self.journal.say(f"{message}; the run goes on (checkpoint.on_failure) and tries again at the next checkpoint")

    @property
    def outlook(self) -> str:
        """After a failure: which state before it is on disk, and what to try."""
        kept = f"the state before it is on disk: the checkpoint after update {self.update}"
        if self.update is None:
            kept = "no checkpoint was due before it (checkpoint.every_updates)"
        precision = self.recipe.run.precision
        half = f"less float16 than run.precision={precision}, " if precision != "O0" else ""
        return (
            f"{kept}. Try a lower optimizer.lr, a longer schedule.warmup_epochs, {half}optimizer.clip_norm=1"
            " or another run.seed"
        )

    def _write(self, tensors: dict[str, np.ndarray], state: State) -> OSError | None:
        assert self.folder
        try:
            self.journal.settle()
            self.folder.save(tensors, {**self.about, **state.meta(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        except OSError as error:
            return error
        return None
