"""What defines a CrossFormer or CrossFormer++: its numbers and the official variants, without MindSpore.

Sources: "CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention" (arXiv 2108.00154),
"CrossFormer++" (arXiv 2303.06908), and the official code's constructor, whose argument names are used here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .checks import frozen, is_count, is_positive

GROUP_TYPES = ("constant", "linear", "linear_div", "alter", "7_14")
SMALLEST_WIDTH = 16
"""The dynamic position bias is a 16th of its stage wide."""


@dataclass(frozen=True)
class CrossFormerConfig:
    """The official constructor's arguments. A stage is an entry of `depths`; each has half the grid of the one before.

    img_size: pixels of the square input, divisible by patch_size[0] times 2 for every stage but the first.
    patch_size: kernels of the first cross-scale embedding in pixels; the stride is the first one.
    embed_dim: width C of the first stage; stage s has 2^s C.
    depths: blocks of each stage, short and long distance attention in turn.
    num_heads: of each stage, dividing its width.
    group_size: tokens on a group's side, G, per stage; a grid that is not larger is one group.
    crs_interval: tokens between neighbours of a long-distance group, I, per stage.
    mlp_ratio: hidden width over width, per stage.
    qkv_bias: biases on the query, key and value projection.
    merge_size: kernels of the cross-scale embedding after each stage but the last, with stride 2.
    use_acl: an amplitude cooling layer after every third block of a stage but its last (CrossFormer++).
    group_type: how groups grow with depth, see crossformer_groups; `constant` in every released model.
    pad_type: where a grid is padded to whole groups: 0 bottom and right, 1 on both sides.
    no_mask: lets tokens attend to the padding.

    Left out: `adaptive_interval` and `use_cpe`, which no released model uses and whose official code is broken (the
    interval is that of the whole grid, the convolution takes the rows for channels); `ape`, `patch_norm`, `qk_scale`
    and dropout, which all released models leave as they are.
    """

    img_size: int = 224
    patch_size: tuple[int, ...] = (4, 8, 16, 32)
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    group_size: tuple[int, ...] = (7, 7, 7, 7)
    crs_interval: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratio: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0)
    qkv_bias: bool = True
    merge_size: tuple[tuple[int, ...], ...] = ((2, 4), (2, 4), (2, 4))
    use_acl: bool = False
    group_type: str = "constant"
    pad_type: int = 0
    no_mask: bool = False

    def __post_init__(self) -> None:
        problems = [*self._kind_problems()] or [*self._length_problems()] or [*self._value_problems()]
        if problems:
            raise ValueError("; ".join(problems))

    def _kind_problems(self):
        for name in ("img_size", "embed_dim"):
            if not is_count(getattr(self, name)):
                yield f"{name} must be a positive whole number, not {getattr(self, name)!r}"
        for name in ("patch_size", "depths", "num_heads", "group_size", "crs_interval"):
            if not _are_counts(getattr(self, name)):
                yield f"{name} must be a list of positive whole numbers, not {getattr(self, name)!r}"
        ratios, kernels = self.mlp_ratio, self.merge_size
        if not (isinstance(ratios, tuple) and all(is_positive(r) for r in ratios)):
            yield f"mlp_ratio must be a list of positive numbers, one per stage, not {ratios!r}"
        if not (isinstance(kernels, tuple) and all(_are_counts(k) for k in kernels)):
            yield f"merge_size must be a list of lists of kernels such as [[2, 4], [2, 4], [2, 4]], not {kernels!r}"
        for name in ("qkv_bias", "use_acl", "no_mask"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} must be true or false, not {getattr(self, name)!r}"
        if self.group_type not in GROUP_TYPES:
            near = difflib.get_close_matches(str(self.group_type), GROUP_TYPES, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(GROUP_TYPES)}"
            yield f"group_type must not be {self.group_type!r}; {hint}"
        if isinstance(self.pad_type, bool) or self.pad_type not in (0, 1):
            yield f"pad_type must be 0 or 1, not {self.pad_type!r}"

    def _length_problems(self):
        stages = len(self.depths)
        for name in ("num_heads", "group_size", "crs_interval", "mlp_ratio"):
            if len(getattr(self, name)) != stages:
                yield f"{name} has {len(getattr(self, name))} entries, depths {stages}: one per stage"
        if len(self.merge_size) != stages - 1:
            yield f"merge_size has {len(self.merge_size)} entries for {stages} stages (needed: {stages - 1})"

    def _value_problems(self):
        step = self.stride
        if self.img_size % step:
            near = max(self.img_size // step, 1) * step
            yield f"img_size {self.img_size} is not divisible by {step} (nearest: {near}, {near + step})"
        if self.embed_dim < SMALLEST_WIDTH:
            yield f"embed_dim {self.embed_dim} is too narrow for the position bias (at least {SMALLEST_WIDTH})"
        yield from _kernel_problems("patch_size", self.patch_size, self.patch_size[0], self.embed_dim)
        for s, kernels in enumerate(self.merge_size):
            yield from _kernel_problems(f"merge_size of stage {s + 1}", kernels, 2, self.dim(s + 1))
        for s, heads in enumerate(self.num_heads):
            if self.dim(s) % heads:
                near = max(n for n in range(1, heads) if self.dim(s) % n == 0)
                yield f"num_heads {heads} does not divide the width {self.dim(s)} of stage {s + 1} (nearest: {near})"

    @property
    def input_size(self) -> int:
        """Pixels of the square input."""
        return self.img_size

    @property
    def stride(self) -> int:
        """Pixels of a token of the last stage."""
        return self.patch_size[0] * 2 ** (len(self.depths) - 1)

    def dim(self, stage: int) -> int:
        """Width of a stage, from 0."""
        return self.embed_dim * 2**stage

    def hidden_dim(self, stage: int) -> int:
        """Hidden width of a stage's MLPs."""
        return int(self.dim(stage) * self.mlp_ratio[stage])

    def has_acl(self, stage: int, block: int) -> bool:
        """Whether a block ends in an amplitude cooling layer: every third one of a stage, never the last."""
        return self.use_acl and (block + 1) % 3 == 0 and block < self.depths[stage] - 1

    def with_overrides(self, overrides: Mapping[str, Any]) -> CrossFormerConfig:
        """A copy with some arguments replaced; lists become tuples. Raises ValueError on an impossible result."""
        return replace(self, **{name: frozen(value) for name, value in overrides.items()})


