"""What defines a CabViT-H: two stages of convolutions, two of attention to all earlier blocks' digests.

Source: the authors' code (github.com/hkzhang91/CabViT, December 2022), whose constructor's argument names are used; its
README gives 83.0 % top-1 and 16.3 M parameters for the model that has the numbers of cabvit_h_l2. Neither weights nor
a training recipe were published. The plain models: see deit_config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .checks import frozen, indivisible, is_count
from .counts import input_alive, linear, norm
from .family import Shapes

Four = tuple[int, int, int, int]
STRIDE = 32
"""Pixels of the input per token of the last stage, a side."""
DIGEST = 7, 4, 3
"""Kernel, stride and padding of the convolution that makes a block's digest tokens."""


@dataclass(frozen=True)
class CabViTConfig:
    """img_size: pixels of the square input, divisible by 32; the stages' maps have 1/4, 1/8, 1/16 and 1/32 of them.

    embed_dims: width of each stage; the first is even, those of stages 3 and 4 divisible by their heads.
    depths: blocks of each stage.
    num_heads: heads of each stage; stages 1 and 2 are convolutions and have 0.
    """

    img_size: int = 224
    embed_dims: Four = (48, 96, 192, 384)
    depths: Four = (3, 3, 9, 2)
    num_heads: Four = (0, 0, 12, 24)

    def __post_init__(self) -> None:
        problems = [*self._kind_problems()] or [*self._value_problems()]
        if problems:
            raise ValueError("; ".join(problems))

    def _kind_problems(self):
        if not (is_count(self.img_size) and self.img_size > 0):
            yield f"img_size must be a positive whole number, not {self.img_size!r}"
        for name, least in (("embed_dims", 1), ("depths", 1), ("num_heads", 0)):
            value = getattr(self, name)
            if not (isinstance(value, tuple) and len(value) == 4 and all(is_count(v) and v >= least for v in value)):
                yield f"{name} must be four whole numbers from {least}, one per stage, not {value!r}"

    def _value_problems(self):
        yield from filter(None, [indivisible("img_size", self.img_size, "stride", STRIDE)])
        yield from filter(None, [indivisible("embed_dims", self.embed_dims[0], "factor", 2, " of stage 1")])
        for stage in (2, 3):
            where, heads = f" of stage {stage + 1}", self.num_heads[stage]
            if heads:
                yield from filter(None, [indivisible("embed_dims", self.embed_dims[stage], "num_heads", heads, where)])
            else:
                yield f"num_heads{where} must be at least 1"
        if any(self.num_heads[:2]):
            yield f"num_heads of stages 1 and 2 must be 0, they are convolutions, not {list(self.num_heads[:2])}"

    @property
    def input_size(self) -> int:
        """Pixels of the square input."""
        return self.img_size

    def side(self, stage: int) -> int:
        """Pixels of a stage's square map, stage 0 to 3."""
        return self.img_size // (4 << stage)

    def digest(self, stage: int) -> int:
        """Digest tokens of one block of a stage."""
        kernel, stride, pad = DIGEST
        return ((self.side(stage) + 2 * pad - kernel) // stride + 1) ** 2

    def with_overrides(self, overrides: Mapping[str, Any]) -> CabViTConfig:
        """A copy with some arguments replaced; lists become tuples. Raises ValueError on an impossible result."""
        return replace(self, **{name: frozen(value) for name, value in overrides.items()})


VARIANTS: dict[str, CabViTConfig] = {
    "cabvit_h_l1": CabViTConfig(224, (64, 128, 192, 320), (2, 2, 6, 2), (0, 0, 6, 10)),
    "cabvit_h_l2": CabViTConfig(224, (96, 192, 320, 480), (2, 2, 7, 2), (0, 0, 10, 15)),
    "cabvit_h_l3": CabViTConfig(224, (96, 192, 320, 512), (3, 6, 12, 3), (0, 0, 10, 16)),
}


def macs(config: CabViTConfig, num_classes: int = 1000) -> int:
    """Multiply-accumulates of one image: convolutions, linear layers and the attention products."""
    dims, tokens = config.embed_dims, [config.side(stage) ** 2 for stage in range(4)]
    total = 4 * tokens[0] * (dims[0] // 2) * 27 + tokens[0] * dims[0] * (dims[0] // 2) * 9
    for stage, (n, c) in enumerate(zip(tokens, dims, strict=True)):
        if stage < 2:
            total += config.depths[stage] * n * (49 * c + 8 * c * c)
        else:
            total += sum(_block_macs(config, stage, d) for d in range(config.depths[stage]))
        if stage < 3:
            new = dims[stage + 1]
            total += n * c * new + tokens[stage + 1] * (9 * new + new * new)
    return total + dims[3] * num_classes


def _block_macs(config: CabViTConfig, stage: int, d: int) -> int:
    n, c, t = config.side(stage) ** 2, config.embed_dims[stage], config.digest(stage)
    seen = n + d * t
    attention = 3 * seen * c * c + 2 * n * seen * c + n * c * c
    digest = 49 * t * c if d < config.depths[stage] - 1 else 0
    return attention + digest + 9 * n * c + 8 * n * c * c


def parameter_shapes(config: CabViTConfig, num_classes: int = 1000) -> Shapes:
    """The shape of every tensor of the weights by its official name, running statistics included."""
    dims = config.embed_dims
    found = _conv_norm("patch_embed.seq.0", 3, dims[0] // 2, 3) | _conv_norm("patch_embed.seq.2", dims[0] // 2, dims[0])
    for stage in range(4):
        for d in range(config.depths[stage]):
            name = f"layer_{stage}.blocks.{d}"
            found |= _convnext(name, dims[stage]) if stage < 2 else _block(name, config, stage, d)
        if stage < 3:
            name, new = f"layer_{stage}.downsample.conv", dims[stage + 1]
            found |= _conv_norm(f"{name}1", dims[stage], new, 1) | _conv_norm(f"{name}2", 1, new)
            found |= _conv_norm(f"{name}3", new, new, 1)
    return found | norm("norm_head", dims[3]) | linear("head", dims[3], num_classes)


def _conv_norm(name: str, in_dim: int, out_dim: int, kernel: int = 3) -> Shapes:
    found: Shapes = {f"{name}.c.weight": (out_dim, in_dim, kernel, kernel)}
    return found | {f"{name}.bn.{part}": (out_dim,) for part in ("weight", "bias", "running_mean", "running_var")}


def _convnext(name: str, dim: int) -> Shapes:
    found: Shapes = {f"{name}.gamma": (dim,), f"{name}.dwconv.weight": (dim, 1, 7, 7), f"{name}.dwconv.bias": (dim,)}
    return found | norm(f"{name}.norm", dim) | _mlp(f"{name}.pwconv", dim)


def _mlp(name: str, dim: int) -> Shapes:
    return linear(f"{name}1", dim, 4 * dim) | linear(f"{name}2", 4 * dim, dim)


def _block(name: str, config: CabViTConfig, stage: int, d: int) -> Shapes:
    dim, heads, seen = config.embed_dims[stage], config.num_heads[stage], d * config.digest(stage)
    found: Shapes = {f"{name}.gamma_1": (dim,), f"{name}.gamma_2": (dim,)}
    found[f"{name}.attention_biases"] = (heads, config.side(stage) ** 2)
    if d > 0:
        found[f"{name}.s_token_bias"] = (1, heads, 1, seen)
        found[f"{name}.s_scale_factors"] = (1, seen, 1)
        found |= norm(f"{name}.s_norm", dim)
    if d < config.depths[stage] - 1:
        found[f"{name}.dw_conv.weight"] = (dim, 1, DIGEST[0], DIGEST[0])
    found |= norm(f"{name}.norm1", dim) | norm(f"{name}.norm2", dim)
    found |= linear(f"{name}.qkv", dim, 3 * dim) | linear(f"{name}.proj", dim, dim)
    found |= _conv_norm(f"{name}.local_conv", 1, dim)
    return found | norm(f"{name}.mlp.norm", dim) | _mlp(f"{name}.mlp.fc", dim)


def saved_activations(config: CabViTConfig) -> int:
    """Numbers that one image's forward pass keeps for the gradient.

    Counted from what the composed operators keep: of a convolution what it reads, of a batch norm the centred input, of
    a GELU its slope; and, per token of width C, 38 C in a block of convolutions and 28 C in one of attention, with the
    scores and probabilities beside it, and 8 C per digest it sees. The 38 and 28 were measured on models with one wide
    stage. Each picture more then took 34.8 M numbers for cabvit_h_l1 and 67.7 M for cabvit_h_l2, 0.87 and 1.05 times
    the count.
    """
    dims, tokens = config.embed_dims, [config.side(stage) ** 2 for stage in range(4)]
    total = 4 * tokens[0] * (48 + dims[0]) + 9 * tokens[0] * dims[0]  # the stem
    for stage, (n, c) in enumerate(zip(tokens, dims, strict=True)):
        if stage < 2:
            total += config.depths[stage] * 38 * n * c
        else:
            for d in range(config.depths[stage]):
                seen = d * config.digest(stage)
                total += 28 * n * c + 8 * seen * c + 2 * config.num_heads[stage] * n * (n + seen)
        if stage < 3:
            total += n * (c + 4 * dims[stage + 1])
    return total


def alive_activations(config: CabViTConfig) -> int:
    """Numbers that one image's forward pass has at once, at the most: in the first stage, by far the largest.

    Fourteen and a half times its hidden layer; with the composed operators each picture more took 50.7 MB for
    cabvit_h_l1, which is 1.00 times that.
    """
    return input_alive(config.img_size) + 58 * config.side(0) ** 2 * config.embed_dims[0]


def sized(config: CabViTConfig, pixels: int) -> int:
    """img_size for an input of about so many pixels."""
    return max(round(pixels / STRIDE), 1) * STRIDE


def size_of(config: CabViTConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The picture size for which the attention biases of stage 3 were made; None where they have no square grid."""
    shape = shapes.get("layer_2.blocks.0.attention_biases", ())
    side = math.isqrt(shape[1]) if len(shape) == 2 and shape[1] > 0 else 0
    size = side * (4 << 2)
    return {"img_size": size} if side and side**2 == shape[1] and size % STRIDE == 0 else None
