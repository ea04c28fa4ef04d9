"""MindSpore's own operators: what an Ascend card runs, and the reference the other implementations are tested against.

B batch, N tokens, T = B*N, C width, H heads, D = C/H head width, I/O in and out width.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from ..runtime import all_reduce
from . import Ops


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

    def __init__(self, eps: float):
        super().__init__()
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
        width = qkv_t3c.shape[1] // 3
        head_dim = width // self.heads
        qkv = ops.transpose(qkv_t3c.reshape(-1, self.tokens, 3, self.heads, head_dim), (2, 0, 3, 1, 4))
        q_bhnd, k_bhnd, v_bhnd = qkv[0], qkv[1], qkv[2]
        out_bhnd = _attend(q_bhnd, k_bhnd, v_bhnd)
        return ops.transpose(out_bhnd, (0, 2, 1, 3)).reshape(-1, width)


class ClassAttention(nn.Cell):
    """One query a picture, the class token, against all N keys."""

    def __init__(self, tokens: int, heads: int):
        super().__init__()
        self.tokens, self.heads = tokens, heads

    def construct(self, q_bc, k_tc, v_tc):
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
    scores = ops.matmul(q * (q.shape[-1] ** -0.5), ops.transpose(k, (0, 1, 3, 2)))
    return ops.matmul(ops.softmax(scores.astype(ms.float32), axis=-1).astype(v.dtype), v)


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


class BiasedAttention(nn.Cell):
    """softmax(q k^T / sqrt(D) + bias + mask) v."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def construct(self, q_bnc, k_bmc, v_bmc, bias_hnm, mask_wnm=None):
        h, width = self.heads, q_bnc.shape[2]
        head_dim = width // h
        q_bhnd = ops.transpose(q_bnc.reshape(-1, q_bnc.shape[1], h, head_dim), (0, 2, 1, 3))
        k_bhdm = ops.transpose(k_bmc.reshape(-1, k_bmc.shape[1], h, head_dim), (0, 2, 3, 1))
        v_bhmd = ops.transpose(v_bmc.reshape(-1, v_bmc.shape[1], h, head_dim), (0, 2, 1, 3))
        scores = ops.matmul(q_bhnd * head_dim**-0.5, k_bhdm).astype(ms.float32) + bias_hnm
        if mask_wnm is not None:
            shape = scores.shape
            scores = scores.reshape(-1, mask_wnm.shape[0], *shape[1:]) + mask_wnm.expand_dims(1)
            scores = scores.reshape(shape)
        out_bhnd = ops.matmul(ops.softmax(scores, axis=-1).astype(v_bmc.dtype), v_bhmd)
        return ops.transpose(out_bhnd, (0, 2, 1, 3)).reshape(q_bnc.shape)


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
    ScalePictures,
    Conv2d,
    Depthwise,
    BatchNorm,
    ToTokens,
    ToMap,
    BiasedAttention,
)
