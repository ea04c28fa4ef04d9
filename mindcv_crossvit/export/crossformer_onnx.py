"""A CrossFormer or CrossFormer++ as an ONNX graph, from its numbers and tensors alone, without MindSpore.

B batch, H x W grid of L tokens, C width, h heads, groups of N tokens. Tokens travel as [B, L, C]. Written by hand, see
crossvit_onnx. Departures from models/crossformer.py, none of which changes a logit by more than rounding: the
attention's scale lies in the query weights, the position bias is computed here, and groups are gathered from the
tokens, where padding is any token, masked.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..models.crossformer_config import CrossFormerConfig
from ..models.crossformer_groups import Groups, block_groups, group_tokens, offset_index, offset_table
from .layers import Layers

INPUT, OUTPUT = "images", "logits"
_EPS = 1e-5
_MASKED = -3e4


def onnx_model(config: CrossFormerConfig, tensors: Mapping[str, np.ndarray], batch: int) -> Any:
    """The onnx.ModelProto from `images` [batch, 3, S, S] to `logits` [batch, classes].

    tensors: float32, by official name.
    """
    writer = _Writer(config, tensors, batch)
    writer.write()
    shapes = {INPUT: (batch, 3, config.img_size, config.img_size)}, {OUTPUT: (batch, len(tensors["head.bias"]))}
    return writer.graph.model("crossformer", *shapes)


class _Writer(Layers):
    def __init__(self, config: CrossFormerConfig, tensors: Mapping[str, np.ndarray], batch: int):
        super().__init__(tensors, batch)
        self.config = config

    def write(self) -> None:
        config, side = self.config, self.config.img_size // self.config.patch_size[0]
        x = self._scales("patch_embed.projs", INPUT, config.patch_size, config.patch_size[0])
        x = self.norm("patch_embed.norm", self._tokens(x, config.embed_dim, side), _EPS)
        for stage, depth in enumerate(config.depths):
            for block in range(depth):
                x = self._block(stage, block, x, side)
            if stage < len(config.depths) - 1:
                name, dim = f"layers.{stage}.downsample", config.dim(stage)
                x = self._map(self.norm(f"{name}.norm", x, _EPS), dim, side)
                side //= 2
                x = self._scales(f"{name}.reductions", x, config.merge_size[stage], 2)
                x = self._tokens(x, 2 * dim, side)
        x = self.norm("norm", x, _EPS)
        self.linear("head", self.graph.add("ReduceMean", x, axes=[1], keepdims=0), into=OUTPUT)

    def _scales(self, name: str, x: str, kernels: tuple[int, ...], stride: int) -> str:
        """A cross-scale embedding of a map."""
        scales = [self.conv(f"{name}.{i}", x, stride, (kernel - stride) // 2) for i, kernel in enumerate(kernels)]
        return scales[0] if len(scales) == 1 else self.graph.add("Concat", *scales, axis=1)

    def _block(self, stage: int, block: int, x: str, side: int) -> str:
        add, name, dim = self.graph.add, f"layers.{stage}.blocks.{block}", self.config.dim(stage)
        x = add("Add", x, self._attention(name, stage, block, x, side))
        inner = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x, _EPS))
        x = add("Add", x, self.linear(f"{name}.mlp.fc2", self.graph.gelu(inner, "none")))
        if self.config.has_acl(stage, block):
            y = self.conv(f"{name}.ex_conv", self._map(x, dim, side), 1, 1, groups=dim)
            x = self.norm(f"{name}.ex_ln", self._tokens(y, dim, side), _EPS)
        return x

    def _attention(self, name: str, stage: int, block: int, x: str, side: int) -> str:
        graph, dim, heads = self.graph, self.config.dim(stage), self.config.num_heads[stage]
        groups = block_groups(self.config, stage, block, side, side)
        factors = np.repeat(np.array([(dim // heads) ** -0.5, 1, 1], np.float32), dim)
        qkv = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x, _EPS), factors)
        if groups.padded and self.config.no_mask:  # padding is zeros before this layer
            bias = self.tensors.get(f"{name}.attn.qkv.bias", np.zeros(3 * dim, np.float32)) * factors
            row = graph.constant(f"{name}.padding", np.tile(bias, (self.batch, 1, 1)))
            qkv = graph.add("Concat", qkv, row, axis=1)
        tokens = group_tokens(groups)
        places = np.where(tokens < 0, side * side if self.config.no_mask else 0, tokens)
        qkv = graph.reshape(self._rows(qkv, places), self.batch * groups.groups, groups.tokens, 3 * dim)
        q, k, v = graph.split(qkv, dim, dim, dim)
        count, batch = groups.tokens, self.batch * groups.groups
        bias, several = self._bias(name, heads, groups)
        y = self.attend(q, k, v, batch, count, count, dim, heads, bias, several)
        y = self._rows(graph.reshape(y, self.batch, tokens.size, dim), _places_of(tokens, side * side))
        return self.linear(f"{name}.attn.proj", y)

    def _bias(self, name: str, heads: int, groups: Groups) -> tuple[str, int]:
        """The position bias [1, h, N, N], or, where groups have padding that is masked, [groups, h, N, N]."""
        table = self._position_bias(f"{name}.attn.pos", groups.side)
        bias = table.T[:, offset_index(groups.side)][None]
        if groups.padded and not self.config.no_mask:
            bias = bias + np.where(group_tokens(groups) < 0, _MASKED, 0)[:, None, None]
        return self.graph.constant(f"{name}.attn.bias", bias.astype(np.float32)), len(bias)

    def _position_bias(self, name: str, side: int) -> np.ndarray:
        """[(2G-1)^2, h]: the bias of every offset, in float64."""

        def linear(layer: str, x: np.ndarray) -> np.ndarray:
            return (
                x @ self.tensors[f"{name}.{layer}.weight"].T.astype(np.float64) + self.tensors[f"{name}.{layer}.bias"]
            )

        x = linear("pos_proj", offset_table(side).astype(np.float64))
        for layer in ("pos1", "pos2", "pos3"):
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + _EPS)
            x = x * self.tensors[f"{name}.{layer}.0.weight"] + self.tensors[f"{name}.{layer}.0.bias"]
            x = linear(f"{layer}.2", np.maximum(x, 0))
        return x

    def _rows(self, x: str, rows: np.ndarray) -> str:
        """The tokens of every picture at these places."""
        name = f"rows({rows.size},{zlib.crc32(rows.astype(np.int64).tobytes())})"
        return self.graph.add("Gather", x, self.graph.constant(name, rows.reshape(-1).astype(np.int64)), axis=1)

    def _tokens(self, x: str, dim: int, side: int) -> str:
        return self.graph.add("Transpose", self.graph.reshape(x, self.batch, dim, side * side), perm=[0, 2, 1])

    def _map(self, x: str, dim: int, side: int) -> str:
        x = self.graph.add("Transpose", x, perm=[0, 2, 1])
        return self.graph.reshape(x, self.batch, dim, side, side)


def _places_of(tokens: np.ndarray, count: int) -> np.ndarray:
    """Where each token of the grid stands among the groups' places."""
    flat = tokens.reshape(-1)
    places = np.empty(count, np.int64)
    places[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    return places