FIELDS = tuple(f.name for f in fields(CrossFormerConfig))


def sized(config: CrossFormerConfig, pixels: int) -> int:
    """The possible img_size nearest to an input of so many pixels; the weights fit any."""
    return max(round(pixels / config.stride), 1) * config.stride


def scale_widths(kernels: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Channels that each kernel of a cross-scale embedding makes: half, a quarter, ...; the last as the one before."""
    last = len(kernels) - 1
    return tuple(width // 2 ** (i if i == last else i + 1) for i in range(len(kernels)))


def _kernel_problems(name: str, kernels: tuple[int, ...], stride: int, width: int):
    """A kernel is centred on the patch of its stride."""
    for kernel in kernels:
        if kernel < stride or (kernel - stride) % 2:
            near = max(stride, kernel + 1 if kernel > stride else stride)
            yield f"{name}: a kernel of {kernel} is not centred on a patch of {stride} (nearest: {near})"
    parts = 2 ** (len(kernels) - 1)
    if width % parts:
        near = max(width // parts, 1) * parts
        yield f"{name}: {len(kernels)} kernels do not divide a width of {width} (nearest: {near}, {near + parts})"


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(is_count(v) for v in value)


def _first(dim: int, depths: tuple[int, ...]) -> CrossFormerConfig:
    return CrossFormerConfig(embed_dim=dim, depths=depths, num_heads=_heads(dim))


def _second(dim: int, depths: tuple[int, ...]) -> CrossFormerConfig:
    return CrossFormerConfig(
        embed_dim=dim,
        depths=depths,
        num_heads=_heads(dim),
        group_size=(4, 4, 14, 7),
        crs_interval=(4, 2, 1, 1),
        use_acl=True,
    )


def _heads(dim: int) -> tuple[int, ...]:
    """Heads of 32 channels in every stage."""
    return tuple(dim * 2**s // 32 for s in range(4))


VARIANTS: dict[str, CrossFormerConfig] = {
    "crossformer_t": _first(64, (1, 1, 8, 6)),
    "crossformer_s": _first(96, (2, 2, 6, 2)),
    "crossformer_b": _first(96, (2, 2, 18, 2)),
    "crossformer_l": _first(128, (2, 2, 18, 2)),
    "crossformerpp_s": _second(64, (2, 2, 18, 2)),
    "crossformerpp_b": _second(96, (2, 2, 18, 2)),
    "crossformerpp_l": _second(128, (2, 2, 18, 2)),
    "crossformerpp_h": _second(128, (6, 6, 18, 2)),
}
"""The eight released models."""
