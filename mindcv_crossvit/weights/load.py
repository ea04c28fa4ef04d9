"""Weights from a file into a model. The only file of this room that touches MindSpore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .fit import Report, fit
from .names import MINDCV, family, numerics_of, to_official
from .read import read_weights

if TYPE_CHECKING:
    from mindspore import nn


def load_weights(
    model: nn.Cell, path: Path | str, *, part: str = "model", new_head: bool = False, partial: bool = False
) -> Report:
    """Loads a weights file of PyTorch, timm, MindCV or this suite into a model and says what became of each tensor.

    part, new_head, partial: see read_weights and fit. A dense backbone leaves the classifier's own layers alone.
    Raises UserError, before anything is changed, for a file that cannot be read or does not fit.
    """
    parameters = {p.name: p for p in model.get_parameters()}
    official = to_official(parameters)
    kind = family(parameters)
    numerics = numerics_of(kind)
    if numerics and kind != MINDCV:
        numerics = getattr(getattr(model, "config", None), "numerics", numerics)
    shapes = {official[n]: tuple(p.shape) for n, p in parameters.items()}
    without = getattr(model, "without", ())
    fitted = fit(read_weights(path, part), shapes, numerics, new_head=new_head, partial=partial, without=without)
    set_parameters({official[n]: p for n, p in parameters.items()}, fitted.tensors)
    return fitted.report


def set_parameters(parameters: dict, tensors: dict[str, np.ndarray]) -> None:
    """Gives the parameters of these names their values, in each parameter's own precision."""
    from mindspore import Tensor

    for name, tensor in tensors.items():
        parameters[name].set_data(Tensor(np.array(tensor), dtype=parameters[name].dtype))
