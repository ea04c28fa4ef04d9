"""One update of the parameters, compiled: loss, gradients, their mean over micro-batches and ranks, clipping, the rule.

Batch norms follow every micro-batch as it comes; where their running statistics then differ between ranks, an update
sets them to the ranks' mean.

An update whose loss is not finite in any micro-batch on any rank is left out on all of them: parameters, moments and
average stay as they were. With a loss scale (half precision) the loss is multiplied by it and the mean gradient
divided; there, and with clipping, the gradient must be finite, too. A card may know alone that its half-precision
products overflowed, so it says so in the losses that the ranks add up.
"""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ..ops.overflow import all_finite
from ..presence import meeting
from ..runtime import all_reduce
from .groups import running_statistics
from .optimizer import GroupedOptimizer

_map = ops.HyperMap()
_add_to = ops.MultitypeFuncGraph("add_to")
_add = ops.MultitypeFuncGraph("add")
_scale = ops.MultitypeFuncGraph("scale")
_square_sum = ops.MultitypeFuncGraph("square_sum")
_set = ops.MultitypeFuncGraph("set")
_follow = ops.MultitypeFuncGraph("follow")


@_add_to.register("Tensor", "Tensor")
def _add_to_one(buffer, gradient):
    return ops.assign_add(buffer, gradient)


@_add.register("Tensor", "Tensor")
def _add_one(buffer, gradient):
    return buffer + gradient


@_scale.register("Tensor", "Tensor")
def _scale_one(factor, gradient):
    return gradient * factor


@_square_sum.register("Tensor")
def _square_sum_one(gradient):
    return ops.ReduceSum()(gradient * gradient)


@_set.register("Tensor", "Tensor")
def _set_one(parameter, value):
    return ops.assign(parameter, value)


@_follow.register("Tensor", "Tensor", "Tensor")
def _follow_one(keep, average, parameter):
    return ops.assign(average, average * keep + parameter * (1 - keep))


class Options(NamedTuple):
    """What an update does besides the rule.

    accumulation: micro-batches. world: ranks. clip_norm: largest global norm of the mean gradient, None for any.
    loss_scaled: the loss is multiplied by the scale given to the step.
    """

    accumulation: int = 1
    world: int = 1
    clip_norm: float | None = None
    loss_scaled: bool = False


class Micro(NamedTuple):
    """One micro-batch: images [B, 3, S, S], targets [B, classes], drop_scale [draws, B] (see blocks.DropPath)."""

    images: np.ndarray
    targets: np.ndarray
    drop_scale: np.ndarray


class Outcome(NamedTuple):
    """loss: mean of the last micro-batch. finite: whether the update was made."""

    loss: float
    finite: bool


