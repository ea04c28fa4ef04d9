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

    def linear(self, name: str, x: str, factors: np.ndarray | None = None) -> str:
        """x W^T + b; factors: [O], by which the outputs are multiplied."""
        weight = self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        if factors is not None:
            weight, bias = weight * factors, None if bias is None else bias * factors
        y = self.graph.add("MatMul", x, self.graph.constant(f"{name}.weight", weight))
        return y if bias is None else self.graph.add("Add", y, self.graph.constant(f"{name}.bias", bias))

    def norm(self, name: str, x: str, eps: float) -> str:
        """LayerNorm over the last axis."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        return self.graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)

    def conv(self, name: str, x: str, stride: int, pad: int, groups: int = 1) -> str:
        """Convolution of a map [B, C, H, W]."""
        given = [self.tensor(f"{name}.{part}") for part in ("weight", "bias") if f"{name}.{part}" in self.tensors]
        return self.graph.add("Conv", x, *given, strides=[stride] * 2, pads=[pad] * 4, group=groups)

    def attend(self, q: str, k: str, v: str, batch: int, queries: int, keys: int, dim: int, heads: int) -> str:
        """softmax(q k^T) v of [batch, N, C] on [batch, M, C]; the scale is in q already."""
        graph = self.graph

        def by_head(x: str, count: int, perm: list[int]) -> str:
            return graph.add("Transpose", graph.reshape(x, batch, count, heads, dim // heads), perm=perm)

        q_bhnd, v_bhmd = by_head(q, queries, [0, 2, 1, 3]), by_head(v, keys, [0, 2, 1, 3])
        scores = graph.add("MatMul", q_bhnd, by_head(k, keys, [0, 2, 3, 1]))
        out = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v_bhmd)
        return graph.reshape(graph.add("Transpose", out, perm=[0, 2, 1, 3]), batch, queries, dim)
