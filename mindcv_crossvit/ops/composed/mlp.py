"""GELU, and the transformer's MLP around it.

T tokens, C width, O hidden width.
"""

from __future__ import annotations

import math

from mindspore import nn, ops

from . import pieces
from .linear import (
    Standardise,
    column_sum,
    fold_norm,
    matmul,
    matmul_ta,
    matmul_tb,
    scale_columns,
    unfold_norm,
)

# Phi(x) = sigmoid(2 x P(x^2)), highest power first: an own minimax fit of the normal distribution. The float32 error
# of x * Phi(x) against the exact GELU is 5.9e-7 on |x| <= 12. `ops.tanh` is good to 1e-4 only, `ops.erf` slow.
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


def _share(x, tanh):
    """The share of x that its GELU keeps."""
    square = x * x
    if tanh:
        return ops.sigmoid((square * _TANH[0] + _TANH[1]) * x)
    poly = square * _PHI[0] + _PHI[1]
    for coefficient in _PHI[2:]:
        poly = poly * square + coefficient
    return ops.sigmoid(poly * x)


def _slope(x, share, tanh):
    """The derivative of x * share(x)."""
    square = x * x
    if tanh:
        return share + x * (share * (1 - share)) * (square * (3 * _TANH[0]) + _TANH[1])
    return share + x * (ops.exp(square * -0.5) * _INV_SQRT_2PI)


class _TanhGelu(nn.Cell):
    def construct(self, x):
        return x * _share(x, True)

    def bprop(self, x, out, dout):
        return (dout * _slope(x, _share(x, True), True),)


class _ExactGelu(nn.Cell):
    """Keeps the slope, which the forward pass has at hand."""

    def construct(self, x):
        share = _share(x, False)
        return x * share, _slope(x, share, False)

    def bprop(self, x, out, dout):
        return (dout[0] * out[1],)


class Gelu(nn.Cell):
    """GELU by itself. For class tokens the built-in kernel; by its formula on maps [B, H, W, C], which are large, and
    in the tanh form, which that kernel computes with an error of 1e-4."""

    def __init__(self, approximate: str = "none"):
        super().__init__()
        self.tanh = approximate == "tanh"
        self.tanh_form, self.exact_form = _TanhGelu(), _ExactGelu()

    def construct(self, x):
        if self.tanh:
            return self.tanh_form(x)
        if x.ndim != 4:
            return ops.gelu(x, approximate="none")
        return pieces.in_pieces(self.exact_form, x, x.shape[0], x.size // x.shape[0], pieces.HIDDEN)


class _NormMlp(nn.Cell):
    """Keeps x_hat, the hidden layer after its GELU, and the GELU's slope, which the forward pass has at hand."""

    def __init__(self, eps: float, tanh: bool):
        super().__init__()
        self.rows, self.tanh = Standardise(eps), tanh

    def construct(self, x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c):
        hat_tc, inv_std_t = self.rows.forward(x_tc)
        folded_oc, shift_o = fold_norm(g_c, b_c, weight1_oc, bias1_o)
        pre_to = ops.bias_add(matmul_tb(hat_tc, folded_oc), shift_o)
        share_to = _share(pre_to, self.tanh)
        hidden_to = pre_to * share_to
        y_tc = ops.bias_add(matmul_tb(hidden_to, weight2_co), bias2_c)
        return y_tc, hat_tc, inv_std_t, hidden_to, _slope(pre_to, share_to, self.tanh)

    def bprop(self, x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c, out, dout):
        dy_tc, hat_tc, inv_std_t, hidden_to, slope_to = dout[0], out[1], out[2], out[3], out[4]
        d_pre_to = matmul(dy_tc, weight2_co) * slope_to
        d_hat_tc = matmul(d_pre_to, scale_columns(weight1_oc, g_c))
        dx_tc = self.rows.gradient(d_hat_tc, hat_tc, inv_std_t)
        first = unfold_norm(g_c, b_c, weight1_oc, matmul_ta(d_pre_to, hat_tc), column_sum(d_pre_to, 0))
        return dx_tc, first[0], first[1], first[2], first[3], matmul_ta(dy_tc, hidden_to), column_sum(dy_tc, 0)


class NormMlp(nn.Cell):
    """linear(gelu(linear(layer_norm(x)))), differentiated as one piece."""

    def __init__(self, eps: float, approximate: str = "none"):
        super().__init__()
        self.inner = _NormMlp(eps, approximate == "tanh")

    def construct(self, x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c):
        rest = (g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c)
        return pieces.in_pieces(self.inner, x_tc, x_tc.shape[0], weight1_oc.shape[0], pieces.HIDDEN, *rest)
