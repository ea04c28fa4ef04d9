"""Whether gradients overflowed, by what a device has for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspore import amp, ops

_map = ops.HyperMap()
_squares = ops.MultitypeFuncGraph("squares")


@_squares.register("Tensor")
def _squares_of_one(gradient):
    return ops.L2Loss()(gradient)


def _squares_finite(gradients):
    return ops.isfinite(ops.addn(_map(_squares, gradients)))


def all_finite(device: str | None = None) -> Callable[[Any], Any]:
    """A function for compiled code: tuple of float32 tensors -> bool tensor [], false after an infinity or a nan.

    On a card it is MindSpore's: the first 910s saturate instead, and only a register, which it reads and clears, knows
    that a product overflowed there; not run on Ascend. On a CPU that would be four kernels a tensor; a sum of squares
    is one, and false also where a second moment would overflow, above 1e19. device: "CPU" or "Ascend", None for the
    one MindSpore is set to.
    """
    if device is None:
        from ..runtime import device_target

        device = device_target()
    return _squares_finite if device == "CPU" else amp.all_finite
