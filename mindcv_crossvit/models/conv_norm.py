"""Convolutions followed by a batch norm.

B batch, C channels, O out channels. Maps are in the layout of the chosen ops.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from ..ops import Ops
from .blocks import Conv2d, empty

EPS, MOMENTUM = 1e-5, 0.1
"""PyTorch's: the momentum is the share of the new batch."""


class BatchNorm(nn.Cell):
    """Map -> map, normalised with the batch's statistics; for training, where the running statistics follow.

    running <- (1 - MOMENTUM) * running + MOMENTUM * batch, with the unbiased variance, once per batch, as in PyTorch.
    They are state without a gradient: in checkpoints, in no optimizer.
    """

    def __init__(self, channels: int, op: Ops):
        super().__init__()
        self.weight = empty((channels,), "weight")
        self.bias = empty((channels,), "bias")
        self.running_mean = _state(0.0, channels, "running_mean")
        self.running_var = _state(1.0, channels, "running_var")
        self.channels, self.ranks = channels, op.ranks
        self.op = op.batch_norm(EPS, op.ranks)

    def construct(self, x):
        y, mean_c, variance_c = self.op(x.astype(ms.float32), self.weight, self.bias)
        count = x.size // self.channels * self.ranks
        unbiased_c = variance_c * (count / max(count - 1, 1))
        mean_set = ops.assign(self.running_mean, _follow(self.running_mean, mean_c))
        variance_set = ops.assign(self.running_var, _follow(self.running_var, unbiased_c))
        return ops.depend(y, (mean_set, variance_set))

    def folded(self, weight_oikk):
        """(weights, bias) of a convolution without bias that has this norm, with its running statistics, in it."""
        factor_o = self.weight / ops.sqrt(self.running_var + EPS)
        return weight_oikk * factor_o.reshape(-1, 1, 1, 1), self.bias - self.running_mean * factor_o


class ConvNorm(nn.Cell):
    """Convolution without bias, then batch norm. stream: whether it makes the residual stream, float16 with O3."""

    def __init__(self, conv: Conv2d, op: Ops, stream: bool = False):
        super().__init__()
        self.c = conv
        self.bn = BatchNorm(conv.weight.shape[0], op)
        self.kind = ms.float16 if stream and op.half_stream else ms.float32

    def construct(self, x):
        if self.training:
            return self.bn(self.c(x)).astype(self.kind)
        weight_oikk, bias_o = self.bn.folded(self.c.weight)
        return self.c.with_weights(x, weight_oikk, bias_o).astype(self.kind)


def _follow(running_c, batch_c):
    return running_c * (1 - MOMENTUM) + ops.stop_gradient(batch_c) * MOMENTUM


def _state(value: float, channels: int, name: str) -> Parameter:
    return Parameter(Tensor([value] * channels, ms.float32), name=name, requires_grad=False)
