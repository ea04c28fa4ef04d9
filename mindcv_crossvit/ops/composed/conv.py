"""Convolution as one MatMul: on CPU `Conv2D` is up to 300 times slower than a MatMul of the same size."""

from __future__ import annotations

from mindspore import nn, ops

from .linear import matmul_tb

MANY_TAPS = 4
"""Along an axis; from here on it is faster: 43 against 550 ms for 8 taps, 37 against 51 for 4, 27 against 18 for 2."""


class Conv2d(nn.Cell):
    """Convolution on maps [B, H, W, C] as one MatMul.

    Space-to-depth by the stride s turns it into a convolution of stride 1 with ceil(k/s)^2 taps; a tap is a slice of
    the flattened grid, and the taps side by side are the rows of the product. A patch embedding (k = s) has one tap.
    Many taps would make rows too long: then only those of a column stand side by side, the product has outputs for each
    tap of a row, and shifted these are added up.
    """

    def __init__(self, kernel: int, stride: int, pad: int, from_image: bool = False):
        super().__init__()
        self.kernel, self.stride, self.pad, self.from_image = kernel, stride, pad, from_image
        self.taps = -(-kernel // stride)

    def construct(self, x, weight_oikk, bias_o=None):
        s, t, pad = self.stride, self.taps, self.pad
        out_channels, channels = weight_oikk.shape[0], weight_oikk.shape[1]
        height_axis = 2 if self.from_image else 1
        rows_in, cols_in = x.shape[height_axis], x.shape[height_axis + 1]
        rows = (rows_in + 2 * pad - self.kernel) // s + 1
        cols = (cols_in + 2 * pad - self.kernel) // s + 1
        grid_rows, grid_cols = rows + t - 1, cols + t - 1
        x = _fit(x, height_axis, pad, grid_rows * s)
        x = _fit(x, height_axis + 1, pad, grid_cols * s)
        if self.from_image:  # to [B, grid, grid, C*s*s] in one transpose
            x = ops.transpose(x.reshape(-1, channels, grid_rows, s, grid_cols, s), (0, 2, 4, 1, 3, 5))
        elif s > 1:
            x = ops.transpose(x.reshape(-1, grid_rows, s, grid_cols, s, channels), (0, 1, 3, 5, 2, 4))
        weight = _fit(_fit(weight_oikk, 2, 0, t * s), 3, 0, t * s).reshape(out_channels, channels, t, s, t, s)
        if t >= MANY_TAPS:
            y = _column_by_column(x.reshape(-1, grid_rows, grid_cols, channels * s * s), weight, rows, cols)
            return y if bias_o is None else ops.bias_add(y.reshape(-1, out_channels), bias_o).reshape(y.shape)
        x = x.reshape(-1, grid_rows * grid_cols, channels * s * s)
        if t > 1:
            x = _shifted(x, t, grid_cols, rows)
        weight = ops.transpose(weight, (0, 2, 4, 1, 3, 5))
        y = matmul_tb(x.reshape(-1, x.shape[2]), weight.reshape(out_channels, -1))
        if bias_o is not None:
            y = ops.bias_add(y, bias_o)
        y = y.reshape(-1, rows, grid_cols, out_channels)
        return y[:, :, :cols] if t > 1 else y


def _fit(x, axis, before, size):
    """Zeros before, then zeros or a cut behind until `axis` has `size` entries; `ops.Pad` is 20 times slower."""
    if before:
        x = ops.concat((_zeros(x, axis, before), x), axis)
    missing = size - x.shape[axis]
    if missing > 0:
        return ops.concat((x, _zeros(x, axis, missing)), axis)
    if missing < 0:
        return ops.split(x, [size, -missing], axis)[0]
    return x


def _zeros(x, axis, count):
    shape = x.shape[:axis] + (count,) + x.shape[axis + 1 :]  # noqa: RUF005 (the graph parser)
    return ops.zeros(shape, x.dtype)


def _shifted(x_bnc, taps, grid_cols, rows):
    """[B, grid, C] -> [B, rows*grid_cols, taps^2*C]; the last taps-1 columns of each row are wrapped and cut later."""
    length = rows * grid_cols
    x_bnc = _fit(x_bnc, 1, 0, x_bnc.shape[1] + taps - 1)
    parts = ()
    for dy in range(taps):
        for dx in range(taps):
            start = dy * grid_cols + dx
            parts = parts + (x_bnc[:, start : start + length],)  # noqa: RUF005 (the graph parser)
    return ops.concat(parts, -1)


def _column_by_column(x_bghc, weight, rows, cols):
    """[B, grid rows, grid columns, C] by a weight [O, I, t, s, t, s] -> [B, rows, cols, O]."""
    out_channels, taps = weight.shape[0], weight.shape[2]
    parts = ()
    for dy in range(taps):
        parts = parts + (x_bghc[:, dy : dy + rows],)  # noqa: RUF005 (the graph parser)
    x = ops.concat(parts, -1)
    weight = ops.transpose(weight, (4, 0, 2, 1, 3, 5)).reshape(taps * out_channels, -1)
    y = matmul_tb(x.reshape(-1, x.shape[3]), weight).reshape(-1, rows, x.shape[2], taps * out_channels)
    by_column = ops.split(y, out_channels, -1)
    total = by_column[0][:, :, :cols]
    for dx in range(1, taps):
        total = total + by_column[dx][:, :, dx : dx + cols]
    return total


class ToTokens(nn.Cell):
    """[B, H, W, C] -> [B*H*W, C]."""

    def construct(self, x_bhwc):
        return x_bhwc.reshape(-1, x_bhwc.shape[3])


class ToMap(nn.Cell):
    """[B*H*W, C] -> [B, H, W, C]."""

    def construct(self, x_tc, height, width):
        return x_tc.reshape(-1, height, width, x_tc.shape[1])
