"""A CrossViT as an ONNX graph, from its numbers and tensors alone, without MindSpore.

Written by hand and not by mindspore.export: that knows neither Erf nor Rsqrt, stops at opset 11 and takes LayerNorm
apart. B batch, P patches, N = 1 + P tokens, C width, H heads, D = C/H. Tokens travel as [B, N, C] here: runtimes fuse
those best. Departures from models/crossvit.py, none of which changes a logit by more than rounding: the attention's
scale lies in the query weights and the mean of the heads in theirs, and after the last encoder only the class tokens
go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..models.crossvit_config import NUMERICS, CrossViTConfig
from ..models.interpolation import MATRICES
from .layers import Layers
from .t2t_onnx import token_to_token

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


class _Writer(Layers):
    def __init__(self, config: CrossViTConfig, tensors: Mapping[str, np.ndarray], batch: int):
        super().__init__(tensors, batch)
        self.config, self.numerics = config, NUMERICS[config.numerics]

    def write(self) -> None:
        """Adds all nodes."""
        tokens = [self._embed(i) for i in range(2)]
        for k in range(len(self.config.depth)):
            tokens = self._encoder(k, tokens)
        heads = [self._head(i, tokens[i]) for i in range(2)]
        self.graph.add("Add", *heads, into=OUTPUT)

    def _embed(self, i: int) -> str:
        """The images as [B, N, C] tokens with class token and positions."""
        graph, dim, size = self.graph, self.config.embed_dim[i], self.config.img_size[i]
        x = self._resize(size)
        if self.config.hybrid_backbone:
            x = token_to_token(self, self.config, i, x)
        else:
            patch = self.config.patch_size[i]
            x = self.patches(f"patch_embed.{i}.proj", x, patch, self.config.multi_conv)
            x = graph.reshape(x, self.batch, dim, self.config.patches[i])
            x = graph.add("Transpose", x, perm=[0, 2, 1])
        position, extra = self.tensors[f"pos_embed.{i}"], int(self.config.cls_token)
        x = graph.add("Add", x, graph.constant(f"pos_embed.{i}", position[:, extra:]))
        if not self.config.cls_token:
            return x
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

    def _encoder(self, k: int, tokens: list[str]) -> list[str]:
        """The tokens of both branches after encoder k; after the last one, their class tokens [B, 1, C] only."""
        for i in range(2):
            for b in range(self.config.depth[k][i]):
                tokens[i] = self._block(f"blocks.{k}.blocks.{i}.{b}", i, tokens[i])
        last = k == len(self.config.depth) - 1
        fusion = self.config.fusion
        if fusion == "cross_attention":
            return self._cross_attention(k, tokens, last)
        if fusion == "class_token" or (fusion == "pairwise" and last):  # whose patches nobody reads any more
            return self._sums(k, tokens, last)
        fused = {"none": lambda k, x: x, "all_attention": self._all_attention, "pairwise": self._pairwise}
        tokens = fused[fusion](k, tokens)
        return [self.graph.cut(x, 0, 1) for x in tokens] if last else tokens

    def _split(self, tokens: list[str]) -> tuple[list[str], list[str]]:
        """Class tokens [B, 1, C] and patches [B, P, C] of both branches; without class tokens, the patches' means."""
        graph, counts = self.graph, self.config.tokens
        if not self.config.cls_token:
            return [graph.add("ReduceMean", x, axes=[1], keepdims=1) for x in tokens], tokens
        return [graph.cut(x, 0, 1) for x in tokens], [graph.cut(tokens[i], 1, counts[i]) for i in range(2)]

    def _cross_attention(self, k: int, tokens: list[str], last: bool) -> list[str]:
        classes, patches = self._split(tokens)
        fused = [self._read(k, i, classes[i], patches[1 - i]) for i in range(2)]
        if not self.config.cls_token:
            return [self.graph.add("Add", patches[i], fused[i]) for i in range(2)]
        return fused if last else [self.graph.add("Concat", fused[i], patches[i], axis=1) for i in range(2)]

    def _read(self, k: int, i: int, token: str, patches: str) -> str:
        """The class token of branch i after it has read the other branch's patches."""
        name, stacked = f"blocks.{k}.fusion.{i}", self.config.depth[k][2]
        token = self._project(f"blocks.{k}.projs.{i}", token)
        seen = self.graph.add("Concat", token, patches, axis=1)
        count = self.config.patches[1 - i] + 1
        for b in range(max(stacked, 1)):
            token = self._cross_block(f"{name}.{b}" if stacked else name, 1 - i, token, seen, count)
            seen, count = token, 1  # later blocks see only the token
        return self._project(f"blocks.{k}.revert_projs.{i}", token)

    def _all_attention(self, k: int, tokens: list[str]) -> list[str]:
        counts = self.config.tokens
        joint = [self._project(f"blocks.{k}.projs.{i}", tokens[i]) for i in range(2)]
        x = self.graph.add("Concat", *joint, axis=1)
        x = self._self_attention(f"blocks.{k}.fusion", 1, x, sum(counts))
        parts = [self.graph.cut(x, 0, counts[0]), self.graph.cut(x, counts[0], sum(counts))]
        return [self._project(f"blocks.{k}.revert_projs.{i}", parts[i]) for i in range(2)]

    def _sums(self, k: int, tokens: list[str], last: bool) -> list[str]:
        classes, patches = self._split(tokens)
        total = self.graph.add("Add", self._project(f"blocks.{k}.projs.0", classes[0]), classes[1])
        fused = [self._project(f"blocks.{k}.revert_projs.0", total), total]
        return fused if last else [self.graph.add("Concat", fused[i], patches[i], axis=1) for i in range(2)]

    def _pairwise(self, k: int, tokens: list[str]) -> list[str]:
        add = self.graph.add
        classes, patches = self._split([self._project(f"blocks.{k}.projs.0", tokens[0]), tokens[1]])
        total = add("Add", *classes)
        resized = [self._other_grid(i, patches[1 - i]) for i in range(2)]
        fused = [add("Concat", total, add("Add", patches[i], resized[i]), axis=1) for i in range(2)]
        return [self._project(f"blocks.{k}.revert_projs.0", fused[0]), fused[1]]

    def _other_grid(self, i: int, patches: str) -> str:
        """Patches of the other branch on the grid of branch i, [B, P_i, D]."""
        graph, width = self.graph, self.config.embed_dim[1]
        new, old = (math.isqrt(self.config.patches[j]) for j in (i, 1 - i))
        matrix = MATRICES["bilinear_middles"](old, new)
        x = graph.add("Transpose", patches, perm=[0, 2, 1])
        x = graph.reshape(x, self.batch, width, old, old)
        x = graph.add("MatMul", x, graph.constant(f"grid.{i}.columns", matrix))
        x = graph.add("MatMul", graph.constant(f"grid.{i}.rows", matrix.T), x)
        return graph.add("Transpose", graph.reshape(x, self.batch, width, new * new), perm=[0, 2, 1])

    def _project(self, name: str, token: str) -> str:
        if f"{name}.2.weight" not in self.tensors:  # an identity between equal widths
            return token
        x = self.norm(f"{name}.0", token, _OUTER_EPS)
        return self.linear(f"{name}.2", self.graph.gelu(x, self.numerics.gelu))

    def _block(self, name: str, i: int, x: str) -> str:
        x = self._self_attention(name, i, x, self.config.tokens[i])
        inner = self.norm(f"{name}.norm2", x, self.numerics.block_eps)
        inner = self.graph.gelu(self.linear(f"{name}.mlp.fc1", inner), self.numerics.gelu)
        return self.graph.add("Add", x, self.linear(f"{name}.mlp.fc2", inner))

    def _self_attention(self, name: str, i: int, x: str, count: int) -> str:
        dim = self.config.embed_dim[i]
        inner = self.norm(f"{name}.norm1", x, self.numerics.block_eps)
        factors = np.repeat(np.array([self._scale(i), 1, 1], np.float32), dim)
        q, k, v = self.graph.split(self.linear(f"{name}.attn.qkv", inner, factors), dim, dim, dim)
        return self.graph.add("Add", x, self.linear(f"{name}.attn.proj", self._attend(i, q, k, v, count, count)))

    def _cross_block(self, name: str, j: int, token: str, seen: str, count: int) -> str:
        """token [B, 1, C] + attention of it on what it sees, [B, count, C], itself first."""
        inner = self.norm(f"{name}.norm1", seen, self.numerics.block_eps)
        first = self.graph.cut(inner, 0, 1) if count > 1 else inner
        q = self.linear(f"{name}.attn.wq", first, np.full(self.config.embed_dim[j], self._scale(j), np.float32))
        k, v = (self.linear(f"{name}.attn.{layer}", inner) for layer in ("wk", "wv"))
        return self.graph.add("Add", token, self.linear(f"{name}.attn.proj", self._attend(j, q, k, v, 1, count)))

    def _scale(self, i: int) -> float:
        return (self.config.embed_dim[i] // self.config.num_heads[i]) ** -0.5

    def _attend(self, i: int, q: str, k: str, v: str, queries: int, keys: int) -> str:
        dim, heads = self.config.embed_dim[i], self.config.num_heads[i]
        return self.attend(q, k, v, self.batch, queries, keys, dim, heads)

    def _head(self, i: int, token: str) -> str:
        x = self.norm(f"norm.{i}", token, _OUTER_EPS)
        if not self.config.cls_token:
            x = self.graph.add("ReduceMean", x, axes=[1], keepdims=1)
        x = self.graph.reshape(x, self.batch, self.config.embed_dim[i])
        classes = len(self.tensors[f"head.{i}.bias"])
        return self.linear(f"head.{i}", x, np.full(classes, 0.5, np.float32))
