"""What defines a DeiT: one branch of plain transformer blocks, the baselines CrossViT is compared with.

Sources: "Training data-efficient image transformers" (arXiv 2012.12877) for DeiT-Ti, S and B; the supplement of
CrossViT (arXiv 2103.14899) for DeiT-9, 15 and 18, which are CrossViT's large branch alone, and their dagger variants
with its three-convolution stem. No distillation token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .checks import frozen, indivisible, is_count, is_positive
from .counts import (
    block,
    block_alive,
    block_macs,
    block_saved,
    input_alive,
    linear,
    norm,
    patch_embed,
    patch_embed_macs,
    stem_alive,
)
from .crossvit_config import STEM_PATCHES
from .family import Shapes


@dataclass(frozen=True)
class DeiTConfig:
    """timm's names of the arguments.

    img_size: pixels of the square input, divisible by patch_size.
    patch_size: pixels.
    embed_dim: width, divisible by num_heads.
    depth: transformer blocks.
    mlp_ratio: hidden width over width.
    multi_conv: the three-convolution stem of the dagger variants, for patches of 12 and 16 pixels.
    qkv_bias: biases on the query, key and value projections.
    """

    img_size: int = 224
    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    multi_conv: bool = False
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        problems = [*self._kind_problems()] or [*self._value_problems()]
        if problems:
            raise ValueError("; ".join(problems))

    def _kind_problems(self):
        for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            if not (is_count(value) and value > 0):
                yield f"{name} must be a positive whole number, not {value!r}"
        if not is_positive(self.mlp_ratio):
            yield f"mlp_ratio must be a positive number, not {self.mlp_ratio!r}"
        for name in ("multi_conv", "qkv_bias"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} must be true or false, not {getattr(self, name)!r}"

    def _value_problems(self):
        yield from filter(None, [indivisible("img_size", self.img_size, "patch_size", self.patch_size)])
        yield from filter(None, [indivisible("embed_dim", self.embed_dim, "num_heads", self.num_heads)])
        if self.multi_conv and self.patch_size not in STEM_PATCHES:
            yield f"multi_conv is defined for patches of 12 and 16 pixels, not {self.patch_size}"
        if self.multi_conv and self.embed_dim % 4:
            yield f"multi_conv needs an embed_dim divisible by 4, not {self.embed_dim}"

    @property
    def input_size(self) -> int:
        """Pixels of the square input."""
        return self.img_size

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.img_size // self.patch_size) ** 2 + 1

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    def with_overrides(self, overrides: Mapping[str, Any]) -> DeiTConfig:
        """A copy with some arguments replaced. Raises ValueError on an impossible result."""
        return replace(self, **{name: frozen(value) for name, value in overrides.items()})


def _variant(dim: int, depth: int, heads: int, ratio: float, dagger: bool = False) -> DeiTConfig:
    return DeiTConfig(embed_dim=dim, depth=depth, num_heads=heads, mlp_ratio=ratio, multi_conv=dagger)


VARIANTS: dict[str, DeiTConfig] = {
    # name                  dim depth heads ratio dagger
    "deit_tiny": _variant(192, 12, 3, 4),
    "deit_small": _variant(384, 12, 6, 4),
    "deit_base": _variant(768, 12, 12, 4),
    "deit_9": _variant(256, 9, 4, 3),
    "deit_15": _variant(384, 15, 6, 3),
    "deit_18": _variant(448, 18, 7, 3),
    "deit_9_dagger": _variant(256, 9, 4, 3, True),
    "deit_15_dagger": _variant(384, 15, 6, 3, True),
    "deit_18_dagger": _variant(448, 18, 7, 3, True),
    "cabvit_p_l0": _variant(192, 12, 3, 4),
}
"""The baselines of CrossViT's supplement; and CabViT-P as its authors released it, whose block is an ordinary
transformer block: a DeiT-Ti under another name. The plain CabViT of the paper is not in their repository."""


def macs(config: DeiTConfig, num_classes: int = 1000) -> int:
    """Multiply-accumulates of one image: convolutions, linear layers and the attention products."""
    n, c = config.tokens, config.embed_dim
    grid = config.img_size // config.patch_size
    blocks = config.depth * block_macs(n, c, config.hidden_dim)
    return patch_embed_macs(c, config.patch_size, grid, config.multi_conv) + blocks + c * num_classes


def parameter_shapes(config: DeiTConfig, num_classes: int = 1000) -> Shapes:
    """The shape of every parameter by its official name."""
    dim = config.embed_dim
    found: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, config.tokens, dim)}
    found |= patch_embed("patch_embed.proj", dim, config.patch_size, config.multi_conv)
    for b in range(config.depth):
        found |= block(f"blocks.{b}", dim, config.hidden_dim, config.qkv_bias)
    return found | norm("norm", dim) | linear("head", dim, num_classes)


def saved_activations(config: DeiTConfig) -> int:
    """Numbers that one image's forward pass must keep for the gradient, at least; see counts.block_saved."""
    return config.depth * block_saved(config.tokens, config.embed_dim, config.hidden_dim, config.num_heads)


def alive_activations(config: DeiTConfig) -> int:
    """Numbers that one image's forward pass has at once, at the most.

    With the composed operators each picture more took 6.5 MB for deit_tiny, 7.2 for deit_9 and 9.5 for deit_small:
    0.96 to 1.04 times the count.
    """
    stem = stem_alive(config.embed_dim, config.patch_size, config.img_size) if config.multi_conv else 0
    return input_alive(config.img_size) + stem + block_alive(config.tokens, config.embed_dim, config.num_heads)


def sized(config: DeiTConfig, pixels: int) -> int:
    """img_size for an input of about so many pixels, in whole patches."""
    return max(round(pixels / config.patch_size), 1) * config.patch_size


def size_of(config: DeiTConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The picture size for which position embeddings were made; None where they have no square grid."""
    shape = shapes.get("pos_embed", ())
    side = math.isqrt(shape[1] - 1) if len(shape) == 3 and shape[1] > 1 else 0
    return {"img_size": side * config.patch_size} if side and side**2 == shape[1] - 1 else None
