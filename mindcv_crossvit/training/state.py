"""What changes while a run goes on, and what a checkpoint must therefore hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from ..errors import UserError
from ..recipe import Ema
from .checkpoint import Checkpoint
from .groups import running_statistics
from .loss_scale import LossScale
from .optimizer import GroupedOptimizer

COUNTERS = ("update", "applied", "best_top1", "best_update", "skipped")


@dataclass
class State:
    """Parameters, running statistics, moments, moving average and counters.

    update: updates done so far, those left out for an overflow included. applied: those that changed the parameters.
    best_top1: the best validation score so far, in percent, and best_update: when. skipped: times a rank met an
    unreadable training picture.
    """

    model: nn.Cell
    optimizer: GroupedOptimizer
    ema: ParameterTuple
    loss_scale: LossScale
    update: int = 0
    applied: int = 0
    best_top1: float = -1.0
    best_update: int = 0
    skipped: int = 0

    @property
    def is_best(self) -> bool:
        """Whether the best score so far is that of the parameters as they are now."""
        return self.best_update == self.update > 0

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Rate of each stochastic-depth draw of the model."""
        return getattr(self.model, "drop_rates", ())

    def named(self) -> dict[str, Parameter]:
        """Every parameter of a checkpoint by the name it has there."""
        found = {f"model.{p.name}": p for p in self.model.get_parameters()}
        found |= {f"optimizer.{p.name}": p for p in self.optimizer.state()}
        return found | {p.name: p for p in self.ema}

    def parameters(self) -> list[Parameter]:
        """The same, as a list."""
        return list(self.named().values())

    def tensors(self) -> dict[str, np.ndarray]:
        """Their values."""
        return {name: p.asnumpy() for name, p in self.named().items()}

    def meta(self) -> dict[str, Any]:
        """The counters."""
        return {**{n: getattr(self, n) for n in COUNTERS}, "loss_scale": asdict(self.loss_scale)}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of the same model. Raises UserError when it is another's."""
        load_parameters(self.named(), checkpoint.tensors, checkpoint)
        meta = dict(checkpoint.meta)
        for name in COUNTERS:
            setattr(self, name, meta[name])
        scale = LossScale(**meta["loss_scale"])
        if scale.dynamic == self.loss_scale.dynamic and not scale.exhausted:
            self.loss_scale = scale

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its moving average instead of its weights."""
        parameters = averaged_parameters(self.model, self.optimizer)
        raw = [p.asnumpy().copy() for p in parameters]
        for parameter, average in zip(parameters, self.ema, strict=True):
            parameter.set_data(Tensor(average.asnumpy()))
        try:
            yield
        finally:
            for parameter, value in zip(parameters, raw, strict=True):
                parameter.set_data(Tensor(value))


def averaged_parameters(model: nn.Cell, optimizer: GroupedOptimizer) -> ParameterTuple:
    """What a moving average follows: trained parameters and the running statistics of batch norms, as timm's does."""
    return ParameterTuple([*optimizer.parameters, *running_statistics(model)])


def new_average(model: nn.Cell, optimizer: GroupedOptimizer) -> ParameterTuple:
    """A moving average that begins with the parameters as they are now."""
    return ParameterTuple(
        [
            Parameter(Tensor(p.asnumpy().copy()), name=f"ema.{p.name}", requires_grad=False)
            for p in averaged_parameters(model, optimizer)
        ]
    )


def ema_keep(ema: Ema, applied: int) -> float:
    """Share of the average that stays in the next update, after `applied` ones: it begins small and grows to decay."""
    assert ema.decay is not None
    return min(ema.decay, (1 + applied) / (10 + applied)) if ema.warmup else ema.decay


def load_model(model: nn.Cell, checkpoint: Checkpoint, part: str = "model") -> None:
    """The weights of a checkpoint into a model, all of them or none. Raises UserError with what does not fit.

    part: `model` for the raw weights, `ema` for their moving average.
    """
    named = {p.name: p for p in model.get_parameters()}
    load_parameters(named, {**checkpoint.part("model"), **checkpoint.part(part)}, checkpoint)


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
        parameter.set_data(Tensor(tensors[name]))
