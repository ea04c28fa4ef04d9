"""Token-to-token patch embeddings (Yuan et al., arXiv 2101.11986), CrossViT's `hybrid_backbone`.

B batch, N tokens of a stage, T = B*N, I input width of a stage, E = 64 token width, F = 32 random features, C width of
the branch, k side of a window. Three soft splits take overlapping windows, as rows channel by channel; between them an
attention of one head makes tokens of width 64 of them. Parameter names are the official ones.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..ops import Ops
from .blocks import DropPathSchedule, LayerNorm, Linear, Mlp, add, empty
from .crossvit_config import FEATURES, SOFT_SPLITS, TOKEN_WIDTH, soft_split_sides

EPS = 1e-5
DROPOUT = 0.1
"""Of the performer, whatever the recipe says: the official code's default, which nothing there changes."""
COINS = 24


class T2T(nn.Cell):
    """Image [B, 3, S, S] -> patch tokens [B*P, C], row-major.

    kind: `t2t` for softmax attention, `performer` for its linear approximation. drop_scale (argument of the call): see
    DropPath; needed by the performer in training only, and drawn by itself when left out.
    """

    def __init__(self, kind: str, pixels: int, patch: int, dim: int, op: Ops, drops: DropPathSchedule):
        super().__init__()
        sides, splits = soft_split_sides(pixels, patch), SOFT_SPLITS[patch]
        self.splits = nn.CellList([SoftSplit(*split) for split in splits])
        self.sides = sides
        layers = [
            PerformerLayer(splits[k][0] ** 2 * channels, sides[k] ** 2, op, drops)
            if kind == "performer"
            else TransformerLayer(splits[k][0] ** 2 * channels, sides[k] ** 2, op)
            for k, channels in enumerate((3, TOKEN_WIDTH))
        ]
        self.attention1, self.attention2 = layers
        self.project = Linear(splits[2][0] ** 2 * TOKEN_WIDTH, dim, op)

    def construct(self, x_b3ss, drop_scale=None):
        x_te = self.attention1(self.splits[0](x_b3ss), drop_scale)
        x_te = self.attention2(self.splits[1](self._grid(x_te, 0)), drop_scale)
        return self.project(self.splits[2](self._grid(x_te, 1)))

    def _grid(self, x_te, stage):
        x_bhwe = x_te.reshape(-1, self.sides[stage], self.sides[stage], TOKEN_WIDTH)
        return ops.transpose(x_bhwe, (0, 3, 1, 2))


class SoftSplit(nn.Cell):
    """Overlapping windows of a map [B, E, H, W] -> [B*N, E*k*k], zeros around the map."""

    def __init__(self, kernel: int, stride: int, pad: int):
        super().__init__()
        self.kernel, self.stride, self.pad = kernel, stride, pad

    def construct(self, x_behw):
        x_bin = ops.unfold(x_behw.astype(ms.float32), self.kernel, 1, self.pad, self.stride)
        return ops.transpose(x_bin, (0, 2, 1)).reshape(-1, x_bin.shape[1])


class TransformerLayer(nn.Cell):
    """[T, I] -> [T, E]: v + proj(attention), then + MLP. The residual is v's, since widths differ.

    The attention's scale is I^-0.5, of the input's width, as in the official code, and not the head's E^-0.5.
    """

    def __init__(self, in_dim: int, tokens: int, op: Ops):
        super().__init__()
        self.norm1 = LayerNorm(in_dim, op, EPS)
        self.attn = _Attention(in_dim, tokens, op)
        self.norm2 = LayerNorm(TOKEN_WIDTH, op, EPS)
        self.mlp = Mlp(TOKEN_WIDTH, TOKEN_WIDTH, op)

    def construct(self, x_ti, drop_scale=None):
        y_te = self.attn(self.norm1(x_ti))
        return add(y_te, self.mlp(self.norm2(y_te)))


class _Attention(nn.Cell):
    def __init__(self, in_dim: int, tokens: int, op: Ops):
        super().__init__()
        self.qkv = Linear(in_dim, 3 * TOKEN_WIDTH, op, bias=False)
        self.proj = Linear(TOKEN_WIDTH, TOKEN_WIDTH, op)
        self.attend = op.attention(tokens, 1)
        # `attend` divides by sqrt(E); what is missing to sqrt(I) lies in the queries.
        factors = np.ones((1, 3 * TOKEN_WIDTH), np.float32)
        factors[:, :TOKEN_WIDTH] = math.sqrt(TOKEN_WIDTH / in_dim)
        self.factors = Tensor(factors)

    def construct(self, x_ti):
        qkv_t3e = self.qkv(x_ti)
        y_te = self.proj(self.attend(qkv_t3e * self.factors.astype(qkv_t3e.dtype)))
        return add(qkv_t3e[:, 2 * TOKEN_WIDTH :], y_te)


