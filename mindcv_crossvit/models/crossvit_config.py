"""What defines a CrossViT: its numbers, the official variants, and what follows from them without MindSpore.

Source: "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification" (arXiv 2103.14899), tables 1
and 4, and the official code's constructor, whose argument names are used here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .checks import frozen, indivisible, is_count, is_positive
from .counts import block_macs, block_saved, patch_embed_macs

Pair = tuple[int, int]
STEM_PATCHES = (12, 16)
"""Patch sizes for which the three-convolution stem is defined."""


@dataclass(frozen=True)
class Numerics:
    """What two implementations of the same model compute differently.

    gelu: "none" for the exact one, "tanh" for the tanh form, everywhere. block_eps: LayerNorm's epsilon in the
    transformer and cross-attention blocks; 1e-6 elsewhere. resize: how an image becomes the large branch's.
    stem_bias: biases in the three-convolution stem.
    """

    gelu: str
    block_eps: float
    resize: str
    stem_bias: bool


NUMERICS = {
    "official": Numerics("none", 1e-6, "bicubic", True),
    "mindcv": Numerics("tanh", 1e-7, "bilinear", False),
}
"""The official code's and timm's, and those of MindCV 0.3.0's crossvit_9, 15 and 18."""


@dataclass(frozen=True)
class CrossViTConfig:
    """The official constructor's arguments, and numerics. Branch 0 has the small patches, branch 1 the large ones.

    img_size: pixels of each branch's square input; the model's input has the first, branch 1 resizes it.
    patch_size: pixels; each must divide its image size.
    embed_dim: width of each branch, divisible by its heads.
    depth: one triple (N, M, L) per multi-scale encoder: N small-branch blocks, M large-branch blocks, and L
        cross-attention blocks per branch. L = 0 is one block stored without a list index, as in all released weights.
    num_heads: heads of each branch.
    mlp_ratio: hidden width over width; the official third entry is accepted and unused.
    multi_conv: the three-convolution stem of the dagger variants, for patches of 12 and 16 pixels.
    qkv_bias: biases on the query, key and value projections.
    numerics: a key of NUMERICS; "mindcv" runs weights trained with MindCV as MindCV does.
    """

    img_size: Pair = (240, 224)
    patch_size: Pair = (12, 16)
    embed_dim: Pair = (192, 384)
    depth: tuple[tuple[int, int, int], ...] = ((1, 4, 0),) * 3
    num_heads: Pair = (6, 6)
    mlp_ratio: tuple[float, ...] = (4.0, 4.0, 1.0)
    multi_conv: bool = False
    qkv_bias: bool = True
    numerics: str = "official"

    def __post_init__(self) -> None:
        problems = [*self._shape_problems()] or [*self._value_problems()]
        if problems:
            raise ValueError("; ".join(problems))

    def _shape_problems(self):
        for name in ("img_size", "patch_size", "embed_dim", "num_heads"):
            value = getattr(self, name)
            if not (isinstance(value, tuple) and len(value) == 2 and all(is_count(v) and v > 0 for v in value)):
                yield f"{name} must be two positive whole numbers, one per branch, not {value!r}"
        if not (isinstance(self.depth, tuple) and self.depth and all(_is_triple(d) for d in self.depth)):
            yield f"depth must be a list of triples such as [[1, 4, 0], [1, 4, 0]], not {self.depth!r}"
        ratios = self.mlp_ratio
        if not (isinstance(ratios, tuple) and len(ratios) in (2, 3) and all(is_positive(r) for r in ratios)):
            yield f"mlp_ratio must be two or three positive numbers, not {ratios!r}"
        for name in ("multi_conv", "qkv_bias"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} must be true or false, not {getattr(self, name)!r}"
        if self.numerics not in NUMERICS:
            yield f"numerics must be {' or '.join(NUMERICS)}, not {self.numerics!r}"

    def _value_problems(self):
        for i, branch in enumerate(("small", "large")):
            img, patch, dim, heads = self.img_size[i], self.patch_size[i], self.embed_dim[i], self.num_heads[i]
            where = f" of the {branch} branch"
            yield from filter(None, [indivisible("img_size", img, "patch_size", patch, where)])
            yield from filter(None, [indivisible("embed_dim", dim, "num_heads", heads, where)])
            if self.multi_conv and patch not in STEM_PATCHES:
                yield f"multi_conv is defined for patches of 12 and 16 pixels, not {patch} ({branch} branch)"
            if self.multi_conv and dim % 4:
                yield f"multi_conv needs an embed_dim divisible by 4, not {dim} ({branch} branch)"

    @property
    def input_size(self) -> int:
        """Pixels of the model's square input."""
        return self.img_size[0]

    @property
    def tokens(self) -> Pair:
        """Tokens of each branch, class token included."""
        s, l = ((img // patch) ** 2 + 1 for img, patch in zip(self.img_size, self.patch_size, strict=True))
        return s, l

    @property
    def hidden_dim(self) -> Pair:
        """Hidden width of each branch's MLP."""
        return int(self.embed_dim[0] * self.mlp_ratio[0]), int(self.embed_dim[1] * self.mlp_ratio[1])

    def with_overrides(self, overrides: Mapping[str, Any]) -> CrossViTConfig:
        """A copy with some arguments replaced; lists become tuples. Raises ValueError on an impossible result."""
        return replace(self, **{name: frozen(value) for name, value in overrides.items()})


def _is_triple(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(is_count(v) for v in value)
        and min(value[:2]) >= 1
        and value[2] >= 0
    )


def _variant(dims: Pair, heads: int, ratio: int, large_blocks: int, dagger: bool, img: Pair = (240, 224)):
    return CrossViTConfig(
        img_size=img,
        embed_dim=dims,
        depth=((1, large_blocks, 0),) * 3,
        num_heads=(heads, heads),
        mlp_ratio=(ratio, ratio, 1),
        multi_conv=dagger,
    )


VARIANTS: dict[str, CrossViTConfig] = {
    # name                        dims        heads ratio M  dagger  image
    "crossvit_tiny": _variant((96, 192), 3, 4, 4, False),
    "crossvit_small": _variant((192, 384), 6, 4, 4, False),
    "crossvit_base": _variant((384, 768), 12, 4, 4, False),
    "crossvit_9": _variant((128, 256), 4, 3, 3, False),
    "crossvit_15": _variant((192, 384), 6, 3, 5, False),
    "crossvit_18": _variant((224, 448), 7, 3, 6, False),
    "crossvit_9_dagger": _variant((128, 256), 4, 3, 3, True),
    "crossvit_15_dagger": _variant((192, 384), 6, 3, 5, True),
    "crossvit_18_dagger": _variant((224, 448), 7, 3, 6, True),
    "crossvit_15_dagger_384": _variant((192, 384), 6, 3, 5, True, (408, 384)),
    "crossvit_18_dagger_384": _variant((224, 448), 7, 3, 6, True, (408, 384)),
}
"""The eleven released models. Dagger: the three-convolution stem. Every encoder has one small-branch block."""


def macs(config: CrossViTConfig, num_classes: int = 1000) -> int:
    """Multiply-accumulates of one image: convolutions, linear layers and the attention products.

    Norms, activations, the resize and additions are not counted, as in the paper's "FLOPs" (table 2).
    """
    total = 0
    for i in range(2):
        total += _embed_macs(config, i) + config.embed_dim[i] * num_classes
    for triple in config.depth:
        for i in range(2):
            total += triple[i] * _block_macs(config, i) + _fusion_macs(config, i, triple[2])
    return total


def _embed_macs(config: CrossViTConfig, branch: int) -> int:
    patch = config.patch_size[branch]
    return patch_embed_macs(config.embed_dim[branch], patch, config.img_size[branch] // patch, config.multi_conv)


def _block_macs(config: CrossViTConfig, branch: int) -> int:
    return block_macs(config.tokens[branch], config.embed_dim[branch], config.hidden_dim[branch])


def _fusion_macs(config: CrossViTConfig, branch: int, blocks: int) -> int:
    """The class token of `branch` attends to the other branch's patches; later blocks see that one token only."""
    other = 1 - branch
    own_dim, c, n = config.embed_dim[branch], config.embed_dim[other], config.tokens[other]
    first = 2 * c * c + 2 * n * c * c + 2 * n * c
    later = 4 * c * c + 2 * c
    return 2 * own_dim * c + first + max(blocks - 1, 0) * later


def saved_activations(config: CrossViTConfig) -> int:
    """Numbers that one image's forward pass must keep for the gradient, at least.

    What a backend keeps besides, and its work space, come on top.
    """
    total = 0
    for triple in config.depth:
        for i in range(2):
            n, c = config.tokens[i], config.embed_dim[i]
            total += triple[i] * block_saved(n, c, config.hidden_dim[i], config.num_heads[i])
            total += n * 4 * c  # the cross-attention that reads this branch: norm, keys, values
    return total


def sized(config: CrossViTConfig, pixels: int) -> Pair:
    """img_size for an input of about so many pixels: whole patches, the branches' ratio kept."""
    ratio = config.img_size[1] / config.img_size[0]
    small, large = config.patch_size
    return max(round(pixels / small), 1) * small, max(round(pixels * ratio / large), 1) * large


def size_of(config: CrossViTConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The picture size for which position embeddings were made; None where they have no square grid."""
    sizes = []
    for i in range(2):
        shape = shapes.get(f"pos_embed.{i}", ())
        side = math.isqrt(shape[1] - 1) if len(shape) == 3 and shape[1] > 1 else 0
        if not side or side**2 != shape[1] - 1:
            return None
        sizes.append(side * config.patch_size[i])
    return {"img_size": (sizes[0], sizes[1])}
