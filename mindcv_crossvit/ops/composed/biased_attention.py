"""Attention with a bias on its scores.

B batch, N tokens, C width, H heads, D = C/H head width, M keys. R = B*H pairs of picture and head.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from .linear import column_sum

_gather = ops.Gather()
_bmm = ops.BatchMatMul()
_bmm_tb = ops.BatchMatMul(transpose_b=True)
_bmm_ta = ops.BatchMatMul(transpose_a=True)
_sum_keep = ops.ReduceSum(keep_dims=True)


class _Attend(nn.Cell):
    """softmax(q k^T + bias) v for each of R pairs; bias [r, N, M] where r divides R.

    The bias goes in as that of a layer of r*N*M channels, half the time of a sum that broadcasts.
    """

    def __init__(self):
        super().__init__()
        self.softmax = ops.Softmax(axis=-1)

    def construct(self, q_rnd, k_rmd, v_rmd, bias_rnm):
        score_rnm = _bmm_tb(q_rnd, k_rmd).astype(ms.float32)
        shape = score_rnm.shape
        score_rnm = ops.bias_add(score_rnm.reshape(-1, bias_rnm.size), bias_rnm.reshape(-1)).reshape(shape)
        prob_rnm = self.softmax(score_rnm).astype(v_rmd.dtype)
        return _bmm(prob_rnm, v_rmd), prob_rnm

    def bprop(self, q_rnd, k_rmd, v_rmd, bias_rnm, out, dout):
        out_rnd, prob_rnm, grad_rnd = out[0], out[1], dout[0]
        row_rn1 = _sum_keep(grad_rnd * out_rnd, -1)
        late_v = ops.depend(v_rmd, grad_rnd)  # else [V, 1] is made, and kept, as soon as V is there
        late_v = ops.concat((late_v, ops.ones_like(late_v[:, :, :1])), -1)
        d_score = prob_rnm * _bmm_tb(ops.concat((grad_rnd, -row_rn1), -1), late_v)
        d_bias = column_sum(d_score.astype(ms.float32).reshape(-1, bias_rnm.size), 0).reshape(bias_rnm.shape)
        return _bmm(d_score, k_rmd), _bmm_ta(d_score, q_rnd), _bmm_ta(prob_rnm, grad_rnd), d_bias


class _Rows(nn.Cell):
    """The rows of x [B, K, D] in another order; `back` is the inverse one."""

    def construct(self, x_bkd, rows, back):
        return _gather(x_bkd, rows, 1)

    def bprop(self, x_bkd, rows, back, out, dout):
        return _gather(dout, back, 1), ops.zeros_like(rows), ops.zeros_like(back)


class BiasedAttention(nn.Cell):
    """Heads are brought forward by gathering rows of D numbers."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads, self.attend, self.rows = heads, _Attend(), _Rows()

    def construct(self, q_bnc, k_bmc, v_bmc, bias_hnm, mask_wnm=None):
        d = q_bnc.shape[2] // self.heads
        if mask_wnm is not None:
            bias_hnm = bias_hnm.expand_dims(0) + mask_wnm.expand_dims(1)
            bias_hnm = bias_hnm.reshape(-1, q_bnc.shape[1], k_bmc.shape[1])
        q_rnd, k_rmd, v_rmd = self._by_head(q_bnc) * d**-0.5, self._by_head(k_bmc), self._by_head(v_bmc)
        out = self.attend(q_rnd, k_rmd, v_rmd, bias_hnm)[0].reshape(-1, q_bnc.shape[1] * self.heads, d)
        back, rows = _head_rows(q_bnc.shape[1], self.heads)
        return self.rows(out, rows, back).reshape(q_bnc.shape)

    def _by_head(self, x_bnc):
        n, d = x_bnc.shape[1], x_bnc.shape[2] // self.heads
        rows, back = _head_rows(n, self.heads)
        return self.rows(x_bnc.reshape(-1, n * self.heads, d), rows, back).reshape(-1, n, d)


@ops.constexpr
def _head_rows(tokens, heads):
    """Rows that bring heads before tokens, and those that bring them back."""
    rows = np.arange(tokens * heads).reshape(tokens, heads).T.reshape(-1)
    return _index(rows), _index(np.argsort(rows))


def _index(rows: np.ndarray) -> Tensor:
    return Tensor(rows.reshape(-1).astype(np.int32))
