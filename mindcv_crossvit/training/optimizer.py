"""AdamW and SGD with momentum, as PyTorch's, on groups of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from .groups import Group

_map = ops.HyperMap()
_adamw = ops.MultitypeFuncGraph("adamw")
_sgd = ops.MultitypeFuncGraph("sgd")
_add_decay = ops.MultitypeFuncGraph("add_decay")


@_adamw.register("Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _adamw_one(fused, lr, beta1, beta2, eps, decay, parameter, moment1, moment2, gradient):
    return fused(parameter, moment1, moment2, lr, beta1, beta2, eps, decay, gradient)


@_sgd.register("Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _sgd_one(fused, lr, momentum, parameter, velocity, gradient):
    return fused(parameter, velocity, lr, gradient, momentum)


@_add_decay.register("Tensor", "Tensor", "Tensor")
def _add_decay_one(decay, parameter, gradient):
    return gradient + decay * parameter


class GroupedOptimizer(nn.Cell):
    """What both rules share: parameters in the order of their groups, and moments named after them."""

    def __init__(self, groups: Sequence[Group]):
        super().__init__(auto_prefix=False)
        self.groups = tuple((g.decayed, Tensor(np.float32(g.lr_scale)), len(g.parameters)) for g in groups)
        self.parameters = ParameterTuple([p for g in groups for p in g.parameters])

    def state(self) -> list[Parameter]:
        """The moments, for checkpoints."""
        raise NotImplementedError

    def scalars(self, lr: float, update: int) -> np.ndarray:
        """What `construct` needs for the update-th applied update (from 1), [3] float32."""
        raise NotImplementedError


class AdamW(GroupedOptimizer):
    """p <- p - lr * (m_hat / (sqrt(v_hat) + eps) + weight_decay * p), the last term for decayed parameters only.

    MindSpore's fused kernel has no bias correction; it is exact with lr, eps and decay adjusted for the step on the
    host, see `scalars`. Source: Loshchilov and Hutter (arXiv 1711.05101), in PyTorch's order.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
    ):
        super().__init__(groups)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.moment1 = ParameterTuple([_zeros_like(p, "m.") for p in self.parameters])
        self.moment2 = ParameterTuple([_zeros_like(p, "v.") for p in self.parameters])
        self.beta1, self.beta2 = Tensor(np.float32(betas[0])), Tensor(np.float32(betas[1]))
        self.no_decay = Tensor(np.float32(0))
        self.fused = ops.AdamWeightDecay()

    def state(self) -> list[Parameter]:
        """Both moments."""
        return [*self.moment1, *self.moment2]

    def scalars(self, lr: float, update: int) -> np.ndarray:
        """lr', eps' and decay' of the update-th update.

        lr * m_hat / (sqrt(v_hat) + eps) = lr' * m / (sqrt(v) + eps') with c1 = 1 - beta1^t, c2 = 1 - beta2^t,
        lr' = lr * sqrt(c2) / c1 and eps' = eps * sqrt(c2); the decay is divided by what lr was multiplied with.
        """
        c1, c2 = 1 - self.betas[0] ** update, 1 - self.betas[1] ** update
        factor = math.sqrt(c2) / c1
        return np.array([lr * factor, self.eps * math.sqrt(c2), self.weight_decay / factor], np.float32)

    def construct(self, gradients, scalars):
        """gradients: in the order of `self.parameters`."""
        lr, eps, decay = scalars[0], scalars[1], scalars[2]
        done, start = (), 0
        for decays, lr_scale, count in self.groups:
            part = slice(start, start + count)
            rate = decay if decays else self.no_decay
            one = ops.partial(_adamw, self.fused, lr * lr_scale, self.beta1, self.beta2, eps, rate)
            moments = self.moment1[part], self.moment2[part]
            done = done + (_map(one, self.parameters[part], *moments, gradients[part]),)  # noqa: RUF005
            start = start + count
        return done


class SGD(GroupedOptimizer):
    """v <- momentum * v + g + weight_decay * p; p <- p - lr * v, in PyTorch's order, without Nesterov."""

    def __init__(self, groups: Sequence[Group], momentum: float = 0.9, weight_decay: float = 1e-4):
        super().__init__(groups)
        self.velocity = ParameterTuple([_zeros_like(p, "v.") for p in self.parameters])
        self.momentum, self.decay = Tensor(np.float32(momentum)), Tensor(np.float32(weight_decay))
        self.fused = ops.ApplyMomentum()

    def state(self) -> list[Parameter]:
        """The velocities."""
        return list(self.velocity)

    def scalars(self, lr: float, update: int) -> np.ndarray:
        """Only lr is used."""
        return np.array([lr, 0, 0], np.float32)

    def construct(self, gradients, scalars):
        """gradients: in the order of `self.parameters`."""
        lr = scalars[0]
        done, start = (), 0
        for decays, lr_scale, count in self.groups:
            part = slice(start, start + count)
            parameters, gradient = self.parameters[part], gradients[part]
            if decays:
                gradient = _map(ops.partial(_add_decay, self.decay), parameters, gradient)
            one = ops.partial(_sgd, self.fused, lr * lr_scale, self.momentum)
            done = done + (_map(one, parameters, self.velocity[part], gradient),)  # noqa: RUF005
            start = start + count
        return done


def _zeros_like(parameter: Parameter, prefix: str) -> Parameter:
    return Parameter(Tensor(np.zeros(parameter.shape, np.float32)), name=prefix + parameter.name, requires_grad=False)
