"""What defines a CrossViT: its numbers, the official variants, and what follows from them without MindSpore.

Source: "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification" (arXiv 2103.14899), tables 1
and 4, and the official code's constructor, whose argument names are used here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .checks import frozen, indivisible, is_count, is_positive

Pair = tuple[int, int]
BRANCHES = ("small", "large")
STEM_PATCHES = (12, 16)
"""Patch sizes for which the three-convolution stem and the token-to-token embeddings are defined."""
FUSIONS = ("none", "all_attention", "class_token", "pairwise", "cross_attention")
"""How the branches exchange what they know, see models/fusion.py."""
BACKBONES = ("t2t", "performer")
"""Token-to-token patch embeddings: with softmax attention, and with its linear approximation, see models/t2t.py."""
SOFT_SPLITS = {12: ((7, 4, 2), (3, 3, 1), (3, 1, 1)), 16: ((7, 4, 2), (3, 2, 1), (3, 2, 1))}
"""By patch size, the (window, stride, padding) of the three soft splits of a token-to-token embedding."""
TOKEN_WIDTH, FEATURES = 64, 32
"""Width of its tokens, and random features of the performer."""


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
    fusion: one of FUSIONS, with models/fusion.py's reading of the paper; all released models have cross_attention. L
        counts blocks of that one, and is 0 for the others.
    cls_token: False is the paper's variant without class tokens, for cross_attention: the mean of a branch's patches
        reads the other branch and is added to each of them; the heads read the mean, too.
    hybrid_backbone: None for convolutions, or one of BACKBONES for both branches, for patches of 12 and 16 pixels.
    identity_projs: projections between branches of equal width are left out, as the parameters of the paper's row B
        say; the official code as published always builds them.
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
    fusion: str = "cross_attention"
    cls_token: bool = True
    identity_projs: bool = False
    hybrid_backbone: str | None = None

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
        for name in ("multi_conv", "qkv_bias", "cls_token", "identity_projs"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} must be true or false, not {getattr(self, name)!r}"
        if self.numerics not in NUMERICS:
            yield f"numerics must be {' or '.join(NUMERICS)}, not {self.numerics!r}"
        if self.fusion not in FUSIONS:
            near = difflib.get_close_matches(str(self.fusion), FUSIONS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"fusion must be one of {', '.join(FUSIONS)}, not {self.fusion!r}{hint}"
        if self.hybrid_backbone not in (None, *BACKBONES):
            yield f"hybrid_backbone must be {' or '.join(BACKBONES)} or null, not {self.hybrid_backbone!r}"

    def _value_problems(self):
        yield from self._fusion_problems()
        if self.hybrid_backbone and self.multi_conv:
            yield f"multi_conv and hybrid_backbone {self.hybrid_backbone} are two patch embeddings; choose one"
        for i, branch in enumerate(BRANCHES):
            img, patch, dim, heads = self.img_size[i], self.patch_size[i], self.embed_dim[i], self.num_heads[i]
            where = f" of the {branch} branch"
            yield from filter(None, [indivisible("img_size", img, "patch_size", patch, where)])
            yield from filter(None, [indivisible("embed_dim", dim, "num_heads", heads, where)])
            if self.multi_conv and patch not in STEM_PATCHES:
                yield f"multi_conv is defined for patches of 12 and 16 pixels, not {patch} ({branch} branch)"
            if self.hybrid_backbone and patch not in STEM_PATCHES:
                yield f"hybrid_backbone is defined for patches of 12 and 16 pixels, not {patch} ({branch} branch)"
            if self.multi_conv and dim % 4:
                yield f"multi_conv needs an embed_dim divisible by 4, not {dim} ({branch} branch)"

    def _fusion_problems(self):
        if self.fusion != "cross_attention":
            if any(l for _, _, l in self.depth):
                yield f"depth: L counts cross-attention blocks and fusion {self.fusion} has none; give 0"
            if not self.cls_token:
                yield f"cls_token false is defined for fusion cross_attention, not {self.fusion}"
        if self.identity_projs and (self.embed_dim[0] != self.embed_dim[1] or self.fusion == "none"):
            yield (
                "identity_projs leaves out projections between branches of equal width; with fusion"
                f" {self.fusion} and embed_dim {list(self.embed_dim)} there are none"
            )

    @property
    def patches(self) -> Pair:
        """Patches of each branch."""
        s, l = ((img // patch) ** 2 for img, patch in zip(self.img_size, self.patch_size, strict=True))
        return s, l

    @property
    def input_size(self) -> int:
        """Pixels of the model's square input."""
        return self.img_size[0]

    @property
    def tokens(self) -> Pair:
        """Tokens of each branch, class token included where there is one."""
        return self.patches[0] + self.cls_token, self.patches[1] + self.cls_token

    @property
    def reads_across(self) -> bool:
        """Whether class tokens attend to the other branch's patches."""
        return self.fusion == "cross_attention" and self.cls_token

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


def sized(config: CrossViTConfig, pixels: int) -> Pair:
    """img_size for an input of about so many pixels: whole patches, the branches' ratio kept."""
    ratio = config.img_size[1] / config.img_size[0]
    small, large = config.patch_size
    return max(round(pixels / small), 1) * small, max(round(pixels * ratio / large), 1) * large


def soft_split_sides(pixels: int, patch: int) -> tuple[int, int, int]:
    """Windows per side after each soft split of a square of so many pixels, a multiple of the patch."""
    sides, side = [], pixels
    for kernel, stride, pad in SOFT_SPLITS[patch]:
        side = (side + 2 * pad - kernel) // stride + 1
        sides.append(side)
    return sides[0], sides[1], sides[2]


def size_of(config: CrossViTConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """What the names and shapes of weights tell of their model, where it differs: fusion, tokens and picture size.

    None where the position embeddings have no square grid. Class-token and pairwise fusion have the same tensors; of
    the two, class_token is told.
    """
    told: dict[str, Any] = {"cls_token": "cls_token.0" in shapes, "fusion": _fusion_of(shapes)}
    told["hybrid_backbone"] = next((kind for mark, kind in _EMBEDDINGS.items() if mark in shapes), None)
    sizes = []
    for i in range(2):
        shape = shapes.get(f"pos_embed.{i}", ())
        patches = shape[1] - told["cls_token"] if len(shape) == 3 else 0
        side = math.isqrt(max(patches, 0))
        if not side or side**2 != patches:
            return None
        sizes.append(side * config.patch_size[i])
    told["img_size"] = (sizes[0], sizes[1])
    return {name: value for name, value in told.items() if value != getattr(config, name)}


def _fusion_of(names: Iterable[str]) -> str:
    found = {mark for mark in _MARKS for name in names if mark in name}
    return next((fusion for mark, fusion in _MARKS.items() if mark in found), "none")


_EMBEDDINGS = {"patch_embed.0.attention1.attn.qkv.weight": "t2t", "patch_embed.0.attention1.w": "performer"}
_MARKS = {".fusion.attn.": "all_attention", ".fusion.0.": "cross_attention", ".projs.0.": "class_token"}
