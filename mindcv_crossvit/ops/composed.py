"""Fast compositions of MindSpore's CPU operators, with gradients of their own where the built-in ones are slow.

B batch, N tokens, T = B*N, C width, H heads, D = C/H head width, I/O in and out width.
Why each exists: on CPU `Conv2D` is up to 300 times slower than a MatMul of the same size, the gradients of LayerNorm
and Softmax 10 times slower than their formulas, and `ops.tanh` is only good to 1e-4.
"""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import nn, ops

from . import Ops

# Phi(x) = sigmoid(2 x P(x^2)), highest power first: an own minimax fit of the normal distribution. The float32 error
# of x * Phi(x) against the exact GELU is 5.9e-7 on |x| <= 12.
_PHI = [
    2 * c
    for c in (
        1.8056169777942296e-09,
        -1.334464346102438e-07,
        3.969109867396692e-06,
        -5.524016144511761e-05,
        -3.312998399618344e-05,
        0.0363342835018965,
        0.7978842161189302,
    )
]
# The tanh form in the same way: (1 + tanh(y)) / 2 = sigmoid(2 y), y = sqrt(2/pi) (x + 0.044715 x^3).
_TANH = [2 * c * math.sqrt(2 / math.pi) for c in (0.044715, 1.0)]
_INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)

_matmul = ops.MatMul()
_matmul_tb = ops.MatMul(transpose_b=True)
_matmul_ta = ops.MatMul(transpose_a=True)
_bmm = ops.BatchMatMul()
_bmm_tb = ops.BatchMatMul(transpose_b=True)
_bmm_ta = ops.BatchMatMul(transpose_a=True)
_sum = ops.ReduceSum(keep_dims=False)
_sum_keep = ops.ReduceSum(keep_dims=True)
_mean_keep = ops.ReduceMean(keep_dims=True)


class _LinearBias(nn.Cell):
    def construct(self, x_ti, weight_oi, bias_o):
        return ops.bias_add(_matmul_tb(x_ti, weight_oi), bias_o)

    def bprop(self, x_ti, weight_oi, bias_o, out, dout):
        return _matmul(dout, weight_oi), _matmul_ta(dout, x_ti), _sum(dout, 0)


class Linear(nn.Cell):
    """x W^T + b on two-dimensional x; the bias gradient is a plain column sum."""

    def __init__(self):
        super().__init__()
        self.with_bias = _LinearBias()

    def construct(self, x_ti, weight_oi, bias_o=None):
        if bias_o is None:
            return _matmul_tb(x_ti, weight_oi)
        return self.with_bias(x_ti, weight_oi, bias_o)


def _phi(x, tanh):
    """The share of x that its GELU keeps."""
    square = x * x
    if tanh:
        return ops.sigmoid((square * _TANH[0] + _TANH[1]) * x)
    poly = square * _PHI[0] + _PHI[1]
    for coefficient in _PHI[2:]:
        poly = poly * square + coefficient
    return ops.sigmoid(poly * x)


def _gelu_slope(x, tanh):
    share = _phi(x, tanh)
    if tanh:
        return share + x * (share * (1 - share)) * ((x * x) * (3 * _TANH[0]) + _TANH[1])
    return share + x * (ops.exp((x * x) * -0.5) * _INV_SQRT_2PI)


class Gelu(nn.Cell):
    """GELU, exact or in the tanh form; keeps only its input for the gradient."""

    def __init__(self, approximate: str = "none"):
        super().__init__()
        self.tanh = approximate == "tanh"

    def construct(self, x):
        return x * _phi(x, self.tanh)

    def bprop(self, x, out, dout):
        return (dout * _gelu_slope(x, self.tanh),)


class _MlpHidden(nn.Cell):
    def __init__(self, tanh: bool):
        super().__init__()
        self.tanh = tanh

    def construct(self, x_ti, weight_oi, bias_o):
        pre = ops.bias_add(_matmul_tb(x_ti, weight_oi), bias_o)
        return pre * _phi(pre, self.tanh), pre

    def bprop(self, x_ti, weight_oi, bias_o, out, dout):
        grad = dout[0] * _gelu_slope(out[1], self.tanh)
        return _matmul(grad, weight_oi), _matmul_ta(grad, x_ti), _sum(grad, 0)


class MlpHidden(nn.Cell):
    """gelu(x W^T + b), differentiated as one piece."""

    def __init__(self, approximate: str = "none"):
        super().__init__()
        self.inner = _MlpHidden(approximate == "tanh")

    def construct(self, x_ti, weight_oi, bias_o):
        return self.inner(x_ti, weight_oi, bias_o)[0]


