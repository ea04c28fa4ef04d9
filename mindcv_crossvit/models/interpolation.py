"""Resizing along one axis as a matrix M [size, new_size], resized = x @ M. Without MindSpore.

cubic    PyTorch's: a = -0.75, half-pixel centres, no antialias
linear   MindCV's: corners on corners (align_corners=True)
middles  PyTorch's bilinear: half-pixel centres, no antialias
"""

from __future__ import annotations

import math

import numpy as np

_A = -0.75


def cubic_matrix(size: int, new_size: int) -> np.ndarray:
    """Bicubic; border pixels are repeated."""
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


def linear_matrix(size: int, new_size: int) -> np.ndarray:
    """Bilinear with corners on corners.

    Positions are float32, as in MindSpore's kernel; exact ones move an interpolated unit noise by 1e-4.
    """
    matrix = np.zeros((size, new_size), np.float32)
    step = np.float32((size - 1) / max(new_size - 1, 1))
    for column in range(new_size):
        position = np.float32(column) * step
        left = int(position)
        share = position - np.float32(left)
        matrix[left, column] += 1 - share
        matrix[min(left + 1, size - 1), column] += share
    return matrix


def middles_matrix(size: int, new_size: int) -> np.ndarray:
    """Bilinear between the middles of pixels; border pixels are repeated."""
    matrix = np.zeros((size, new_size))
    for column in range(new_size):
        centre = max((column + 0.5) * size / new_size - 0.5, 0.0)
        left = min(int(centre), size - 1)
        matrix[left, column] += 1 - (centre - left)
        matrix[min(left + 1, size - 1), column] += centre - left
    return matrix.astype(np.float32)


MATRICES = {"bicubic": cubic_matrix, "bilinear": linear_matrix, "bilinear_middles": middles_matrix}
