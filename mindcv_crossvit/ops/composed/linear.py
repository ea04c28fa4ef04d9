"""Linear layers and LayerNorm.

T tokens, C width, I/O in and out width. A product of a [T, C] tensor with a row or a column is slow on CPU (it costs
four elementwise products) and its kernel keeps three further tensors of that size for ever; so nothing here does that.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops.operations import _grad_ops

matmul = ops.MatMul()
matmul_tb = ops.MatMul(transpose_b=True)
matmul_ta = ops.MatMul(transpose_a=True)
column_sum = ops.ReduceSum(keep_dims=False)
_tile = ops.Tile()


class _LinearBias(nn.Cell):
    def construct(self, x_ti, weight_oi, bias_o):
        return ops.bias_add(matmul_tb(x_ti, weight_oi), bias_o)

    def bprop(self, x_ti, weight_oi, bias_o, out, dout):
        return matmul(dout, weight_oi), matmul_ta(dout, x_ti), column_sum(dout, 0)


class Linear(nn.Cell):
    """x W^T + b on two-dimensional x; the bias gradient is a plain column sum."""

    def __init__(self):
        super().__init__()
        self.with_bias = _LinearBias()

    def construct(self, x_ti, weight_oi, bias_o=None):
        if bias_o is None:
            return matmul_tb(x_ti, weight_oi)
        return self.with_bias(x_ti, weight_oi, bias_o)


class Standardise:
    """(x - mean) / sqrt(variance + eps) of each row, forward and gradient one kernel each.

    A batch norm of one picture whose channels are the tokens: the same formula, by a kernel ten times faster than
    LayerNorm's. The gradient is taken at x_hat, whose mean is 0 and variance 1, with 1/std as the channels' weight, so
    that x itself need not be kept.
    """

    def __init__(self, eps: float):
        self.eps = eps
        self.norm = ops.BatchNorm(is_training=True, epsilon=eps, momentum=0.0)
        # With momentum 0 nothing is written; said, else all parameters are copied before the first "write".
        self.norm.set_signatures(())
        self.norm.add_prim_attr("side_effect_mem", False)
        self.grad: Any = _grad_ops.BatchNormGrad(is_training=True, epsilon=1e-12)

    def forward(self, x_tc):
        """(x_hat [T, C], 1/std [T])."""
        tokens, width = x_tc.shape
        one_t, zero_t = ops.ones((tokens,), ms.float32), ops.zeros((tokens,), ms.float32)
        y, _, _, _, variance_t = self.norm(x_tc.reshape(1, tokens, width, 1), one_t, zero_t, zero_t, one_t)
        return y.reshape(tokens, width), ops.rsqrt(variance_t + self.eps)

    def gradient(self, d_hat_tc, hat_tc, inv_std_t):
        """The gradient of x [T, C] from that of x_hat."""
        tokens, width = hat_tc.shape
        shape = (1, tokens, width, 1)
        one_t, zero_t = ops.ones((tokens,), ms.float32), ops.zeros((tokens,), ms.float32)
        out = self.grad(d_hat_tc.reshape(shape), hat_tc.reshape(shape), inv_std_t, zero_t, one_t, one_t)
        return out[0].reshape(tokens, width)


def scale_columns(x_tc, weight_c):
    """x diag(weight); the repeated row and the plain product are twice as fast as one product that broadcasts."""
    return x_tc * _tile(weight_c.reshape(1, -1), (x_tc.shape[0], 1))


class _NormRows(nn.Cell):
    def __init__(self, eps: float):
        super().__init__()
        self.rows = Standardise(eps)

    def construct(self, x_tc, weight_c, bias_c):
        hat_tc, inv_std_t = self.rows.forward(x_tc)
        return ops.bias_add(scale_columns(hat_tc, weight_c), bias_c), hat_tc, inv_std_t

    def bprop(self, x_tc, weight_c, bias_c, out, dout):
        dy_tc, hat_tc, inv_std_t = dout[0], out[1], out[2]
        dx_tc = self.rows.gradient(scale_columns(dy_tc, weight_c), hat_tc, inv_std_t)
        return dx_tc, column_sum(dy_tc * hat_tc, 0), column_sum(dy_tc, 0)


class LayerNorm(nn.Cell):
    """By itself: for class tokens one slow kernel is better than ten fast ones. Before a layer NormLinear is faster."""

    def __init__(self, eps: float, many: bool = False):
        super().__init__()
        self.many = many
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)
        self.norm_rows = _NormRows(eps)

    def construct(self, x_tc, weight_c, bias_c):
        return self.norm_rows(x_tc, weight_c, bias_c)[0] if self.many else self.norm(x_tc, weight_c, bias_c)[0]


def fold_norm(g_c, b_c, weight_oc, bias_o):
    """A norm's weight g and bias b inside the layer (W, c) it feeds: (x_hat g + b) W^T + c = x_hat V^T + d.

    V = W diag(g) [O, C] and d = W b + c [O] are small, so that no other [T, C] tensor than x_hat is made or kept.
    """
    shift_o = matmul_tb(b_c.reshape(1, -1), weight_oc).reshape(-1) + bias_o
    return scale_columns(weight_oc, g_c), shift_o


def unfold_norm(g_c, b_c, weight_oc, d_folded_oc, d_shift_o):
    """The gradients of g, b, W and c from those of V and d."""
    row_1o = d_shift_o.reshape(1, -1)
    d_weight_oc = scale_columns(d_folded_oc, g_c) + matmul_ta(row_1o, b_c.reshape(1, -1))
    return column_sum(d_folded_oc * weight_oc, 0), matmul(row_1o, weight_oc).reshape(-1), d_weight_oc, d_shift_o


class _NormLinear(nn.Cell):
    def __init__(self, eps: float):
        super().__init__()
        self.rows = Standardise(eps)

    def construct(self, x_tc, g_c, b_c, weight_oc, bias_o):
        hat_tc, inv_std_t = self.rows.forward(x_tc)
        folded_oc, shift_o = fold_norm(g_c, b_c, weight_oc, bias_o)
        return ops.bias_add(matmul_tb(hat_tc, folded_oc), shift_o), hat_tc, inv_std_t

    def bprop(self, x_tc, g_c, b_c, weight_oc, bias_o, out, dout):
        dy, hat_tc, inv_std_t = dout[0], out[1], out[2]
        d_hat_tc = matmul(dy, scale_columns(weight_oc, g_c))
        dx_tc = self.rows.gradient(d_hat_tc, hat_tc, inv_std_t)
        norm = unfold_norm(g_c, b_c, weight_oc, matmul_ta(dy, hat_tc), column_sum(dy, 0))
        return dx_tc, norm[0], norm[1], norm[2], norm[3]


class NormLinear(nn.Cell):
    """linear(layer_norm(x)), differentiated as one piece; keeps x_hat only."""

    def __init__(self, eps: float):
        super().__init__()
        self.inner = _NormLinear(eps)

    def construct(self, x_tc, g_c, b_c, weight_oc, bias_o=None):
        if bias_o is None:
            bias_o = ops.zeros((weight_oc.shape[0],), weight_oc.dtype)
        return self.inner(x_tc, g_c, b_c, weight_oc, bias_o)[0]


class ScalePictures(nn.Cell):
    """Each picture's tokens times a factor of its own; nothing of their size is kept."""

    def construct(self, x_tc, factors_b):
        batch, size = factors_b.shape[0], x_tc.size // factors_b.shape[0]
        factors = _tile(factors_b.reshape(batch, 1), (1, size)).reshape(x_tc.shape)
        return x_tc * factors.astype(x_tc.dtype)

    def bprop(self, x_tc, factors_b, out, dout):
        return self.construct(dout, factors_b), ops.zeros_like(factors_b)
