"""Self-attention, and the class token's attention to a normalised sequence.

B batch, N tokens, T = B*N, C width, H heads, D = C/H head width.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from . import pieces
from .linear import Linear, Standardise

_gather = ops.Gather()
_bmm = ops.BatchMatMul()
_bmm_tb = ops.BatchMatMul(transpose_b=True)
_bmm_ta = ops.BatchMatMul(transpose_a=True)
_sum_keep = ops.ReduceSum(keep_dims=True)


class _Attention(nn.Cell):
    def __init__(self, tokens: int, heads: int):
        super().__init__()
        self.tokens, self.heads = tokens, heads
        self.softmax = ops.Softmax(axis=-1)
        rows = np.arange(tokens * 3 * heads).reshape(tokens, 3, heads).transpose(1, 2, 0).reshape(3, -1)
        self.q_rows, self.k_rows, self.v_rows = _rows(rows[0]), _rows(rows[1]), _rows(rows[2])
        self.qkv_rows = _rows(np.argsort(rows.reshape(-1)))
        rows = np.arange(tokens * heads).reshape(tokens, heads).T.reshape(-1)
        self.head_rows, self.token_rows = _rows(rows), _rows(np.argsort(rows))

    def construct(self, qkv_t3c):
        n, h = self.tokens, self.heads
        width = qkv_t3c.shape[1] // 3
        d = width // h
        qkv = qkv_t3c.reshape(-1, n * 3 * h, d)
        q = _gather(qkv, self.q_rows, 1).reshape(-1, n, d) * d**-0.5
        k = _gather(qkv, self.k_rows, 1).reshape(-1, n, d)
        v = _gather(qkv, self.v_rows, 1).reshape(-1, n, d)
        prob = self.softmax(_bmm_tb(q, k).astype(ms.float32)).astype(v.dtype)
        out = _gather(_bmm(prob, v).reshape(-1, h * n, d), self.token_rows, 1)
        return out.reshape(-1, width), q, k, v, prob

    def bprop(self, qkv_t3c, out, dout):
        n, h = self.tokens, self.heads
        d = qkv_t3c.shape[1] // 3 // h
        q, k, v, prob = out[1], out[2], out[3], out[4]
        grad_tc = dout[0]
        row = _sum_keep((grad_tc * out[0]).reshape(-1, n * h, d), -1)
        row = _gather(row, self.head_rows, 1).reshape(-1, n, 1)
        grad = _gather(grad_tc.reshape(-1, n * h, d), self.head_rows, 1).reshape(-1, n, d)
        late_v = ops.depend(v, grad)  # else [V, 1] is made, and kept, as soon as V is there
        d_prob = _bmm_tb(ops.concat((grad, -row), -1), ops.concat((late_v, ops.ones_like(late_v[:, :, :1])), -1))
        d_score = prob * d_prob
        d_q, d_k, d_v = _bmm(d_score, k) * d**-0.5, _bmm_ta(d_score, q), _bmm_ta(prob, grad)
        rows = (d_q.reshape(-1, h * n, d), d_k.reshape(-1, h * n, d), d_v.reshape(-1, h * n, d))
        return (_gather(ops.concat(rows, 1), self.qkv_rows, 1).reshape(qkv_t3c.shape),)


class Attention(nn.Cell):
    """softmax(q k^T / sqrt(D)) v over all tokens of a picture, differentiated as one piece.

    Heads are brought forward by gathering rows of D numbers: half the time of `Transpose`, whose kernel keeps two more
    tensors for ever. The gradient kernel of Softmax is slow, too: dS = P * (dP - rowsum(dO * O)), where the bracket is
    one product, [dO, -rowsum] [V, 1]^T.
    """

    def __init__(self, tokens: int, heads: int):
        super().__init__()
        self.tokens, self.scores = tokens, heads * tokens**2
        self.inner = _Attention(tokens, heads)

    def construct(self, qkv_t3c):
        pictures = qkv_t3c.shape[0] // self.tokens
        return pieces.in_pieces(self.inner, qkv_t3c, pictures, self.scores, pieces.SCORES)


class _Read(nn.Cell):
    """softmax(u x_hat^T) x_hat for a few queries u [B, H, C] of the full width."""

    def __init__(self, tokens: int, eps: float):
        super().__init__()
        self.tokens, self.rows = tokens, Standardise(eps)
        self.softmax = ops.Softmax(axis=-1)

    def construct(self, u_bhc, x_tc):
        hat_tc, inv_std_t = self.rows.forward(x_tc)
        hat_bnc = hat_tc.reshape(-1, self.tokens, x_tc.shape[1])
        prob_bhn = self.softmax(_bmm_tb(u_bhc, hat_bnc))
        return _bmm(prob_bhn, hat_bnc), prob_bhn, hat_tc, inv_std_t

    def bprop(self, u_bhc, x_tc, out, dout):
        read_bhc, prob_bhn, hat_tc, inv_std_t = out[0], out[1], out[2], out[3]
        d_read_bhc = dout[0]
        hat_bnc = hat_tc.reshape(-1, self.tokens, x_tc.shape[1])
        d_prob_bhn = _bmm_tb(d_read_bhc, hat_bnc)
        d_score_bhn = prob_bhn * (d_prob_bhn - _sum_keep(d_read_bhc * read_bhc, -1))
        d_hat_bnc = _bmm_ta(ops.concat((d_score_bhn, prob_bhn), 1), ops.concat((u_bhc, d_read_bhc), 1))
        return _bmm(d_score_bhn, hat_bnc), self.rows.gradient(d_hat_bnc.reshape(x_tc.shape), hat_tc, inv_std_t)


class NormClassAttention(nn.Cell):
    """Attention of each picture's class token to layer_norm(x), without making a key or a value.

    Head by head, q . (K x_n + b) = (K^T q) . x_n + q . b, whose last term the softmax does not see (the gradient of the
    key bias is 0), and sum_n p_n (V x_n + b) = V (sum_n p_n x_n) + b. So the large products with K and V become
    products with one query a head; the norm's own weight and bias are applied to those, too.
    """

    def __init__(self, tokens: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)
        self.query, self.read = Linear(), _Read(tokens, eps)

    def construct(self, cls_bc, x_tc, g_c, b_c, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias):
        width = cls_bc.shape[1]
        h, d = self.heads, width // self.heads
        q_bc = self.query(self.norm(cls_bc, g_c, b_c)[0], q_weight, q_bias) * d**-0.5
        q_hbd = ops.transpose(q_bc.reshape(-1, h, d), (1, 0, 2))
        u_hbc = _bmm(q_hbd, k_weight.reshape(h, d, width)) * g_c
        read_bhc = self.read(ops.transpose(u_hbc, (1, 0, 2)), x_tc)[0] * g_c + b_c
        out_hbd = _bmm_tb(ops.transpose(read_bhc, (1, 0, 2)), v_weight.reshape(h, d, width))
        out_bc = ops.transpose(out_hbd, (1, 0, 2)).reshape(-1, width)
        return out_bc if v_bias is None else ops.bias_add(out_bc, v_bias)


def _rows(indices: np.ndarray) -> Tensor:
    return Tensor(indices.astype(np.int32))