class PerformerLayer(nn.Cell):
    """[T, I] -> [T, E], as TransformerLayer with exp(q.k) approximated by positive random features, in float32.

    phi(u) = exp(w u - |u|^2/2) / sqrt(F), with rows of `w` [F, E] orthogonal, of length sqrt(F); `w` is drawn once, is
    in weights and checkpoints, and never trained. `kqv` makes keys, queries and values in this order.
    """

    def __init__(self, in_dim: int, tokens: int, op: Ops, drops: DropPathSchedule):
        super().__init__()
        self.tokens = tokens
        self.norm1 = LayerNorm(in_dim, op, EPS)
        self.kqv = Linear(in_dim, 3 * TOKEN_WIDTH, op)
        self.proj = Linear(TOKEN_WIDTH, TOKEN_WIDTH, op)
        self.norm2 = LayerNorm(TOKEN_WIDTH, op, EPS)
        self.mlp = nn.CellList([Linear(TOKEN_WIDTH, TOKEN_WIDTH, op), op.gelu(), Linear(TOKEN_WIDTH, TOKEN_WIDTH, op)])
        self.w = empty((FEATURES, TOKEN_WIDTH), "w")
        self.w.requires_grad = False
        self.drop_proj, self.drop_mlp = SeededDropout(DROPOUT, tokens, drops), SeededDropout(DROPOUT, tokens, drops)
        self.matmul_tb = ops.MatMul(transpose_b=True)
        self.bmm, self.bmm_ta = ops.BatchMatMul(), ops.BatchMatMul(transpose_a=True)

    def construct(self, x_ti, drop_scale=None):
        kqv_t3e = self.kqv(self.norm1(x_ti)).astype(ms.float32)
        k_te, q_te, v_te = ops.split(kqv_t3e, TOKEN_WIDTH, 1)
        read_te = self._attend(self._features(q_te), self._features(k_te), v_te)
        y_te = v_te + self.drop_proj(self.proj(read_te).astype(ms.float32), drop_scale)
        hidden_te = self.mlp[1](self.mlp[0](self.norm2(y_te)).astype(ms.float32))
        return y_te + self.drop_mlp(self.mlp[2](hidden_te).astype(ms.float32), drop_scale)

    def _features(self, u_te):
        half_square_t1 = (u_te * u_te).sum(1, keepdims=True) * 0.5
        return ops.exp(self.matmul_tb(u_te, self.w) - half_square_t1) * FEATURES**-0.5

    def _attend(self, q_tf, k_tf, v_te):
        q_bnf, k_bnf = q_tf.reshape(-1, self.tokens, FEATURES), k_tf.reshape(-1, self.tokens, FEATURES)
        sum_bnf = self.bmm(q_bnf, k_bnf.sum(1).expand_dims(2))
        values_bfe = self.bmm_ta(k_bnf, v_te.reshape(-1, self.tokens, TOKEN_WIDTH))
        return (self.bmm(q_bnf, values_bfe) / (sum_bnf + 1e-8)).reshape(-1, TOKEN_WIDTH)


class SeededDropout(nn.Cell):
    """Dropout of single numbers, repeated exactly when the same `drop_scale` is given, see DropPath.

    A layer's seed for a sample are 24 coins, rows of `drop_scale` that are 0 or 2; whether a number stays follows from
    a hash of the seed and the number's place, in 32-bit integers (multiply and xor-shift, like MurmurHash3).
    """

    def __init__(self, rate: float, tokens: int, drops: DropPathSchedule):
        super().__init__()
        self.rate, self.tokens = rate, tokens
        self.own_draw = nn.Dropout(p=rate)
        self.first = drops.coins(COINS)
        self.places = _int32(np.arange(tokens * TOKEN_WIDTH, dtype=np.uint32) * np.uint32(0x9E3779B1), (1, -1))
        self.odd1, self.odd2 = (_int32(np.array([odd], np.uint32), (1, 1)) for odd in (0x7FEB352D, 0x846CA68B))
        self.powers = _int32(2 ** np.arange(COINS, dtype=np.uint32), (-1, 1))

    def construct(self, y_te, drop_scale=None):
        if not self.training:
            return y_te
        if drop_scale is None:
            return self.own_draw(y_te)
        coins = (drop_scale[self.first : self.first + COINS] > 0).astype(ms.int32)
        seed_b1 = (coins * self.powers).sum(0).astype(ms.int32).reshape(-1, 1)
        hash_bn = self._mix(ops.bitwise_xor(self._mix(seed_b1 * self.odd1), self.places))
        share = ops.bitwise_and(hash_bn, 0xFFFFFF).astype(ms.float32) * 2.0**-24
        keep = (share >= self.rate).astype(y_te.dtype) * (1 / (1 - self.rate))
        return y_te * keep.reshape(y_te.shape)

    def _mix(self, h):
        h = ops.bitwise_xor(h, ops.bitwise_right_shift(h, 15)) * self.odd1
        h = ops.bitwise_xor(h, ops.bitwise_right_shift(h, 13)) * self.odd2
        return ops.bitwise_xor(h, ops.bitwise_right_shift(h, 16))


def _int32(values: np.ndarray, shape: tuple[int, int]) -> Tensor:
    return Tensor(values.view(np.int32).reshape(shape))
