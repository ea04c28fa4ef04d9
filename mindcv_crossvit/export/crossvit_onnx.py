"""A CrossViT as an ONNX graph, from its numbers and tensors alone, without MindSpore.

Written by hand and not by mindspore.export: that knows neither Erf nor Rsqrt, stops at opset 11 and takes LayerNorm
apart. B batch, P patches, N = 1 + P tokens, C width, H heads, D = C/H. Tokens travel as [B, N, C] here: runtimes fuse
those best. Departures from models/crossvit.py, none of which changes a logit by more than rounding: the attention's
scale lies in the query weights and the mean of the heads in theirs, and after the last encoder only the class tokens
go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..models.crossvit_config import NUMERICS, CrossViTConfig
from ..models.interpolation import MATRICES
from .graph import Graph

INPUT, OUTPUT = "images", "logits"
_OUTER_EPS = 1e-6


def onnx_model(config: CrossViTConfig, tensors: Mapping[str, np.ndarray], batch: int) -> Any:
    """The onnx.ModelProto from `images` [batch, 3, S, S] to `logits` [batch, classes].

    tensors: float32, by official name.
    """
    size, classes = config.img_size[0], len(tensors["head.0.bias"])
    writer = _Writer(config, tensors, batch)
    writer.write()
    return writer.graph.model("crossvit", {INPUT: (batch, 3, size, size)}, {OUTPUT: (batch, classes)})


class _Writer:
    def __init__(self, config: CrossViTConfig, tensors: Mapping[str, np.ndarray], batch: int):
        self.config, self.tensors, self.batch = config, tensors, batch
        self.numerics = NUMERICS[config.numerics]
        self.graph = Graph()

    def write(self) -> None:
        tokens = [self._embed(i) for i in range(2)]
        for k in range(len(self.config.depth)):
            tokens = self._encoder(k, tokens)
        heads = [self._head(i, tokens[i]) for i in range(2)]
        self.graph.add("Add", *heads, into=OUTPUT)

    def _embed(self, i: int) -> str:
        """The images as [B, N, C] tokens with class token and positions."""
        graph, dim, size = self.graph, self.config.embed_dim[i], self.config.img_size[i]
        patches = (size // self.config.patch_size[i]) ** 2
        x = self._convolutions(i, self._resize(size))
        x = graph.add("Transpose", graph.reshape(x, self.batch, dim, patches), perm=[0, 2, 1])
        position = self.tensors[f"pos_embed.{i}"]
        x = graph.add("Add", x, graph.constant(f"pos_embed.{i}", position[:, 1:]))
        token = np.repeat(self.tensors[f"cls_token.{i}"] + position[:, :1], self.batch, 0)
        return graph.add("Concat", graph.constant(f"cls_token.{i}", token), x, axis=1)

    def _resize(self, size: int) -> str:
        """As two products with a constant matrix: runtimes' own cubic Resize takes half a forward pass."""
        given = self.config.img_size[0]
        if size == given:
            return INPUT
        matrix = MATRICES[self.numerics.resize](given, size)
        rows = self.graph.add("MatMul", INPUT, self.graph.constant("resize.columns", matrix))
        return self.graph.add("MatMul", self.graph.constant("resize.rows", matrix.T), rows)

    def _convolutions(self, i: int, x: str) -> str:
        patch, name = self.config.patch_size[i], f"patch_embed.{i}.proj"
        if not self.config.multi_conv:
            return self._conv(name, x, patch, 0)
        steps = ((4, 3), (3, 0), (1, 1)) if patch == 12 else ((4, 3), (2, 1), (2, 1))
        for k, (stride, pad) in enumerate(steps):
            x = self._conv(f"{name}.{2 * k}", self.graph.add("Relu", x) if k else x, stride, pad)
        return x

    def _conv(self, name: str, x: str, stride: int, pad: int) -> str:
        given = [self._tensor(f"{name}.{part}") for part in ("weight", "bias") if f"{name}.{part}" in self.tensors]
        return self.graph.add("Conv", x, *given, strides=[stride] * 2, pads=[pad] * 4)

    def _encoder(self, k: int, tokens: list[str]) -> list[str]:
        """The tokens of both branches after encoder k; after the last one, their class tokens [B, 1, C] only."""
        graph, counts = self.graph, self.config.tokens
        for i in range(2):
            for b in range(self.config.depth[k][i]):
                tokens[i] = self._block(f"blocks.{k}.blocks.{i}.{b}", i, tokens[i])
        classes = [graph.cut(tokens[i], 0, 1) for i in range(2)]
        patches = [graph.cut(tokens[i], 1, counts[i]) for i in range(2)]
        fused = [self._fuse(k, i, classes[i], patches[1 - i]) for i in range(2)]
        if k == len(self.config.depth) - 1:
            return fused
        return [graph.add("Concat", fused[i], patches[i], axis=1) for i in range(2)]

    def _fuse(self, k: int, i: int, token: str, patches: str) -> str:
        """The class token of branch i after it has read the other branch's patches."""
        name, stacked = f"blocks.{k}.fusion.{i}", self.config.depth[k][2]
        token = self._project(f"blocks.{k}.projs.{i}", token)
        seen = self.graph.add("Concat", token, patches, axis=1)
        count = self.config.tokens[1 - i]
        for b in range(max(stacked, 1)):
            token = self._cross_block(f"{name}.{b}" if stacked else name, 1 - i, token, seen, count)
            seen, count = token, 1  # later blocks see only the token
        return self._project(f"blocks.{k}.revert_projs.{i}", token)

    def _project(self, name: str, token: str) -> str:
        x = self._norm(f"{name}.0", token, _OUTER_EPS)
        return self._linear(f"{name}.2", self.graph.gelu(x, self.numerics.gelu))

    def _block(self, name: str, i: int, x: str) -> str:
        add = self.graph.add
        dim, count = self.config.embed_dim[i], self.config.tokens[i]
        inner = self._norm(f"{name}.norm1", x, self.numerics.block_eps)
        factors = np.repeat(np.array([self._scale(i), 1, 1], np.float32), dim)
        qkv = self._linear(f"{name}.attn.qkv", inner, factors)
        q, k, v = self.graph.split(qkv, dim, dim, dim)
        x = add("Add", x, self._linear(f"{name}.attn.proj", self._attend(i, q, k, v, count, count)))
        inner = self._norm(f"{name}.norm2", x, self.numerics.block_eps)
        inner = self.graph.gelu(self._linear(f"{name}.mlp.fc1", inner), self.numerics.gelu)
        return add("Add", x, self._linear(f"{name}.mlp.fc2", inner))

    def _cross_block(self, name: str, j: int, token: str, seen: str, count: int) -> str:
        """token [B, 1, C] + attention of it on what it sees, [B, count, C], itself first."""
        inner = self._norm(f"{name}.norm1", seen, self.numerics.block_eps)
        first = self.graph.cut(inner, 0, 1) if count > 1 else inner
        q = self._linear(f"{name}.attn.wq", first, np.full(self.config.embed_dim[j], self._scale(j), np.float32))
        k, v = (self._linear(f"{name}.attn.{layer}", inner) for layer in ("wk", "wv"))
        return self.graph.add("Add", token, self._linear(f"{name}.attn.proj", self._attend(j, q, k, v, 1, count)))

    def _scale(self, i: int) -> float:
        return (self.config.embed_dim[i] // self.config.num_heads[i]) ** -0.5

    def _attend(self, i: int, q: str, k: str, v: str, queries: int, keys: int) -> str:
        """softmax(q k^T) v of [B, queries, C] on [B, keys, C]; the scale is in q already."""
        graph, heads, dim = self.graph, self.config.num_heads[i], self.config.embed_dim[i]

        def by_head(x: str, count: int, perm: list[int]) -> str:
            return graph.add("Transpose", graph.reshape(x, self.batch, count, heads, dim // heads), perm=perm)

        q_bhmd, v_bhnd = by_head(q, queries, [0, 2, 1, 3]), by_head(v, keys, [0, 2, 1, 3])
        scores = graph.add("MatMul", q_bhmd, by_head(k, keys, [0, 2, 3, 1]))
        out = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v_bhnd)
        return graph.reshape(graph.add("Transpose", out, perm=[0, 2, 1, 3]), self.batch, queries, dim)

    def _linear(self, name: str, x: str, factors: np.ndarray | None = None) -> str:
        """x W^T + b; factors: [O], by which the outputs are multiplied."""
        weight = self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        if factors is not None:
            weight, bias = weight * factors, None if bias is None else bias * factors
        y = self.graph.add("MatMul", x, self.graph.constant(f"{name}.weight", weight))
        return y if bias is None else self.graph.add("Add", y, self.graph.constant(f"{name}.bias", bias))

    def _norm(self, name: str, x: str, eps: float) -> str:
        weight, bias = self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias")
        return self.graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)

    def _head(self, i: int, token: str) -> str:
        x = self.graph.reshape(self._norm(f"norm.{i}", token, _OUTER_EPS), self.batch, self.config.embed_dim[i])
        classes = len(self.tensors[f"head.{i}.bias"])
        return self._linear(f"head.{i}", x, np.full(classes, 0.5, np.float32))

    def _tensor(self, name: str) -> str:
        return self.graph.constant(name, self.tensors[name])
