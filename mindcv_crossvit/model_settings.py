"""The `model:` section of a recipe: one class per family, whose settings are the official constructor's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .models import catalog
from .models.crossformer_config import GROUP_TYPES
from .models.crossvit_config import BACKBONES, FUSIONS, NUMERICS
from .models.family import Config
from .settings import meaning, setting

MANY, SIDE, WIDTH, BLOCKS = 1_000_000, 10_000, 100_000, 1000
"""More classes, pixels, width and blocks than anybody asks for but by mistake; they would only fail later."""


@dataclass(frozen=True)
class Model:
    """Which model, and how many classes it tells apart."""

    name: str = field(metadata=meaning("a model of the suite (crossvit_15), or mindcv/NAME"))
    drop_path_rate: float = setting(0.0, "stochastic depth, linear over depth", at_least=0, below=1)
    num_classes: int | None = setting(
        None, "classes; null takes them from the data", at_least=1, at_most=MANY, machine=True
    )

    def overrides(self) -> dict[str, Any]:
        """The family's own settings that differ from their defaults: arguments of the official constructor."""
        own = [f for f in fields(self) if f.name not in _COMMON]
        return {f.name: getattr(self, f.name) for f in own if getattr(self, f.name) != f.default}

    def config(self) -> Config | None:
        """The numbers of a model of the suite; None for MindCV's. Raises ValueError when they cannot be built."""
        return catalog.VARIANTS[catalog.resolve(self.name)].with_overrides(self.overrides())

    @property
    def image_size(self) -> int:
        """Pixels of the model's square input."""
        config = self.config()
        assert config
        return config.input_size


_COMMON = tuple(f.name for f in fields(Model))


@dataclass(frozen=True)
class MindCVModel(Model):
    """A model of MindCV's zoo, `mindcv/NAME`, as it is."""

    input_size: int | None = setting(None, "pixels of the input (224 when null)", at_least=1, at_most=SIDE)

    def overrides(self) -> dict[str, Any]:
        """None: MindCV's constructors have arguments of their own."""
        return {}

    def config(self) -> Config | None:
        """None."""
        return None

    @property
    def image_size(self) -> int:
        """Pixels of the model's square input."""
        return self.input_size or 224


@dataclass(frozen=True)
class CrossViTModel(Model):
    """A CrossViT; null is the variant's own value."""

    img_size: tuple[int, int] | None = setting(
        None,
        "pixels of the small and the large branch; null: the variant's",
        auto="the variant's, or smaller where the pictures are",
        at_least=1,
        at_most=SIDE,
    )
    patch_size: tuple[int, int] | None = setting(None, "pixels of a patch, per branch", at_least=1, at_most=SIDE)
    embed_dim: tuple[int, int] | None = setting(None, "width of each branch", at_least=1, at_most=WIDTH)
    depth: tuple[tuple[int, int, int], ...] | None = setting(None, "[N, M, L] per encoder", at_least=0, at_most=BLOCKS)
    num_heads: tuple[int, int] | None = setting(None, "heads of each branch", at_least=1, at_most=WIDTH)
    mlp_ratio: tuple[float, ...] | None = setting(None, "hidden width over width, per branch", above=0, at_most=BLOCKS)
    multi_conv: bool | None = setting(None, "the three-convolution stem of the dagger variants")
    hybrid_backbone: str | None = setting(
        None, "token-to-token patch embeddings in both branches, with softmax or linear attention", choices=BACKBONES
    )
    fusion: str = setting("cross_attention", "how the branches exchange what they know", choices=FUSIONS)
    cls_token: bool = setting(True, "false: no class tokens, the mean of a branch's patches in their place")
    identity_projs: bool = setting(False, "no projections between branches of equal width")
    numerics: str = setting("official", "whose arithmetic: the official code's or MindCV's", choices=tuple(NUMERICS))


@dataclass(frozen=True)
class DeiTModel(Model):
    """A DeiT, one branch; null is the variant's own value."""

    img_size: int | None = setting(
        None, "pixels; null: the variant's", auto="the variant's, or smaller where the pictures are", at_least=1
    )
    patch_size: int | None = setting(None, "pixels of a patch", at_least=1)
    embed_dim: int | None = setting(None, "width", at_least=1)
    depth: int | None = setting(None, "transformer blocks", at_least=1)
    num_heads: int | None = setting(None, "heads", at_least=1)
    mlp_ratio: float | None = setting(None, "hidden width over width", above=0)
    multi_conv: bool | None = setting(None, "the three-convolution stem of the dagger variants")


@dataclass(frozen=True)
class CabViTModel(Model):
    """A CabViT-H; null is the variant's own value."""

    img_size: int | None = setting(
        None, "pixels, a multiple of 32; null: the variant's", auto="the variant's, or smaller where the pictures are"
    )
    embed_dims: tuple[int, int, int, int] | None = setting(None, "width of each stage", at_least=1)
    depths: tuple[int, int, int, int] | None = setting(None, "blocks of each stage", at_least=1)
    num_heads: tuple[int, int, int, int] | None = setting(None, "heads of each stage, 0 for the first two", at_least=0)


@dataclass(frozen=True)
class CrossFormerModel(Model):
    """A CrossFormer or CrossFormer++; null is the variant's own value."""

    img_size: int | None = setting(
        None,
        "pixels of the input, 224 for all variants; weights fit any size",
        auto="the variant's, or smaller where the pictures are",
        at_least=1,
    )
    patch_size: tuple[int, ...] | None = setting(
        None, "kernels of the first embedding in pixels, the first one its stride", at_least=1
    )
    embed_dim: int | None = setting(None, "width of the first stage; every further one has twice that", at_least=1)
    depths: tuple[int, ...] | None = setting(None, "blocks, per stage", at_least=1)
    num_heads: tuple[int, ...] | None = setting(None, "heads, per stage", at_least=1)
    group_size: tuple[int, ...] | None = setting(None, "tokens on a group's side, per stage", at_least=1)
    crs_interval: tuple[int, ...] | None = setting(
        None, "tokens from one to the next in a long-distance group, per stage", at_least=1
    )
    mlp_ratio: tuple[float, ...] | None = setting(None, "hidden width over width, per stage", above=0)
    merge_size: tuple[tuple[int, ...], ...] | None = setting(
        None, "kernels of the embedding after each stage but the last", at_least=1
    )
    use_acl: bool | None = setting(None, "amplitude cooling layers (CrossFormer++)")
    group_type: str = setting("constant", "how groups grow with depth", choices=GROUP_TYPES)
    pad_type: int = setting(0, "where grids are padded: 0 bottom and right, 1 on both sides", at_least=0, at_most=1)
    no_mask: bool = setting(False, "tokens attend to padding, too")


SETTINGS: dict[str, type[Model]] = {
    "crossvit": CrossViTModel,
    "crossformer": CrossFormerModel,
    "deit": DeiTModel,
    "cabvit": CabViTModel,
}
"""By the family's name."""


def settings_for(values: Any) -> type[Model]:
    """The class of a `model:` section's plain values; CrossViT's where the name tells nothing.

    Raises ValueError for an unknown name, with the nearest known one.
    """
    name = values.get("name") if isinstance(values, Mapping) else None
    if not isinstance(name, str):
        return CrossViTModel
    if catalog.resolve(name).startswith(catalog.MINDCV_PREFIX):
        return MindCVModel
    return SETTINGS[catalog.family_of(name).name]