class Loss(nn.Cell):
    """(loss times its scale, loss): mean cross-entropy of the logits with soft targets [B, classes], in float32."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model
        self.takes_drop_scale = bool(getattr(model, "drop_rates", ()))

    def construct(self, images, targets, drop_scale, loss_scale):
        if self.takes_drop_scale:
            logits = self.model(images, drop_scale)
        else:
            logits = self.model(images)
        log_prob = ops.log_softmax(logits.astype(ms.float32), -1)
        loss = -(targets * log_prob).sum() / targets.shape[0]
        return loss * loss_scale, loss


class Accumulate(nn.Cell):
    """Adds the gradients of one micro-batch to the buffers, the last of which takes its loss; returns that."""

    def __init__(self, loss: Loss, parameters: ParameterTuple, buffers: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.loss, self.buffers = loss, buffers
        self.gradient = ops.value_and_grad(loss, None, parameters, has_aux=True)

    def construct(self, images, targets, drop_scale, loss_scale):
        (_, loss), gradients = self.gradient(images, targets, drop_scale, loss_scale)
        return ops.depend(loss, _map(_add_to, self.buffers, (*gradients, loss)))


class Update(nn.Cell):
    """The last micro-batch of an update, and the update. Clipping sees the mean over micro-batches and ranks."""

    def __init__(
        self, loss: Loss, optimizer: GroupedOptimizer, buffers: ParameterTuple, ema: ParameterTuple, options: Options
    ):
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer, self.buffers, self.ema = loss, optimizer, buffers, ema
        self.statistics = running_statistics(loss.model)
        self.evens_out = options.world > 1 and len(self.statistics) > 0
        self.gradient = ops.value_and_grad(loss, None, optimizer.parameters, has_aux=True)
        self.accumulates, self.shares = options.accumulation > 1, options.world > 1
        self.clips, self.loss_scaled, self.averages = options.clip_norm is not None, options.loss_scaled, len(ema) > 0
        self.mean = Tensor(np.float32(1 / options.accumulation))
        self.clip_norm = Tensor(np.float32(options.clip_norm or 0))
        self.all_finite, self.infinite = all_finite(), Tensor(np.float32(np.inf))
        if self.shares:
            self.average = nn.DistributedGradReducer(optimizer.parameters, mean=True, degree=options.world)
            self.sum = all_reduce()
        if self.evens_out:
            self.average_statistics = nn.DistributedGradReducer(self.statistics, mean=True, degree=options.world)

    def construct(self, images, targets, drop_scale, loss_scale, scalars, ema_keep):
        (_, loss), gradients = self.gradient(images, targets, drop_scale, loss_scale)
        losses = loss
        if self.accumulates:
            losses = loss + self.buffers[-1]
            gradients = _map(_add, self.buffers[:-1], gradients)
        if self.loss_scaled:
            losses = ops.select(self.all_finite(gradients), losses, self.infinite)
        if self.accumulates or self.loss_scaled:
            gradients = _map(ops.partial(_scale, self.mean / loss_scale), gradients)
        if self.shares:
            gradients = self.average(gradients)
            # In one order on all ranks; collectives everywhere take one dimension at least.
            losses = self.sum(ops.depend(losses, gradients).reshape(1))[0]
        if self.evens_out:
            known = ops.depend(self.statistics, losses)
            gradients = ops.depend(gradients, _map(_set, self.statistics, self.average_statistics(known)))
        finite = ops.isfinite(losses)
        if self.clips:
            square = ops.addn(_map(_square_sum, gradients))
            finite = ops.logical_and(finite, ops.isfinite(square))
            factor = ops.minimum(self.clip_norm / (ops.sqrt(square) + 1e-6), ops.ones_like(square))
            gradients = _map(ops.partial(_scale, factor), gradients)
        if finite:
            loss = ops.depend(loss, self._apply(gradients, scalars, ema_keep))
        return loss, finite

    def _apply(self, gradients, scalars, ema_keep):
        done = self.optimizer(gradients, scalars)
        if self.averages:
            followed = ops.depend(self.optimizer.parameters + self.statistics, done)
            done = _map(ops.partial(_follow, ema_keep), self.ema, followed)
        return done


class TrainStep:
    """Runs updates on host arrays; micro-batches before the last one of an update are only accumulated."""

    def __init__(self, model: nn.Cell, optimizer: GroupedOptimizer, options: Options, ema: ParameterTuple):
        loss = Loss(model)
        self.optimizer = optimizer
        self.buffers = ParameterTuple(_buffers(optimizer) if options.accumulation > 1 else [])
        self.accumulate = Accumulate(loss, optimizer.parameters, self.buffers)
        self.update = Update(loss, optimizer, self.buffers, ema, options)
        self.accumulate.set_train()
        self.update.set_train()

    def add(self, micro: Micro, loss_scale: float = 1.0) -> float:
        """Accumulates one micro-batch; returns its loss."""
        return float(self.accumulate(*_tensors(*micro, loss_scale)).asnumpy())

    def apply(self, micro: Micro, scalars: np.ndarray, loss_scale: float = 1.0, ema_keep: float = 0.0) -> Outcome:
        """The last micro-batch, and the update with the optimizer's `scalars`.

        ema_keep: share of the moving average that stays.
        """
        tensors = _tensors(*micro, loss_scale, scalars, ema_keep)
        with meeting():
            loss, finite = self.update(*tensors)
            outcome = Outcome(float(loss.asnumpy()), bool(finite.asnumpy()))
        for buffer in self.buffers:
            buffer.set_data(ops.zeros_like(buffer))
        return outcome


def _tensors(*values: np.ndarray | float) -> list[Tensor]:
    return [Tensor(np.asarray(v, np.float32)) for v in values]


def _buffers(optimizer: GroupedOptimizer) -> list[Parameter]:
    """For each gradient, and for the loss."""
    shapes = {f"gradient.{p.name}": p.shape for p in optimizer.parameters}
    return [
        Parameter(Tensor(np.zeros(shape, np.float32)), name=name, requires_grad=False)
        for name, shape in {**shapes, "losses": ()}.items()
    ]
