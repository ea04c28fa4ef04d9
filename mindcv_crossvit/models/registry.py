"""From a name to a model."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import fields
from typing import Any

from mindspore import amp, nn

from ..ops import choose
from ..runtime import seed_everything
from . import catalog


def create_model(
    name: str,
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    *,
    ops: str = "auto",
    precision: str = "O0",
    seed: int = 0,
    ranks: int = 1,
    **overrides: Any,
) -> nn.Cell:
    """Builds a model with fresh weights drawn from `seed`.

    name: one of list_models(), the official or timm's spelling, or `mindcv/NAME` for a model of MindCV's zoo.
    drop_path_rate: stochastic depth, 0 to 1 (exclusive).
    ops: `auto` (by device), `standard`, `composed` or `native`, see mindcv_crossvit.ops.
    precision: what is float16, O0 (nothing) to O3; parameters, norms, softmax and logits stay float32.
    ranks: over how many ranks its batch norms take their statistics while training, 1 or all of them.
    overrides: arguments of the family's official constructor, see CrossViTConfig for CrossViT's. For a MindCV model
        they are passed on to it.
    Raises ValueError for an unknown name or argument, with the nearest known one, and for impossible sizes.
    """
    name = catalog.resolve(name)
    if name.startswith(catalog.MINDCV_PREFIX):
        seed_everything(seed)
        model = _create_mindcv(name[len(catalog.MINDCV_PREFIX) :], num_classes, drop_path_rate, overrides)
        return model if precision == "O0" else amp.auto_mixed_precision(model, precision)
    if not (isinstance(num_classes, int) and num_classes >= 1):
        raise ValueError(f"num_classes must be a whole number from 1, not {num_classes!r}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must lie in [0, 1), not {drop_path_rate!r}")
    family = catalog.family_of(name)
    known = [f.name for f in fields(family.config)]
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1) or [", ".join(known)]
            raise ValueError(f"{name} has no argument {key!r}; did you mean {near[0]}?")
    config = family.variants[name].with_overrides(overrides)
    cells = importlib.import_module(f".{family.name}", __package__)
    return cells.create(config, choose(ops, precision=precision, ranks=ranks), num_classes, drop_path_rate, seed)


def _create_mindcv(name: str, num_classes: int, drop_path_rate: float, overrides: dict[str, Any]) -> nn.Cell:
    """A model of MindCV's zoo; MindCV is imported only here and in mindcv_bridge."""
    import mindcv

    if not mindcv.is_model(name):
        near = difflib.get_close_matches(name, mindcv.list_models(), 1, 0.5)
        hint = f"; did you mean mindcv/{near[0]}?" if near else ""
        raise ValueError(f"MindCV {mindcv.__version__} has no model {name!r}{hint}")
    if drop_path_rate:
        overrides = {"drop_path_rate": drop_path_rate, **overrides}
    try:
        return mindcv.create_model(name, num_classes=num_classes, **overrides)
    except TypeError as error:
        raise ValueError(f"mindcv/{name}: {error}") from error
