"""Attention with a bias on its scores, of whole sequences and in groups of a grid.

B batch, L tokens of a grid, T = B*L, C width, H heads, D = C/H head width, W groups of N tokens, M keys. R = B*W*H
pairs of group and head.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ...models.crossformer_groups import Groups, group_tokens
from ..standard import padding_mask
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


class _Split(nn.Cell):
    """qkv [B, L*3*H, D] -> the rows of q, k and v, [B, W*H*N, D] each; padding has the rows of some token."""

    def construct(self, qkv, q_rows, k_rows, v_rows, back):
        return _gather(qkv, q_rows, 1), _gather(qkv, k_rows, 1), _gather(qkv, v_rows, 1)

    def bprop(self, qkv, q_rows, k_rows, v_rows, back, out, dout):
        none = ops.zeros_like(q_rows)
        return _gather(ops.concat(dout, 1), back, 1), none, none, none, ops.zeros_like(back)


class _Join(nn.Cell):
    """[B, W*H*N, D] -> [B, L*H, D]; the gradient of padding is 0."""

    def construct(self, out, rows, back):
        return _gather(out, rows, 1)

    def bprop(self, out_bkd, rows, back, out, dout):
        if out_bkd.shape[1] > dout.shape[1]:  # padding reads one row behind the last
            dout = ops.concat((dout, ops.zeros_like(dout[:, :1])), 1)
        return _gather(dout, back, 1), ops.zeros_like(rows), ops.zeros_like(back)


class GroupAttention(nn.Cell):
    """Cutting the grid into groups and bringing heads forward is one gathering of rows of D numbers.

    Nothing is padded: a key that is padding is masked, and what a query that is padding reads goes nowhere.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.heads, self.split, self.attend, self.join = heads, _Split(), _Attend(), _Join()

    def construct(self, qkv_t3c, bias_hnn, groups):
        h, n, tokens = self.heads, groups[2] * groups[2], groups[0] * groups[1]
        width = qkv_t3c.shape[1] // 3
        d = width // h
        q_rows, k_rows, v_rows, out_rows, place, back = _group_rows(groups, h)
        q, k, v = self.split(qkv_t3c.reshape(-1, tokens * 3 * h, d), q_rows, k_rows, v_rows, back)
        if groups[6] * groups[7] > tokens:
            bias_hnn = (bias_hnn.expand_dims(0) + padding_mask(groups).expand_dims(1)).reshape(-1, n, n)
        out = self.attend(q.reshape(-1, n, d) * d**-0.5, k.reshape(-1, n, d), v.reshape(-1, n, d), bias_hnn)[0]
        return self.join(out.reshape(-1, groups[6] * groups[7] * h, d), out_rows, place).reshape(-1, width)


@ops.constexpr
def _head_rows(tokens, heads):
    """Rows that bring heads before tokens, and those that bring them back."""
    rows = np.arange(tokens * heads).reshape(tokens, heads).T.reshape(-1)
    return _index(rows), _index(np.argsort(rows))


@ops.constexpr
def _group_rows(groups, heads):
    """Where q, k, v of each group, head and place stand; where the outputs of each token stand; the tokens' outputs for
    each place; and where each row of qkv went."""
    token_wn = group_tokens(Groups(*groups))
    length = groups[0] * groups[1]
    token = np.repeat(token_wn[:, None], heads, 1)  # [W, H, N]
    head = np.arange(heads).reshape(1, -1, 1)
    real = token >= 0
    known = np.where(real, token, 0)
    parts = [_index((known * 3 + part) * heads + head) for part in range(3)]
    went = np.empty(length * heads, np.int64)  # the place of each (token, head)
    went[(token * heads + head)[real]] = np.flatnonzero(real)
    place = np.where(real, token * heads + head, length * heads)
    back = went.reshape(length, 1, heads) + np.arange(3).reshape(1, 3, 1) * real.size
    return (*parts, _index(went), _index(place), _index(back))


def _index(rows: np.ndarray) -> Tensor:
    return Tensor(rows.reshape(-1).astype(np.int32))
