"""Attention in groups of a grid, with a bias on its scores.

B batch, L tokens of a grid, T = B*L, C width, H heads, D = C/H head width, W groups of N tokens.
"""

from __future__ import annotations

import numpy as np
from mindspore import nn, ops

from ...models.crossformer_groups import Groups, group_tokens
from ..standard import padding_mask
from .biased_attention import _Attend, _gather, _index


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
