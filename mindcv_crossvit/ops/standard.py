"""MindSpore's own operators: what an Ascend card runs, and the reference the other implementations are tested against.

B batch, N tokens, T = B*N, C width, H heads, D = C/H head width, I/O in and out width.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..models.crossformer_groups import Groups, group_tokens
from ..runtime import all_reduce
from . import Ops

_product, _product_t = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
MASKED = -3e4
"""Added to a score it makes its softmax exactly 0; float16 holds it."""


class Linear(nn.Cell):
    """x W^T + b on two-dimensional x."""

    def construct(self, x_ti, weight_oi, bias_o=None):
        return ops.dense(x_ti, weight_oi, bias_o)


class Gelu(nn.Cell):
    """x * Phi(x) with the exact normal distribution; "tanh" is MindSpore's own default."""

    def __init__(self, approximate: str = "none"):
        super().__init__()
        self.approximate = approximate

    def construct(self, x):
        return ops.gelu(x, approximate=self.approximate)


class LayerNorm(nn.Cell):
    """Normalises the last axis; eps is always given, MindSpore's default is 1e-7."""

    def __init__(self, eps: float, many: bool = False):
        super().__init__()
        del many  # the same operator
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x_tc, weight_c, bias_c):
        return self.norm(x_tc, weight_c, bias_c)[0]


class NormLinear(nn.Cell):
    """linear(layer_norm(x))."""

    def __init__(self, eps: float):
        super().__init__()
        self.norm = LayerNorm(eps)

    def construct(self, x_tc, g_c, b_c, weight_oc, bias_o=None):
        return ops.dense(self.norm(x_tc, g_c, b_c), weight_oc, bias_o)


class NormMlp(nn.Cell):
    """linear(gelu(linear(layer_norm(x))))."""

    def __init__(self, eps: float, approximate: str = "none"):
        super().__init__()
        self.first, self.gelu = NormLinear(eps), Gelu(approximate)

    def construct(self, x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c):
        hidden_to = self.gelu(self.first(x_tc, g_c, b_c, weight1_oc, bias1_o))
        return ops.dense(hidden_to, weight2_co, bias2_c)


