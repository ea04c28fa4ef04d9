"""Initial weights, a function of the seed and each parameter's name: every rank and every restart draws the same."""

from __future__ import annotations

import math
import zlib

import numpy as np
from mindspore import Tensor, nn


def init_weights(model: nn.Cell, seed: int) -> None:
    """Fills all parameters as the official code does.

    | parameter                         | distribution                                                   |
    |-----------------------------------|----------------------------------------------------------------|
    | linear weights, tokens, positions | normal, std 0.02 (timm's truncation at +-2 is 100 deviations)  |
    | linear biases, norm biases        | 0                                                              |
    | norm weights                      | 1                                                              |
    | random features of a performer    | orthogonal rows of length sqrt(rows)                           |
    | convolution weights and biases    | uniform +-1/sqrt(fan in), PyTorch's default, which they keep   |

    A linear patch embedding is a convolution.
    """
    for _, cell in model.cells_and_names():
        kind = type(cell).__name__
        for parameter in cell.get_parameters(expand=False):
            rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(parameter.name.encode())]))
            parameter.set_data(Tensor(_draw(rng, kind, parameter, cell).astype(np.float32)))


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
    return np.full(shape, float(kind == "LayerNorm" and parameter is cell.weight))
