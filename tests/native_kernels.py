"""Calls the compiled kernels from numpy: `python native_kernels.py LIBRARY` checks them all."""

from __future__ import annotations

import ctypes
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from mindcv_crossvit.ops.native.build import sgemm


def load(path: str) -> ctypes.CDLL:
    """The kernels, bound to MindSpore's product."""
    kernels = ctypes.CDLL(path)
    kernels.crossvit_bind.argtypes = [ctypes.c_void_p]
    kernels.crossvit_bind(ctypes.cast(sgemm(), ctypes.c_void_p))
    return kernels


def call(kernels: ctypes.CDLL, name: str, inputs: list[np.ndarray], shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The outputs of a kernel; NaN where it wrote nothing."""
    arrays = [np.ascontiguousarray(v, np.float32) for v in inputs] + [np.full(s, np.nan, np.float32) for s in shapes]
    count = len(arrays)
    data = (ctypes.c_void_p * count)(*[a.ctypes.data for a in arrays])
    ranks = (ctypes.c_int * count)(*[a.ndim for a in arrays])
    sides = [(ctypes.c_int64 * a.ndim)(*a.shape) for a in arrays]
    pointers = (ctypes.POINTER(ctypes.c_int64) * count)(
        *[ctypes.cast(s, ctypes.POINTER(ctypes.c_int64)) for s in sides]
    )
    status = getattr(kernels, name)(count, data, ranks, pointers, None, None, None)
    assert status == 0, (name, status)
    return arrays[len(inputs) :]


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(GELU, its slope) in float64."""
    share = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(x)
    return x * share, share + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def norm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(standardised rows, 1/std) with eps 1e-6."""
    inverse = 1 / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    return (x - x.mean(1, keepdims=True)) * inverse, inverse


def norm_gradient(d: np.ndarray, hat: np.ndarray, inverse: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
    """[dx, dg, db]."""
    a = d * g
    dx = inverse * (a - a.mean(1, keepdims=True) - hat * (a * hat).mean(1, keepdims=True))
    return [dx, (d * hat).sum(0), d.sum(0)]


def check(kernels: ctypes.CDLL, tokens: int, width: int, outer: int) -> None:
    """Linear layers, norm and MLP, forward and gradient, against float64."""
    rng = np.random.default_rng(tokens)
    x, dy, dx = (rng.standard_normal(s) for s in ((tokens, width), (tokens, outer), (tokens, width)))
    g, b, c, e = (rng.standard_normal(n) for n in (width, width, outer, width))
    w, v = rng.standard_normal((outer, width)), rng.standard_normal((width, outer))
    eps = np.array([1e-6])
    hat, inverse = norm(x)
    y = hat * g + b

    def same(name, inputs, expected):
        for mine, theirs in zip(call(kernels, name, inputs, [v.shape for v in expected]), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-4 * max(1, np.abs(theirs).max()), err_msg=name)

    same("linear", [x, w, c], [x @ w.T + c])
    same("linear_gradient", [x, w, dy], [dy @ w, dy.T @ x, dy.sum(0)])
    same("norm_linear", [x, g, b, eps, w, c], [y @ w.T + c])
    gradient = norm_gradient(dy @ w, hat, inverse, g)
    same("norm_linear_gradient", [x, g, b, eps, w, dy], [*gradient, dy.T @ y, dy.sum(0)])
    before = y @ w.T + c
    after, slope = gelu(before)
    same("norm_mlp", [x, g, b, eps, w, c, v, e], [after @ v.T + e, before])
    same("norm_mlp", [x, g, b, eps, w, c, v, e], [after @ v.T + e])
    d = (dx @ v) * slope
    expected = [*norm_gradient(d @ w, hat, inverse, g), d.T @ y, d.sum(0), dx.T @ after, dx.sum(0)]
    same("norm_mlp_gradient", [x, g, b, eps, w, v, before, dx], expected)


def check_attention(kernels: ctypes.CDLL, batch: int, tokens: int, heads: int, dim: int) -> None:
    """Attention forward and gradient against float64."""
    rng = np.random.default_rng(tokens)
    qkv, dy = rng.standard_normal((batch, tokens, 3, heads, dim)), rng.standard_normal((batch, tokens, heads, dim))
    q, k, v = (qkv[:, :, i] for i in range(3))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(dim)
    sums = np.log(np.exp(scores).sum(-1))
    p = np.exp(scores - sums[..., None])
    y = np.einsum("bhnm,bmhd->bnhd", p, v)
    flat = (batch * tokens, heads * dim)
    out, log_sums = call(kernels, "attention", [qkv], [flat, sums.shape])
    np.testing.assert_allclose(out, y.reshape(flat), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_sums, sums, rtol=1e-5, atol=1e-5)
    dp = np.einsum("bnhd,bmhd->bhnm", dy, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / math.sqrt(dim)
    parts = [np.einsum("bhnm,bmhd->bnhd", ds, k), np.einsum("bhnm,bnhd->bmhd", ds, q)]
    expected = np.stack([*parts, np.einsum("bhnm,bnhd->bmhd", p, dy)], 2)
    found = call(kernels, "attention_gradient", [qkv, out, log_sums, dy.reshape(flat)], [qkv.shape])[0]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def check_convolution(kernels: ctypes.CDLL, size: tuple[int, int], side: int, stride: int, pad: int) -> None:
    """Of an image and of maps, forward and gradient, against float64."""
    rng = np.random.default_rng(side)
    maps, weight, bias = rng.standard_normal((2, *size, 3)), rng.standard_normal((4, 3, side, side)), np.arange(4.0)
    padded = np.pad(maps, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))[:, ::stride, ::stride]
    y = np.einsum("bijcrs,ocrs->bijo", seen, weight) + bias
    dy = rng.standard_normal(y.shape)
    d_seen, d_padded = np.einsum("bijo,ocrs->bijrsc", dy, weight), np.zeros(padded.shape)
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            rows, cols = (slice(k * stride, k * stride + side) for k in (i, j))
            d_padded[:, rows, cols] += d_seen[:, i, j]
    dx = d_padded[:, pad : pad + size[0], pad : pad + size[1]]
    gradients = [np.einsum("bijcrs,bijo->ocrs", seen, dy), dy.sum((0, 1, 2)), dx]
    for layout in (1, 2):
        x, how = maps if layout == 1 else maps.transpose(0, 3, 1, 2), np.zeros((stride, pad + 1, layout))
        found = call(kernels, "convolution", [x, weight, bias, how], [y.shape])
        wanted = gradients[: 4 - layout]
        found += call(kernels, "convolution_gradient", [x, weight, dy, how], [v.shape for v in wanted])
        for mine, theirs in zip(found, [y, *wanted], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-4 * max(1, np.abs(theirs).max()))


def check_rest(kernels: ctypes.CDLL) -> None:
    """The scaling of pictures."""
    rng = np.random.default_rng(0)
    x, factors = rng.standard_normal((15, 7)), rng.standard_normal(5)
    found = call(kernels, "scale_pictures", [x, factors], [(15, 7)])[0]
    np.testing.assert_allclose(found, x * np.repeat(factors, 3)[:, None], rtol=1e-6)


if __name__ == "__main__":
    library = load(sys.argv[1])
    for sizes in ((1, 1, 1), (3, 5, 7), (257, 33, 65), (700, 48, 31)):
        check(library, *sizes)
    for attention in ((1, 1, 1, 1), (2, 17, 3, 5), (1, 129, 2, 8), (2, 300, 1, 33)):
        check_attention(library, *attention)
    for convolution in (
        ((9, 6), 3, 3, 0),
        ((5, 7), 3, 1, 1),
        ((8, 7), 3, 2, 1),
        ((21, 24), 7, 4, 3),
        ((4, 3), 5, 2, 4),
    ):
        check_convolution(library, *convolution)
    check_rest(library)
    print("all kernels agree")
