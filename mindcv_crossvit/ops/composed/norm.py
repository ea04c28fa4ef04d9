"""BatchNorm with the statistics of the batch.

T pixels of all pictures, C channels.
"""

from __future__ import annotations

from mindspore import nn, ops

from ...runtime import all_reduce
from .linear import column_sum, scale_columns

_bias_add = ops.BiasAdd()
_halves = ops.Split(axis=0, output_num=2)


class _BatchNorm(nn.Cell):
    """Keeps x less its mean. Over several ranks, the gradient's two means over pixels are taken over them as well."""

    def __init__(self, eps: float, ranks: int):
        super().__init__()
        self.eps, self.ranks = eps, ranks
        if ranks > 1:
            self.sum_of_ranks = all_reduce()

    def mean_of_ranks(self, value):
        return self.sum_of_ranks(value) * (1 / self.ranks) if self.ranks > 1 else value

    def construct(self, x_tc, weight_c, bias_c):
        share = 1 / x_tc.shape[0]
        mean_c = self.mean_of_ranks(column_sum(x_tc, 0) * share)
        centred_tc = _bias_add(x_tc, -mean_c)
        variance_c = self.mean_of_ranks(column_sum(centred_tc * centred_tc, 0) * share)
        inv_std_c = 1 / ops.sqrt(variance_c + self.eps)
        y_tc = _bias_add(scale_columns(centred_tc, weight_c * inv_std_c), bias_c)
        return y_tc, mean_c, variance_c, centred_tc, inv_std_c

    def bprop(self, x_tc, weight_c, bias_c, out, dout):
        dy_tc, centred_tc, inv_std_c = dout[0], out[3], out[4]
        share = 1 / x_tc.shape[0]
        d_bias_c, d_scale_c = column_sum(dy_tc, 0), column_sum(dy_tc * centred_tc, 0)
        d_bias_mean_c, d_scale_mean_c = _halves(self.mean_of_ranks(ops.concat((d_bias_c, d_scale_c)) * share))
        factor_c = weight_c * inv_std_c
        along_tc = scale_columns(centred_tc, -factor_c * inv_std_c * inv_std_c * d_scale_mean_c)
        dx_tc = _bias_add(scale_columns(dy_tc, factor_c) + along_tc, -factor_c * d_bias_mean_c)
        return dx_tc, d_scale_c * inv_std_c, d_bias_c


class BatchNorm(nn.Cell):
    """On maps [B, H, W, C]."""

    def __init__(self, eps: float, ranks: int = 1):
        super().__init__()
        self.inner = _BatchNorm(eps, ranks)

    def construct(self, x_bhwc, weight_c, bias_c):
        out = self.inner(x_bhwc.reshape(-1, x_bhwc.shape[3]), weight_c, bias_c)
        return out[0].reshape(x_bhwc.shape), out[1], out[2]
