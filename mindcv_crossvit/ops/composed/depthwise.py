"""Convolution of each channel by itself as one batched product over channels.

MindSpore's grouped convolution takes 400 times PyTorch's time on a CPU, a sum of shifted maps 20 times. B batch, C
channels, H x W map, k kernel, s stride. A tile is a few output rows; it reads a few input rows, and what it does with
them is a matrix [input rows * W, output rows * W'] of a channel's k*k weights and zeros.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from .linear import column_sum, matmul, matmul_tb

_cut = ops.Slice()
_gather = ops.Gather()
_bmm = ops.BatchMatMul()
_bmm_ta = ops.BatchMatMul(transpose_a=True)


class _Depthwise(nn.Cell):
    def __init__(self, kernel: int, stride: int, pad: int):
        super().__init__()
        self.args = (kernel, stride, pad)

    def construct(self, x_bhwc, weight_c1kk):
        channels, width = x_bhwc.shape[3], x_bhwc.shape[2]
        rows, place, out_rows, out_cols = _forward(x_bhwc.shape[1], width, *self.args)
        x_cbhw = _channels_first(x_bhwc)
        y = _bmm(_read(x_cbhw, rows), _expand(weight_c1kk, place, rows.shape[1] * width))
        return _channels_last(y.reshape(channels, -1, out_rows, out_cols)), x_cbhw

    def bprop(self, x_bhwc, weight_c1kk, out, dout):
        x_cbhw, dy_cbhw = out[1], _channels_first(dout[0])
        channels, height, width = weight_c1kk.shape[0], x_bhwc.shape[1], x_bhwc.shape[2]
        rows, place, out_rows, out_cols = _forward(height, width, *self.args)
        dy = dy_cbhw.reshape(channels, -1, out_rows * out_cols // rows.shape[0])
        d_matrix = _bmm_ta(_read(ops.depend(x_cbhw, dy), rows), dy)
        d_weight = matmul_tb(d_matrix.reshape(channels, -1), place.astype(weight_c1kk.dtype)).reshape(weight_c1kk.shape)
        back, back_place, back_rows = _backward(height, width, *self.args)
        dx = _bmm(_read(dy_cbhw, back), _expand(weight_c1kk, back_place, back.shape[1] * out_cols))
        dx = dx.reshape(channels, -1, back_rows, width)
        if back_rows > height:
            dx = _cut(dx, (0, 0, 0, 0), (channels, dx.shape[1], height, width))
        return _channels_last(dx), d_weight


class _ChannelBias(nn.Cell):
    def construct(self, y_tc, bias_c):
        return ops.bias_add(y_tc, bias_c)

    def bprop(self, y_tc, bias_c, out, dout):
        return dout, column_sum(dout, 0)


class Depthwise(nn.Cell):
    """On maps [B, H, W, C]."""

    def __init__(self, kernel: int, stride: int, pad: int):
        super().__init__()
        self.inner, self.add_bias = _Depthwise(kernel, stride, pad), _ChannelBias()

    def construct(self, x_bhwc, weight_c1kk, bias_c=None):
        y_bhwc = self.inner(x_bhwc, weight_c1kk)[0]
        if bias_c is None:
            return y_bhwc
        return self.add_bias(y_bhwc.reshape(-1, y_bhwc.shape[3]), bias_c).reshape(y_bhwc.shape)


def _channels_first(x_bhwc):
    shape = x_bhwc.shape
    x_ct = ops.transpose(x_bhwc.reshape(-1, shape[3]), (1, 0))
    return x_ct.reshape(shape[3], -1, shape[1], shape[2])


def _channels_last(x_cbhw):
    shape = x_cbhw.shape
    x_tc = ops.transpose(x_cbhw.reshape(shape[0], -1), (1, 0))
    return x_tc.reshape(-1, shape[2], shape[3], shape[0])


def _read(x_cbhw, rows):
    """[C, B, H, W] -> the rows that each tile reads, [C, B*tiles, rows*W]; row H is zeros."""
    shape = x_cbhw.shape
    zeros = ops.zeros((shape[0], shape[1], 1, shape[3]), x_cbhw.dtype)
    found = _gather(ops.concat((x_cbhw, zeros), 2), rows.reshape(-1), 2)
    return found.reshape(shape[0], -1, rows.shape[1] * shape[3])


def _expand(weight_c1kk, place, inner):
    """Each channel's matrix [C, inner, outer]; place [k*k, inner*outer] has a one where a weight stands."""
    channels = weight_c1kk.shape[0]
    return matmul(weight_c1kk.reshape(channels, -1), place.astype(weight_c1kk.dtype)).reshape(channels, inner, -1)


@ops.constexpr
def _forward(height, width, k, s, pad):
    """(rows each tile reads [tiles, rows], places of the weights, output rows, output columns).

    With stride 1 a tile has two output rows, which halves what is gathered for little more work in the product.
    """
    out_rows, out_cols = (height + 2 * pad - k) // s + 1, (width + 2 * pad - k) // s + 1
    tile = 2 if s == 1 and out_rows % 2 == 0 else 1
    count = s * (tile - 1) + k
    rows = s * tile * np.arange(out_rows // tile)[:, None] - pad + np.arange(count)
    down = np.arange(count)[:, None] - s * np.arange(tile)
    across = np.arange(width)[:, None] + pad - s * np.arange(out_cols)
    return _index(rows, height), _places(down, across, k), out_rows, out_cols


@ops.constexpr
def _backward(height, width, k, s, pad):
    """(output rows that each tile of input rows went to, places of the weights, input rows in all tiles)."""
    out_rows, out_cols = (height + 2 * pad - k) // s + 1, (width + 2 * pad - k) // s + 1
    tile = s if s > 1 else 2 if height % 2 == 0 else 1
    first, last = -(-(pad - k + 1) // s), (tile - 1 + pad) // s
    tiles, near = -(-height // tile), np.arange(first, last + 1)
    rows = tile // s * np.arange(tiles)[:, None] + near
    down = np.arange(tile) + pad - s * near[:, None]
    across = np.arange(width) + pad - s * np.arange(out_cols)[:, None]
    return _index(rows, out_rows), _places(down, across, k), tiles * tile


def _index(rows: np.ndarray, count: int) -> Tensor:
    return Tensor(np.where((rows >= 0) & (rows < count), rows, count).astype(np.int32))


def _places(down_rt: np.ndarray, across_ij: np.ndarray, k: int) -> Tensor:
    """From the weight's row for each pair of rows and its column for each pair of columns, where they are in 0..k-1."""
    taps = np.arange(k)
    row = (down_rt[None] == taps[:, None, None]).astype(np.float32)
    column = (across_ij[None] == taps[:, None, None]).astype(np.float32)
    return Tensor(np.einsum("yrt,xij->yxritj", row, column).reshape(k * k, -1))