class Attention(nn.Cell):
    """softmax(q k^T / sqrt(D)) v over all tokens of a picture."""

    def __init__(self, tokens: int, heads: int):
        super().__init__()
        self.tokens, self.heads = tokens, heads

    def construct(self, qkv_t3c):
        return self.plain(qkv_t3c)

    def plain(self, qkv_t3c):
        """By products and a softmax, at any precision and head width."""
        width, h = qkv_t3c.shape[1] // 3, self.heads
        qkv = ops.transpose(qkv_t3c.reshape(-1, self.tokens, 3 * h, width // h), (0, 2, 1, 3))
        q_bhnd, k_bhnd, v_bhnd = ops.split(qkv, h, 1)  # its gradient is one Concat
        out_bhnd = _attend(q_bhnd, k_bhnd, v_bhnd)
        return ops.transpose(out_bhnd, (0, 2, 1, 3)).reshape(-1, width)


class ClassAttention(nn.Cell):
    """One query a picture, the class token, against all N keys."""

    def __init__(self, tokens: int, heads: int):
        super().__init__()
        self.tokens, self.heads = tokens, heads

    def construct(self, q_bc, k_tc, v_tc):
        return self.plain(q_bc, k_tc, v_tc)

    def plain(self, q_bc, k_tc, v_tc):
        """By products and a softmax, at any precision and head width."""
        width = q_bc.shape[1]
        head_dim = width // self.heads
        q_bh1d = q_bc.reshape(-1, self.heads, 1, head_dim)
        k_bhnd = ops.transpose(k_tc.reshape(-1, self.tokens, self.heads, head_dim), (0, 2, 1, 3))
        v_bhnd = ops.transpose(v_tc.reshape(-1, self.tokens, self.heads, head_dim), (0, 2, 1, 3))
        return _attend(q_bh1d, k_bhnd, v_bhnd).reshape(-1, width)


class NormClassAttention(nn.Cell):
    """Attention of each picture's class token to layer_norm(x)."""

    def __init__(self, tokens: int, heads: int, eps: float):
        super().__init__()
        self.norm, self.attend = LayerNorm(eps), ClassAttention(tokens, heads)

    def construct(self, cls_bc, x_tc, g_c, b_c, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias):
        query_bc = ops.dense(self.norm(cls_bc, g_c, b_c), q_weight, q_bias)
        x_tc = self.norm(x_tc, g_c, b_c)
        return self.attend(query_bc, ops.dense(x_tc, k_weight, k_bias), ops.dense(x_tc, v_weight, v_bias))


def _attend(q, k, v):
    scores = _product_t(q * (q.shape[-1] ** -0.5), k)
    return _product(ops.softmax(scores.astype(ms.float32), axis=-1).astype(v.dtype), v)


class BiasedAttention(nn.Cell):
    """softmax(q k^T / sqrt(D) + bias + mask) v."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def construct(self, q_bnc, k_bmc, v_bmc, bias_hnm, mask_wnm=None):
        h, width = self.heads, q_bnc.shape[2]
        head_dim = width // h
        q_bhnd = ops.transpose(q_bnc.reshape(-1, q_bnc.shape[1], h, head_dim), (0, 2, 1, 3))
        k_bhmd = ops.transpose(k_bmc.reshape(-1, k_bmc.shape[1], h, head_dim), (0, 2, 1, 3))
        v_bhmd = ops.transpose(v_bmc.reshape(-1, v_bmc.shape[1], h, head_dim), (0, 2, 1, 3))
        scores = _product_t(q_bhnd * head_dim**-0.5, k_bhmd).astype(ms.float32) + bias_hnm
        if mask_wnm is not None:
            shape = scores.shape
            scores = scores.reshape(-1, mask_wnm.shape[0], *shape[1:]) + mask_wnm.expand_dims(1)
            scores = scores.reshape(shape)
        out_bhnd = _product(ops.softmax(scores, axis=-1).astype(v_bmc.dtype), v_bhmd)
        return ops.transpose(out_bhnd, (0, 2, 1, 3)).reshape(q_bnc.shape)


class GroupAttention(nn.Cell):
    """The grid is padded with zeros, cut into groups, attended in, and put together again."""

    def __init__(self, heads: int):
        super().__init__()
        self.attend = BiasedAttention(heads)

    def construct(self, qkv_t3c, bias_hnn, groups):
        height, width, g, i, top, left, rows, columns = groups
        n, c = g * g, qkv_t3c.shape[1] // 3
        x = place(place(qkv_t3c.reshape(-1, height, width, 3 * c), 1, top, rows), 2, left, columns)
        x = x.reshape(-1, rows // (g * i), g, i, columns // (g * i), g, i, 3 * c)
        x_bn3c = ops.transpose(x, (0, 1, 3, 4, 6, 2, 5, 7)).reshape(-1, n, 3 * c)
        q_bnc, k_bnc, v_bnc = ops.split(x_bn3c, c, -1)
        mask_w1n = padding_mask(groups) if rows * columns > height * width else None
        out_bnc = self.attend(q_bnc, k_bnc, v_bnc, bias_hnn, mask_w1n)
        y = out_bnc.reshape(-1, rows // (g * i), i, columns // (g * i), i, g, g, c)
        y = ops.transpose(y, (0, 1, 5, 2, 3, 6, 4, 7)).reshape(-1, rows, columns, c)
        return y[:, top : top + height, left : left + width].reshape(-1, c)


def place(x, axis, before, size):
    """`x` from place `before` of `size` places along an axis, zeros around it."""
    for count, first in ((before, True), (size - before - x.shape[axis], False)):
        if count:
            zeros = ops.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype)
            x = ops.concat((zeros, x) if first else (x, zeros), axis)
    return x


@ops.constexpr
def padding_mask(groups):
    """[W, 1, N] float32, 0 for tokens of the grid and MASKED for padding."""
    return Tensor(np.where(group_tokens(Groups(*groups)) < 0, MASKED, 0).astype(np.float32)[:, None])


class ScalePictures(nn.Cell):
    """Each picture's tokens times a factor of its own."""

    def construct(self, x_tc, factors_b):
        batch = factors_b.shape[0]
        return (x_tc.reshape(batch, -1) * factors_b.reshape(batch, 1).astype(x_tc.dtype)).reshape(x_tc.shape)


class Conv2d(nn.Cell):
    """Convolution on maps [B, C, H, W]."""

    def __init__(self, kernel: int, stride: int, pad: int, from_image: bool = False):
        super().__init__()
        del from_image  # images and maps have one layout here
        self.stride, self.pad, self.kernel = stride, pad, kernel

    def construct(self, x_bchw, weight_oikk, bias_o=None):
        return ops.conv2d(x_bchw, weight_oikk, bias_o, stride=self.stride, pad_mode="pad", padding=self.pad)


class Depthwise(nn.Cell):
    """Convolution of each channel by itself on maps [B, C, H, W]."""

    def __init__(self, kernel: int, stride: int, pad: int):
        super().__init__()
        self.stride, self.pad = stride, pad

    def construct(self, x_bchw, weight_c1kk, bias_c=None):
        channels = weight_c1kk.shape[0]
        return ops.conv2d(x_bchw, weight_c1kk, bias_c, self.stride, "pad", self.pad, 1, channels)


class BatchNorm(nn.Cell):
    """On maps [B, C, H, W]. Written out: MindSpore's operator keeps running statistics of its own, and each backend
    another variance; its SyncBatchNorm is Ascend's only."""

    def __init__(self, eps: float, ranks: int = 1):
        super().__init__()
        self.eps, self.ranks = eps, ranks
        if ranks > 1:
            self.sum_of_ranks = all_reduce()

    def construct(self, x_bchw, weight_c, bias_c):
        mean_c = self._mean(x_bchw)
        centred = x_bchw - mean_c.reshape(1, -1, 1, 1)
        variance_c = self._mean(centred * centred)
        factor_c = weight_c * ops.rsqrt(variance_c + self.eps)
        y_bchw = centred * factor_c.reshape(1, -1, 1, 1) + bias_c.reshape(1, -1, 1, 1)
        return y_bchw, mean_c, variance_c

    def _mean(self, x_bchw):
        mean_c = x_bchw.mean((0, 2, 3))
        return self.sum_of_ranks(mean_c) / self.ranks if self.ranks > 1 else mean_c


class ToTokens(nn.Cell):
    """[B, C, H, W] -> [B*H*W, C]."""

    def construct(self, x_bchw):
        return ops.transpose(x_bchw, (0, 2, 3, 1)).reshape(-1, x_bchw.shape[1])


class ToMap(nn.Cell):
    """[B*H*W, C] -> [B, C, H, W]."""

    def construct(self, x_tc, height, width):
        return ops.transpose(x_tc.reshape(-1, height, width, x_tc.shape[1]), (0, 3, 1, 2))


STANDARD = Ops(
    "standard",
    Linear,
    NormLinear,
    NormMlp,
    Gelu,
    LayerNorm,
    Attention,
    ClassAttention,
    NormClassAttention,
    BiasedAttention,
    GroupAttention,
    ScalePictures,
    Conv2d,
    Depthwise,
    BatchNorm,
    ToTokens,
    ToMap,
)