class _LayerNorm(nn.Cell):
    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def construct(self, x_tc, weight_c, bias_c):
        centred = x_tc - _mean_keep(x_tc, -1)
        inv_std = ops.rsqrt(_mean_keep(centred * centred, -1) + self.eps)
        x_hat = centred * inv_std
        return ops.bias_add(x_hat * weight_c, bias_c), x_hat, inv_std

    def bprop(self, x_tc, weight_c, bias_c, out, dout):
        dy, x_hat, inv_std = dout[0], out[1], out[2]
        dy_w = dy * weight_c
        dx = (dy_w - _mean_keep(dy_w, -1) - x_hat * _mean_keep(dy_w * x_hat, -1)) * inv_std
        return dx, _sum(dy * x_hat, 0), _sum(dy, 0)


class LayerNorm(nn.Cell):
    """By its formula, forward and gradient: twice as fast as the built-in forward, ten times its gradient."""

    def __init__(self, eps: float):
        super().__init__()
        self.inner = _LayerNorm(eps)

    def construct(self, x_tc, weight_c, bias_c):
        return self.inner(x_tc, weight_c, bias_c)[0]


class _Attend(nn.Cell):
    """Attention of [BH, M, D] queries on [BH, N, D] keys and values.

    The softmax gradient dS = P * (dP - rowsum(dO * O)) is one product: dP - D = [dO, -D] [V, 1]^T.
    """

    def __init__(self):
        super().__init__()
        self.softmax = ops.Softmax(axis=-1)

    def construct(self, q, k, v):
        scale = q.shape[-1] ** -0.5
        prob = self.softmax(_bmm_tb(q * scale, k).astype(ms.float32)).astype(v.dtype)
        return _bmm(prob, v), prob

    def bprop(self, q, k, v, out, dout):
        scale = q.shape[-1] ** -0.5
        grad, prob = dout[0], out[1]
        row = _sum_keep(grad * out[0], -1)
        d_score = prob * _bmm_tb(ops.concat((grad, -row), -1), ops.concat((v, ops.ones_like(v[:, :, :1])), -1))
        return _bmm(d_score, k) * scale, _bmm_ta(d_score, q) * scale, _bmm_ta(prob, grad)


class Attention(nn.Cell):
    """softmax(q k^T / sqrt(D)) v over all tokens of a picture."""

    def __init__(self, tokens: int, heads: int):
        super().__init__()
        self.tokens, self.heads = tokens, heads
        self.attend = _Attend()

    def construct(self, qkv_t3c):
        width = qkv_t3c.shape[1] // 3
        n, h, d = self.tokens, self.heads, width // self.heads
        qkv = ops.transpose(qkv_t3c.reshape(-1, n, 3 * h, d), (0, 2, 1, 3))
        q, k, v = ops.split(qkv, h, 1)
        out = self.attend(q.reshape(-1, n, d), k.reshape(-1, n, d), v.reshape(-1, n, d))[0]
        return ops.transpose(out.reshape(-1, h, n, d), (0, 2, 1, 3)).reshape(-1, width)


class ClassAttention(nn.Cell):
    """One query a picture, the class token, against all N keys."""

    def __init__(self, tokens: int, heads: int):
        super().__init__()
        self.tokens, self.heads = tokens, heads
        self.attend = _Attend()

    def construct(self, q_bc, k_tc, v_tc):
        width = q_bc.shape[1]
        n, h, d = self.tokens, self.heads, width // self.heads
        k = ops.transpose(k_tc.reshape(-1, n, h, d), (0, 2, 1, 3)).reshape(-1, n, d)
        v = ops.transpose(v_tc.reshape(-1, n, h, d), (0, 2, 1, 3)).reshape(-1, n, d)
        return self.attend(q_bc.reshape(-1, 1, d), k, v)[0].reshape(-1, width)


class Conv2d(nn.Cell):
    """Convolution on maps [B, H, W, C] as one MatMul.

    Space-to-depth by the stride s turns it into a convolution of stride 1 with ceil(k/s)^2 taps; a tap is a slice of
    the flattened grid, and the taps side by side are the rows of the product. A patch embedding (k = s) has one tap.
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
        x = x.reshape(-1, grid_rows * grid_cols, channels * s * s)
        if t > 1:
            x = _shifted(x, t, grid_cols, rows)
        weight = _fit(_fit(weight_oikk, 2, 0, t * s), 3, 0, t * s)
        weight = ops.transpose(weight.reshape(out_channels, channels, t, s, t, s), (0, 2, 4, 1, 3, 5))
        y = _matmul_tb(x.reshape(-1, x.shape[2]), weight.reshape(out_channels, -1))
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


class ToTokens(nn.Cell):
    """[B, H, W, C] -> [B*H*W, C]."""

    def construct(self, x_bhwc):
        return x_bhwc.reshape(-1, x_bhwc.shape[3])


COMPOSED = Ops("composed", Linear, MlpHidden, Gelu, LayerNorm, Attention, ClassAttention, Conv2d, ToTokens)
