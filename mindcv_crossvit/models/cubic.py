"""Bicubic interpolation as PyTorch's (a = -0.75, half-pixel centres, no antialias), as a matrix. Without MindSpore."""

from __future__ import annotations

import math

import numpy as np

_A = -0.75


def cubic_matrix(size: int, new_size: int) -> np.ndarray:
    """The matrix M [size, new_size] with resized = x @ M along one axis; border pixels are repeated."""
    matrix = np.zeros((size, new_size))
    for column in range(new_size):
        centre = (column + 0.5) * size / new_size - 0.5
        left = math.floor(centre)
        for tap in range(left - 1, left + 3):
            matrix[min(max(tap, 0), size - 1), column] += _kernel(abs(centre - tap))
    return matrix.astype(np.float32)


def _kernel(distance: float) -> float:
    d = distance
    if d <= 1:
        return ((_A + 2) * d - (_A + 3)) * d * d + 1
    return ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A if d < 2 else 0.0
