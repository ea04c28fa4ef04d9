"""One update of the parameters: loss, gradients, their mean over micro-batches and ranks, AdamW. One compiled graph."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from .optimizer import AdamW

_map = ops.HyperMap()
_add_to = ops.MultitypeFuncGraph("add_to")
_mean_with = ops.MultitypeFuncGraph("mean_with")


@_add_to.register("Tensor", "Tensor")
def _add_to_one(buffer, gradient):
    return ops.assign_add(buffer, gradient)


@_mean_with.register("Tensor", "Tensor", "Tensor")
def _mean_with_one(factor, buffer, gradient):
    return (buffer + gradient) * factor


class Loss(nn.Cell):
    """Mean cross-entropy of the logits with soft targets [B, classes], in float32."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model
        self.takes_drop_scale = bool(getattr(model, "drop_rates", ()))

    def construct(self, images, targets, drop_scale):
        if self.takes_drop_scale:
            logits = self.model(images, drop_scale)
        else:
            logits = self.model(images)
        log_prob = ops.log_softmax(logits.astype(ms.float32), -1)
        return -(targets * log_prob).sum() / targets.shape[0]


class Accumulate(nn.Cell):
    """Adds the gradients of one micro-batch to the buffers; returns its loss."""

    def __init__(self, loss: Loss, parameters: ParameterTuple, buffers: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.loss, self.buffers = loss, buffers
        self.gradient = ops.value_and_grad(loss, None, parameters)

    def construct(self, images, targets, drop_scale):
        loss, gradients = self.gradient(images, targets, drop_scale)
        return ops.depend(loss, _map(_add_to, self.buffers, gradients))


class Update(nn.Cell):
    """The last micro-batch of an update: mean gradient over micro-batches and ranks, then the optimizer."""

    def __init__(self, loss: Loss, optimizer: AdamW, buffers: ParameterTuple, accumulation: int, world: int):
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer, self.buffers = loss, optimizer, buffers
        self.gradient = ops.value_and_grad(loss, None, optimizer.parameters)
        self.accumulates, self.shares = accumulation > 1, world > 1
        self.factor = Tensor(np.float32(1 / accumulation))
        if self.shares:
            self.average = nn.DistributedGradReducer(optimizer.parameters, mean=True, degree=world)

    def construct(self, images, targets, drop_scale, scalars):
        loss, gradients = self.gradient(images, targets, drop_scale)
        if self.accumulates:
            gradients = _map(ops.partial(_mean_with, self.factor), self.buffers, gradients)
        if self.shares:
            gradients = self.average(gradients)
        return ops.depend(loss, self.optimizer(gradients, scalars))


class TrainStep:
    """Runs updates on host arrays.

    Micro-batches before the last one of an update are only accumulated. The result of an update is its mean loss on
    this rank, as a number.
    """

    def __init__(self, model: nn.Cell, optimizer: AdamW, accumulation: int, world: int):
        loss = Loss(model)
        self.optimizer = optimizer
        self.buffers = ParameterTuple(_buffers(optimizer) if accumulation > 1 else [])
        self.accumulate = Accumulate(loss, optimizer.parameters, self.buffers) if accumulation > 1 else None
        self.update = Update(loss, optimizer, self.buffers, accumulation, world)
        self.update.set_train()
        if self.accumulate:
            self.accumulate.set_train()

    def add(self, images: np.ndarray, targets: np.ndarray, drop_scale: np.ndarray) -> float:
        """Accumulates one micro-batch; returns its loss."""
        assert self.accumulate is not None
        return float(self.accumulate(Tensor(images), Tensor(targets), Tensor(drop_scale)).asnumpy())

    def apply(self, images: np.ndarray, targets: np.ndarray, drop_scale: np.ndarray, lr: float, update: int) -> float:
        """The last micro-batch of update number `update` (from 1), and the update itself; returns its loss."""
        scalars = Tensor(self.optimizer.scalars(lr, update))
        loss = float(self.update(Tensor(images), Tensor(targets), Tensor(drop_scale), scalars).asnumpy())
        for buffer in self.buffers:
            buffer.set_data(ops.zeros_like(buffer))
        return loss


def _buffers(optimizer: AdamW) -> list[Parameter]:
    return [
        Parameter(Tensor(np.zeros(p.shape, np.float32)), name=f"gradient.{p.name}", requires_grad=False)
        for p in optimizer.parameters
    ]
