"""AdamW as PyTorch's, with the decay groups of the recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

_map = ops.HyperMap()
_update = ops.MultitypeFuncGraph("adamw_update")


@_update.register("Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _update_one(fused, lr, beta1, beta2, eps, decay, parameter, moment1, moment2, gradient):
    return fused(parameter, moment1, moment2, lr, beta1, beta2, eps, decay, gradient)


def decayed(parameters: Sequence[Parameter], rule: str) -> list[bool]:
    """Which parameters get weight decay.

    rule `official`: all but one-dimensional tensors and biases. IBM's skip list names `cls_token` and `pos_embed`, its
    tensors are `cls_token.0` ..., so in the published runs tokens and positions were decayed.
    rule `timm`: tokens and position embeddings are exempt too, as the official code meant it.
    """
    exempt = ("cls_token", "pos_embed") if rule == "timm" else ()
    return [p.ndim > 1 and not p.name.endswith(".bias") and not p.name.startswith(exempt) for p in parameters]


class AdamW(nn.Cell):
    """p <- p - lr * (m_hat / (sqrt(v_hat) + eps) + weight_decay * p), the last term for decayed parameters only.

    MindSpore's fused kernel has no bias correction; it is exact with lr, eps and decay adjusted for the step on the
    host, see `scalars`. Source: Loshchilov and Hutter (arXiv 1711.05101), in PyTorch's order.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        decays: Sequence[bool],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
    ):
        super().__init__(auto_prefix=False)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        order = sorted(range(len(parameters)), key=lambda i: not decays[i])
        self.decay_count = sum(decays)
        self.order = tuple(order)
        chosen = [parameters[i] for i in order]
        self.parameters = ParameterTuple(chosen)
        self.moment1 = ParameterTuple([_zeros_like(p, "m.") for p in chosen])
        self.moment2 = ParameterTuple([_zeros_like(p, "v.") for p in chosen])
        self.beta1, self.beta2 = Tensor(betas[0], dtype=chosen[0].dtype), Tensor(betas[1], dtype=chosen[0].dtype)
        self.zero = Tensor(0.0, dtype=chosen[0].dtype)
        self.fused = ops.AdamWeightDecay()

    def scalars(self, lr: float, update: int) -> np.ndarray:
        """What the kernel needs for the update-th update (from 1): lr, eps and decay, [3] float32.

        lr * m_hat / (sqrt(v_hat) + eps) = lr' * m / (sqrt(v) + eps') with c1 = 1 - beta1^t, c2 = 1 - beta2^t,
        lr' = lr * sqrt(c2) / c1 and eps' = eps * sqrt(c2); the decay is divided by what lr was multiplied with.
        """
        c1, c2 = 1 - self.betas[0] ** update, 1 - self.betas[1] ** update
        factor = math.sqrt(c2) / c1
        return np.array([lr * factor, self.eps * math.sqrt(c2), self.weight_decay / factor], np.float32)

    def construct(self, gradients, scalars):
        """gradients: in the order of `self.parameters`."""
        lr, eps, decay = scalars[0], scalars[1], scalars[2]
        n = self.decay_count
        one = ops.partial(_update, self.fused, lr, self.beta1, self.beta2, eps, decay)
        done = _map(one, self.parameters[:n], self.moment1[:n], self.moment2[:n], gradients[:n])
        two = ops.partial(_update, self.fused, lr, self.beta1, self.beta2, eps, self.zero)
        rest = _map(two, self.parameters[n:], self.moment1[n:], self.moment2[n:], gradients[n:])
        return done, rest


def _zeros_like(parameter: Parameter, prefix: str) -> Parameter:
    return Parameter(Tensor(np.zeros(parameter.shape, np.float32)), name=prefix + parameter.name, requires_grad=False)
