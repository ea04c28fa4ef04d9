"""Weights and inputs by rule: any implementation in any framework can make them, so nothing has to be downloaded."""

from __future__ import annotations

import numpy as np


def u(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values in [-1, 1) from a tensor's name: 2 frac(sin(12.9898 i + ph) 43758.5453) - 1, i from 1, row-major.

    ph is the sum of the name's bytes modulo 97; float64.
    """
    i = np.arange(1, int(np.prod(shape)) + 1, dtype=np.float64)
    t = np.sin(12.9898 * i + sum(name.encode()) % 97) * 43758.5453
    return (2 * (t - np.floor(t)) - 1).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a parameter by its official name, float32."""
    values, last = u(name, shape), name.rpartition(".")[2]
    if last == "running_var":
        values = 1 + 0.5 * values
    elif last in ("gamma", "gamma_1", "gamma_2"):
        values = 0.5 + 0.1 * values
    elif last == "s_scale_factors" or (len(shape) == 1 and last == "weight"):
        values = 1 + 0.1 * values
    elif name.startswith(("pos_embed", "cls_token")):
        values = 0.2 * values
    elif last in ("attention_biases", "s_token_bias"):
        values = 0.5 * values
    elif len(shape) == 1:
        values = 0.05 * values
    else:
        values = values * np.sqrt(3 / np.prod(shape[1:]))
    return values.astype(np.float32)


def fill(model) -> None:
    """Gives every parameter of a model its value by rule."""
    from mindspore import Tensor

    for parameter in model.get_parameters():
        parameter.set_data(Tensor(weight(parameter.name, parameter.shape)))


def picture(shape: tuple[int, ...]) -> np.ndarray:
    """The input by rule, float32."""
    return (1.5 * u("input", shape)).astype(np.float32)
