"""What changes while a run goes on, and what a checkpoint must therefore hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn

from ..errors import UserError
from .checkpoint import Checkpoint
from .optimizer import AdamW


@dataclass
class State:
    """Parameters, moments and counters. update: updates done so far. skipped: unreadable training pictures met."""

    model: nn.Cell
    optimizer: AdamW | None
    update: int = 0
    best_top1: float = -1.0
    is_best: bool = False
    skipped: int = 0

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Rate of each stochastic-depth draw of the model."""
        return getattr(self.model, "drop_rates", ())

    def named(self) -> dict[str, Parameter]:
        """Every parameter of a checkpoint by the name it has there."""
        found = {f"model.{p.name}": p for p in self.model.get_parameters()}
        if self.optimizer is not None:
            found |= {f"optimizer.{p.name}": p for p in (*self.optimizer.moment1, *self.optimizer.moment2)}
        return found

    def parameters(self) -> list[Parameter]:
        """The same, as a list."""
        return list(self.named().values())

    def tensors(self) -> dict[str, np.ndarray]:
        """Their values."""
        return {name: p.asnumpy() for name, p in self.named().items()}

    def meta(self) -> dict[str, Any]:
        """The counters."""
        return {"update": self.update, "best_top1": self.best_top1, "skipped": self.skipped}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of the same model. Raises UserError when it is another's."""
        load_parameters(self.named(), checkpoint.tensors, checkpoint)
        meta = checkpoint.meta
        self.update, self.best_top1, self.skipped = meta["update"], meta["best_top1"], meta["skipped"]


def load_model(model: nn.Cell, checkpoint: Checkpoint) -> None:
    """The weights of a checkpoint into a model, all of them or none. Raises UserError with what does not fit."""
    named = {p.name: p for p in model.get_parameters()}
    load_parameters(named, checkpoint.part("model"), checkpoint)


def load_parameters(named: dict[str, Parameter], tensors: dict[str, np.ndarray], checkpoint: Checkpoint) -> None:
    """Sets every parameter from the tensor of its name; raises UserError before anything is changed."""
    missing = [n for n in named if n not in tensors]
    left_over = [n for n in tensors if n not in named]
    shapes = [n for n in named if n in tensors and tuple(named[n].shape) != tensors[n].shape]
    problems = [
        *(f"missing are {len(missing)} tensors, first {missing[0]}" for _ in missing[:1]),
        *(f"left over are {len(left_over)}, first {left_over[0]}" for _ in left_over[:1]),
        *(f"{n} has shape {tensors[n].shape}, the model's is {tuple(named[n].shape)}" for n in shapes[:3]),
    ]
    if problems:
        made_for = checkpoint.meta.get("model", {}).get("name", "an unknown model")
        raise UserError(
            f"{checkpoint.path}: a checkpoint of {made_for} with {len(checkpoint.meta.get('class_names', ()))} classes"
            f" does not fit this model: {'; '.join(problems)}"
        )
    for name, parameter in named.items():
        parameter.set_data(Tensor(tensors[name].astype(tensors[name].dtype)))
