"""A token-to-token embedding, see models/t2t.py, as nodes of a CrossViT's ONNX graph. B batch, N tokens, E = 64."""

from __future__ import annotations

import math

import numpy as np

from ..models.crossvit_config import FEATURES, NUMERICS, SOFT_SPLITS, TOKEN_WIDTH, CrossViTConfig, soft_split_sides
from .layers import Layers

_EPS = 1e-5


def token_to_token(writer: Layers, config: CrossViTConfig, i: int, x: str) -> str:
    """Images [B, 3, S, S] -> patch tokens of branch i, [B, P, C]."""
    graph, name, gelu = writer.graph, f"patch_embed.{i}", NUMERICS[config.numerics].gelu
    patch = config.patch_size[i]
    sides = (config.img_size[i], *soft_split_sides(config.img_size[i], patch))
    attend = {"t2t": _transformer, "performer": _performer}[config.hybrid_backbone or ""]
    channels = 3
    for stage, split in enumerate(SOFT_SPLITS[patch]):
        x = _soft_split(writer, x, channels, sides[stage], split)
        if stage == 2:
            return writer.linear(f"{name}.project", x)
        x = attend(writer, f"{name}.attention{stage + 1}", x, gelu)
        x = graph.add("Transpose", x, perm=[0, 2, 1])
        x = graph.reshape(x, writer.batch, TOKEN_WIDTH, sides[stage + 1], sides[stage + 1])
        channels = TOKEN_WIDTH
    raise AssertionError("three soft splits")


def _soft_split(writer: Layers, x: str, channels: int, side: int, split: tuple[int, int, int]) -> str:
    """Windows of a map [B, E, H, W] as rows [B, N, E*k*k], by their positions in the padded map."""
    graph, (kernel, stride, pad) = writer.graph, split
    width = side + 2 * pad
    starts = np.arange(0, width - kernel + 1, stride)
    within = (np.arange(kernel)[:, None] * width + np.arange(kernel)).reshape(-1)
    places = ((starts[:, None] * width + starts).reshape(-1, 1) + within).reshape(-1).astype(np.int64)
    x = graph.add("Pad", x, graph.integers(0, 0, pad, pad, 0, 0, pad, pad))
    x = graph.reshape(x, writer.batch, channels, width * width)
    x = graph.add("Gather", x, graph.constant(f"windows.{side}.{kernel}.{stride}", places), axis=2)
    x = graph.reshape(x, writer.batch, channels, len(starts) ** 2, kernel * kernel)
    x = graph.add("Transpose", x, perm=[0, 2, 1, 3])
    return graph.reshape(x, writer.batch, len(starts) ** 2, channels * kernel * kernel)


def _transformer(writer: Layers, name: str, x: str, gelu: str) -> str:
    add = writer.graph.add
    factors = np.ones(3 * TOKEN_WIDTH, np.float32)
    factors[:TOKEN_WIDTH] = writer.tensors[f"{name}.norm1.weight"].size ** -0.5
    qkv = writer.linear(f"{name}.attn.qkv", writer.norm(f"{name}.norm1", x, _EPS), factors)
    q, k, v = writer.graph.split(qkv, TOKEN_WIDTH, TOKEN_WIDTH, TOKEN_WIDTH)
    scores = add("MatMul", q, add("Transpose", k, perm=[0, 2, 1]))
    read = add("MatMul", add("Softmax", scores, axis=-1), v)
    x = add("Add", v, writer.linear(f"{name}.attn.proj", read))
    return _mlp(writer, name, x, ("fc1", "fc2"), gelu)


def _performer(writer: Layers, name: str, x: str, gelu: str) -> str:
    graph, add = writer.graph, writer.graph.add
    kqv = writer.linear(f"{name}.kqv", writer.norm(f"{name}.norm1", x, _EPS))
    k, q, v = graph.split(kqv, TOKEN_WIDTH, TOKEN_WIDTH, TOKEN_WIDTH)
    k, q = _features(writer, name, k), _features(writer, name, q)
    total = add("ReduceSum", add("Mul", q, add("ReduceSum", k, graph.integers(1))), graph.integers(2))
    values = add("MatMul", add("Transpose", k, perm=[0, 2, 1]), v)
    read = add("Div", add("MatMul", q, values), add("Add", total, graph.number(1e-8)))
    x = add("Add", v, writer.linear(f"{name}.proj", read))
    return _mlp(writer, name, x, ("0", "2"), gelu)


def _features(writer: Layers, name: str, u: str) -> str:
    graph, add = writer.graph, writer.graph.add
    products = add("MatMul", u, graph.constant(f"{name}.w", writer.tensors[f"{name}.w"].T))
    squares = add("Mul", add("ReduceSum", add("Mul", u, u), graph.integers(2)), graph.number(0.5))
    return add("Mul", add("Exp", add("Sub", products, squares)), graph.number(1 / math.sqrt(FEATURES)))


def _mlp(writer: Layers, name: str, x: str, layers: tuple[str, str], gelu: str) -> str:
    inner = writer.linear(f"{name}.mlp.{layers[0]}", writer.norm(f"{name}.norm2", x, _EPS))
    inner = writer.graph.gelu(inner, gelu)
    return writer.graph.add("Add", x, writer.linear(f"{name}.mlp.{layers[1]}", inner))
