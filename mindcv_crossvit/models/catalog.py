"""The names of models, understood in three spellings, without importing MindSpore."""

from __future__ import annotations

import difflib
import re

from .crossvit_config import VARIANTS

MINDCV_PREFIX = "mindcv/"


def list_models() -> list[str]:
    """The suite's own names; the official (`crossvit_15_224`) and timm's (`crossvit_15_240`) are understood too."""
    return list(VARIANTS)


def resolve(name: str) -> str:
    """The suite's name for a model in any spelling; `mindcv/NAME` passes unchanged.

    Raises ValueError for an unknown name, with the nearest known one.
    """
    if name.startswith(MINDCV_PREFIX) and len(name) > len(MINDCV_PREFIX):
        return name
    plain = re.sub(r"_408$", "_384", re.sub(r"_(224|240)$", "", name.strip().lower()))
    if plain in VARIANTS:
        return plain
    near = difflib.get_close_matches(plain, VARIANTS, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(VARIANTS)}, and mindcv/NAME for MindCV's"
    raise ValueError(f"unknown model {name!r}; {hint}")
