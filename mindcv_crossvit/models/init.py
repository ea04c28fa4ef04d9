"""Initial weights, a function of the seed and each parameter's name: every rank and every restart draws the same."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
from mindspore import Tensor, nn


def init_weights(
    model: nn.Cell, seed: int, *, conv_std: float | None = None, constants: Mapping[str, float] | None = None
) -> None:
    """Fills all parameters as the official codes do.

    | parameter                         | distribution                                                   |
    |-----------------------------------|----------------------------------------------------------------|
    | linear weights, tokens, positions | normal, std 0.02 (timm's truncation at +-2 is 100 deviations)  |
    | linear biases, norm biases        | 0                                                              |
    | norm weights, running variances   | 1                                                              |
    | random features of a performer    | orthogonal rows of length sqrt(rows)                           |
    | convolution weights and biases    | uniform +-1/sqrt(fan in), PyTorch's default, which they keep   |

    A linear patch embedding is a convolution. conv_std: where it is given, convolutions are drawn like linear layers
    with this deviation, and their biases are 0. constants: values of other parameters, by the last part of their names.
    """
    for _, cell in model.cells_and_names():
        kind = type(cell).__name__
        for parameter in cell.get_parameters(expand=False):
            constant = (constants or {}).get(parameter.name.rpartition(".")[2])
            rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(parameter.name.encode())]))
            if constant is not None:
                values = np.full(parameter.shape, constant)
            elif kind in ("Conv2d", "DepthwiseConv2d") and conv_std:
                values = rng.normal(0.0, conv_std, parameter.shape) * (parameter is cell.weight)
            else:
                values = _draw(rng, kind, parameter, cell)
            parameter.set_data(Tensor(values.astype(np.float32)))


def _draw(rng: np.random.Generator, kind: str, parameter, cell) -> np.ndarray:
    shape = parameter.shape
    if kind in ("Conv2d", "DepthwiseConv2d"):
        bound = 1 / math.sqrt(math.prod(cell.weight.shape[1:]))
        return rng.uniform(-bound, bound, shape)
    if kind == "PerformerLayer":
        rows = np.linalg.qr(rng.normal(0.0, 1.0, shape[::-1]))[0].T
        return rows * math.sqrt(shape[0])
    if len(shape) > 1:
        return rng.normal(0.0, 0.02, shape)
    is_norm, last = kind in ("LayerNorm", "BatchNorm"), parameter.name.rpartition(".")[2]
    return np.full(shape, float(is_norm and last in ("weight", "running_var")))
