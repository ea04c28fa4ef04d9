"""The families and the names of their models, understood in several spellings, without importing MindSpore."""

from __future__ import annotations

import difflib
import re
from typing import Any

from . import cabvit_config as cabvit
from . import crossformer_config as crossformer
from . import crossformer_counts, crossvit_counts
from . import crossvit_config as crossvit
from . import deit_config as deit
from .family import Config, Family, Shapes
from .shapes import parameter_shapes as crossvit_shapes

MINDCV_PREFIX = "mindcv/"

FAMILIES = (
    Family(
        name="crossvit",
        config=crossvit.CrossViTConfig,
        variants=crossvit.VARIANTS,
        parameter_shapes=crossvit_shapes,
        macs=crossvit_counts.macs,
        saved_activations=crossvit_counts.saved_activations,
        alive_activations=crossvit_counts.alive_activations,
        sized=crossvit.sized,
        layers=lambda config: len(config.depth),
        size_of=crossvit.size_of,
        attends=lambda config: config.reads_across,
        branches=crossvit.BRANCHES,
    ),
    Family(
        name="crossformer",
        config=crossformer.CrossFormerConfig,
        variants=crossformer.VARIANTS,
        parameter_shapes=crossformer_counts.parameter_shapes,
        macs=crossformer_counts.macs,
        saved_activations=crossformer_counts.saved_activations,
        alive_activations=crossformer_counts.alive_activations,
        sized=crossformer.sized,
        layers=lambda config: len(config.depths),
    ),
    Family(
        name="deit",
        config=deit.DeiTConfig,
        variants=deit.VARIANTS,
        parameter_shapes=deit.parameter_shapes,
        macs=deit.macs,
        saved_activations=deit.saved_activations,
        alive_activations=deit.alive_activations,
        sized=deit.sized,
        layers=lambda config: config.depth,
        size_of=deit.size_of,
    ),
    Family(
        name="cabvit",
        config=cabvit.CabViTConfig,
        variants=cabvit.VARIANTS,
        parameter_shapes=cabvit.parameter_shapes,
        macs=cabvit.macs,
        saved_activations=cabvit.saved_activations,
        alive_activations=cabvit.alive_activations,
        sized=cabvit.sized,
        layers=lambda config: len(config.depths),
        size_of=cabvit.size_of,
    ),
)
VARIANTS: dict[str, Any] = {name: config for family in FAMILIES for name, config in family.variants.items()}


def list_models() -> list[str]:
    """The suite's own names; the official (`crossvit_15_224`, `deit_tiny_patch16_224`) and timm's (`crossvit_15_240`)
    are understood too."""
    return list(VARIANTS)


def resolve(name: str) -> str:
    """The suite's name for a model in any spelling; `mindcv/NAME` passes unchanged.

    Raises ValueError for an unknown name, with the nearest known one.
    """
    if name.startswith(MINDCV_PREFIX) and len(name) > len(MINDCV_PREFIX):
        return name
    plain = re.sub(r"_408$", "_384", re.sub(r"(_patch16)?_(224|240)$", "", name.strip().lower()))
    if plain in VARIANTS:
        return plain
    near = difflib.get_close_matches(plain, VARIANTS, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(VARIANTS)}, and mindcv/NAME for MindCV's"
    raise ValueError(f"unknown model {name!r}; {hint}")


def family_of(model: str | Config) -> Family:
    """The family of a model, by its name in any spelling or by its numbers. Raises ValueError for MindCV's."""
    if isinstance(model, str):
        model = VARIANTS.get(resolve(model)) or model
    for family in FAMILIES:
        if isinstance(model, family.config):
            return family
    raise ValueError(f"{model} is of no family of this suite")


def parameter_shapes(config: Config, num_classes: int = 1000) -> Shapes:
    """The shape of every tensor of a model's weights by its official name."""
    return family_of(config).parameter_shapes(config, num_classes)


def macs(config: Config, num_classes: int = 1000) -> int:
    """Multiply-accumulates of one picture: convolutions, linear layers and the attention products."""
    return family_of(config).macs(config, num_classes)
