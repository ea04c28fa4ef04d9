"""The layers that models are made of, as ONNX nodes. B batch, N queries, M keys, C width, H heads, D = C/H."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .graph import Graph


class Layers:
    """Writes layers into a graph by the names of their tensors; every method returns the name of its output.

    tensors: float32, by official name. batch: pictures of a call.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], batch: int):
        self.tensors, self.batch, self.graph = tensors, batch, Graph()

    def tensor(self, name: str) -> str:
        """A tensor of the model as a constant."""
        return self.graph.constant(name, self.tensors[name])

    def linear(self, name: str, x: str, factors: np.ndarray | None = None, into: str | None = None) -> str:
        """x W^T + b; factors: [O], by which the outputs are multiplied. into: the name of the output."""
        weight = self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        if factors is not None:
            weight, bias = weight * factors, None if bias is None else bias * factors
        weight = self.graph.constant(f"{name}.weight", weight)
        if bias is None:
            return self.graph.add("MatMul", x, weight, into=into)
        return self.graph.add(
            "Add", self.graph.add("MatMul", x, weight), self.graph.constant(f"{name}.bias", bias), into=into
        )

    def norm(self, name: str, x: str, eps: float) -> str:
        """LayerNorm over the last axis."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        return self.graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)

    def conv(self, name: str, x: str, stride: int, pad: int, groups: int = 1) -> str:
        """Convolution of a map [B, C, H, W]."""
        given = [self.tensor(f"{name}.{part}") for part in ("weight", "bias") if f"{name}.{part}" in self.tensors]
        return self.graph.add("Conv", x, *given, strides=[stride] * 2, pads=[pad] * 4, group=groups)

    def patches(self, name: str, x: str, patch: int, multi_conv: bool) -> str:
        """A patch embedding of images, as a map: one convolution, or the three of the dagger variants."""
        if not multi_conv:
            return self.conv(name, x, patch, 0)
        steps = ((4, 3), (3, 0), (1, 1)) if patch == 12 else ((4, 3), (2, 1), (2, 1))
        for k, (stride, pad) in enumerate(steps):
            x = self.conv(f"{name}.{2 * k}", self.graph.add("Relu", x) if k else x, stride, pad)
        return x

    def token_and_patches(self, cls_token: str, pos_embed: str, x: str, dim: int, count: int) -> str:
        """A map as tokens with class token and positions, [B, 1 + count, C]."""
        x = self.graph.add("Transpose", self.graph.reshape(x, self.batch, dim, count), perm=[0, 2, 1])
        position = self.tensors[pos_embed]
        x = self.graph.add("Add", x, self.graph.constant(pos_embed, position[:, 1:]))
        token = np.repeat(self.tensors[cls_token] + position[:, :1], self.batch, 0)
        return self.graph.add("Concat", self.graph.constant(cls_token, token), x, axis=1)

    def block(self, name: str, x: str, count: int, dim: int, heads: int, eps: float, gelu: str = "none") -> str:
        """A pre-norm transformer block on tokens [B, count, C]."""
        add = self.graph.add
        factors = np.repeat(np.array([(dim // heads) ** -0.5, 1, 1], np.float32), dim)
        qkv = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x, eps), factors)
        q, k, v = self.graph.split(qkv, dim, dim, dim)
        x = add("Add", x, self.linear(f"{name}.attn.proj", self.attend(q, k, v, self.batch, count, count, dim, heads)))
        inner = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x, eps))
        return add("Add", x, self.linear(f"{name}.mlp.fc2", self.graph.gelu(inner, gelu)))

    def attend(
        self,
        q: str,
        k: str,
        v: str,
        batch: int,
        queries: int,
        keys: int,
        dim: int,
        heads: int,
        bias: str | None = None,
        groups: int = 1,
    ) -> str:
        """softmax(q k^T + bias) v of [batch, N, C] on [batch, M, C]; the scale is in q already.

        bias: [1, H, N, M], or [groups, H, N, M] where the batch is as many groups for each picture.
        """
        graph = self.graph

        def by_head(x: str, count: int, perm: list[int]) -> str:
            return graph.add("Transpose", graph.reshape(x, batch, count, heads, dim // heads), perm=perm)

        q_bhnd, v_bhmd = by_head(q, queries, [0, 2, 1, 3]), by_head(v, keys, [0, 2, 1, 3])
        scores = graph.add("MatMul", q_bhnd, by_head(k, keys, [0, 2, 3, 1]))
        if bias is not None and groups > 1:
            scores = graph.add("Add", graph.reshape(scores, batch // groups, groups, heads, queries, keys), bias)
            scores = graph.reshape(scores, batch, heads, queries, keys)
        elif bias is not None:
            scores = graph.add("Add", scores, bias)
        out = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v_bhmd)
        return graph.reshape(graph.add("Transpose", out, perm=[0, 2, 1, 3]), batch, queries, dim)
