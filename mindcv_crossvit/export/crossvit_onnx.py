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
from .layers import Layers

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
        tokens = [self._embed(i) for i in range(2)]
        for k in range(len(self.config.depth)):
            tokens = self._encoder(k, tokens)
        heads = [self._head(i, tokens[i]) for i in range(2)]
        self.graph.add("Add", *heads, into=OUTPUT)

    def _embed(self, i: int) -> str:
        """The images as [B, N, C] tokens with class token and positions."""
        config, size, patch = self.config, self.config.img_size[i], self.config.patch_size[i]
        x = self.patches(f"patch_embed.{i}.proj", self._resize(size), patch, config.multi_conv)
        count = (size // patch) ** 2
        return self.token_and_patches(f"cls_token.{i}", f"pos_embed.{i}", x, config.embed_dim[i], count)

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
        graph, counts = self.graph, self.config.tokens
        for i in range(2):
            for b in range(self.config.depth[k][i]):
                dim, heads = self.config.embed_dim[i], self.config.num_heads[i]
                name, numerics = f"blocks.{k}.blocks.{i}.{b}", self.numerics
                tokens[i] = self.block(name, tokens[i], counts[i], dim, heads, numerics.block_eps, numerics.gelu)
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
        x = self.norm(f"{name}.0", token, _OUTER_EPS)
        return self.linear(f"{name}.2", self.graph.gelu(x, self.numerics.gelu))

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
        x = self.graph.reshape(self.norm(f"norm.{i}", token, _OUTER_EPS), self.batch, self.config.embed_dim[i])
        classes = len(self.tensors[f"head.{i}.bias"])
        return self.linear(f"head.{i}", x, np.full(classes, 0.5, np.float32))
