"""A CabViT-H as an ONNX graph, from its numbers and tensors alone, without MindSpore.

B batch, S side of a map, N = S*S tokens, M digest tokens, C width, H heads. Written by hand, see crossvit_onnx. Batch
norms lie in the convolutions before them and layer scales in the linear layers, which changes rounding only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..models.cabvit_config import DIGEST, CabViTConfig
from .layers import Layers

INPUT, OUTPUT = "images", "logits"
_CONV_EPS, _EPS = 1e-6, 1e-5
_BATCH_NORM_EPS = 1e-5


def onnx_model(config: CabViTConfig, tensors: Mapping[str, np.ndarray], batch: int) -> Any:
    """The onnx.ModelProto from `images` [batch, 3, S, S] to `logits` [batch, classes].

    tensors: float32, by official name, running statistics included.
    """
    writer = _Writer(config, tensors, batch)
    writer.write()
    shapes = {INPUT: (batch, 3, config.img_size, config.img_size)}, {OUTPUT: (batch, len(tensors["head.bias"]))}
    return writer.graph.model("cabvit", *shapes)


class _Writer(Layers):
    def __init__(self, config: CabViTConfig, tensors: Mapping[str, np.ndarray], batch: int):
        super().__init__(tensors, batch)
        self.config = config

    def write(self) -> None:
        graph, dims = self.graph, self.config.embed_dims
        x = self._gelu(self._conv_norm("patch_embed.seq.0", INPUT, 2, 1))
        x = self._conv_norm("patch_embed.seq.2", x, 2, 1)
        for stage in range(4):
            digests: list[str] = []
            for d in range(self.config.depths[stage]):
                name = f"layer_{stage}.blocks.{d}"
                x = self._conv_block(name, x, stage) if stage < 2 else self._block(name, x, stage, d, digests)
            if stage < 3:
                x = self._merge(f"layer_{stage}.downsample", x, dims[stage + 1])
        mean = graph.reshape(graph.add("GlobalAveragePool", x), self.batch, dims[3])
        self.linear("head", self.norm("norm_head", mean, _EPS), into=OUTPUT)

    def _conv_norm(self, name: str, x: str, stride: int, pad: int, groups: int = 1) -> str:
        """Convolution and batch norm of a map, as one convolution."""
        bn = {part: self.tensors[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        factor = bn["weight"] / np.sqrt(bn["running_var"] + np.float32(_BATCH_NORM_EPS))
        weight = self.graph.constant(f"{name}.c.weight", self.tensors[f"{name}.c.weight"] * factor[:, None, None, None])
        bias = self.graph.constant(f"{name}.bn.bias", bn["bias"] - bn["running_mean"] * factor)
        return self.graph.add("Conv", x, weight, bias, strides=[stride] * 2, pads=[pad] * 4, group=groups)

    def _merge(self, name: str, x: str, dim: int) -> str:
        x = self._gelu(self._conv_norm(f"{name}.conv1", x, 1, 0))
        return self._conv_norm(f"{name}.conv3", self._gelu(self._conv_norm(f"{name}.conv2", x, 2, 1, dim)), 1, 0)

    def _conv_block(self, name: str, x: str, stage: int) -> str:
        """On a map [B, C, S, S]."""
        add, dim = self.graph.add, self.config.embed_dims[stage]
        y = add("Transpose", self.conv(f"{name}.dwconv", x, 1, 3, dim), perm=[0, 2, 3, 1])
        y = self._gelu(self.linear(f"{name}.pwconv1", self.norm(f"{name}.norm", y, _CONV_EPS)))
        y = self.linear(f"{name}.pwconv2", y, self.tensors[f"{name}.gamma"])
        return add("Add", x, add("Transpose", y, perm=[0, 3, 1, 2]))

    def _block(self, name: str, x: str, stage: int, d: int, digests: list[str]) -> str:
        """On a map [B, C, S, S]; the block's own digest, [B, M, C], joins those of the blocks before."""
        dim, side = self.config.embed_dims[stage], self.config.side(stage)
        tokens = self._tokens(x, dim, side * side)
        tokens = self.graph.add("Add", tokens, self._attention(name, tokens, stage, digests))
        x = self._map(tokens, dim, side)
        if d < self.config.depths[stage] - 1:
            own = self.conv(f"{name}.dw_conv", x, DIGEST[1], DIGEST[2], dim)
            digests.append(self._tokens(own, dim, self.config.digest(stage)))
        tokens = self._tokens(self._conv_norm(f"{name}.local_conv", x, 1, 1, dim), dim, side * side)
        y = self.norm(f"{name}.mlp.norm", self.norm(f"{name}.norm2", tokens, _EPS), _EPS)
        y = self._gelu(self.linear(f"{name}.mlp.fc1", y))
        y = self.linear(f"{name}.mlp.fc2", y, self.tensors[f"{name}.gamma_2"])
        return self._map(self.graph.add("Add", tokens, y), dim, side)

    def _attention(self, name: str, x: str, stage: int, digests: list[str]) -> str:
        """gamma_1 * proj(attention of tokens [B, N, C] to themselves and the digests)."""
        add, dim, heads = self.graph.add, self.config.embed_dims[stage], self.config.num_heads[stage]
        n, seen = self.config.side(stage) ** 2, len(digests) * self.config.digest(stage)
        bias = self._bias(name, stage, seen)
        inner = self.norm(f"{name}.norm1", x, _EPS)
        if digests:
            s = digests[0] if len(digests) == 1 else add("Concat", *digests, axis=1)
            s = add("Mul", s, self.tensor(f"{name}.s_scale_factors"))
            inner = add("Concat", inner, self.norm(f"{name}.s_norm", s, _EPS), axis=1)
        factors = np.repeat(np.array([(dim // heads) ** -0.5, 1, 1], np.float32), dim)
        q, k, v = self.graph.split(self.linear(f"{name}.qkv", inner, factors), dim, dim, dim)
        q = self.graph.cut(q, 0, n) if digests else q
        y = self.attend(q, k, v, self.batch, n, n + seen, dim, heads, bias)
        return self.linear(f"{name}.proj", y, self.tensors[f"{name}.gamma_1"])

    def _bias(self, name: str, stage: int, seen: int) -> str:
        """[1, H, N, N + M] of the scores: by distance for the map, the same for all queries for the digests."""
        side, table = self.config.side(stage), self.tensors[f"{name}.attention_biases"]
        row, column = np.divmod(np.arange(side * side), side)
        distance = np.abs(row[:, None] - row) * side + np.abs(column[:, None] - column)
        bias = table[:, distance][None]
        if seen:
            shared = self.tensors[f"{name}.s_token_bias"]
            bias = np.concatenate((bias, np.broadcast_to(shared, (*bias.shape[:3], seen))), 3)
        return self.graph.constant(f"{name}.attention_biases", bias)

    def _gelu(self, x: str) -> str:
        return self.graph.gelu(x, "none")

    def _tokens(self, x: str, dim: int, count: int) -> str:
        return self.graph.add("Transpose", self.graph.reshape(x, self.batch, dim, count), perm=[0, 2, 1])

    def _map(self, x: str, dim: int, side: int) -> str:
        x = self.graph.add("Transpose", x, perm=[0, 2, 1])
        return self.graph.reshape(x, self.batch, dim, side, side)
