"""Blocks the models of this suite share. Parameter names are the official PyTorch ones.

B batch, N tokens of a picture, T = B*N, C width. Tokens travel as [T, C]; N is known when a block is built.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ..ops import Ops


def empty(shape: tuple[int, ...], name: str) -> Parameter:
    """A parameter of zeros, to be filled by the model's initialisation or by weights."""
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)


class Linear(nn.Cell):
    """[T, I] -> [T, O]; weight [O, I] as in PyTorch."""

    def __init__(self, in_dim: int, out_dim: int, op: Ops, bias: bool = True):
        super().__init__()
        self.weight = empty((out_dim, in_dim), "weight")
        self.bias = empty((out_dim,), "bias") if bias else None
        self.op, self.half, self.half_out = op.linear(), op.half, op.half_branch

    def construct(self, x_ti):
        if not self.half:
            return self.op(x_ti, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.astype(ms.float16)
        y_to = self.op(x_ti.astype(ms.float16), self.weight.astype(ms.float16), bias)
        return y_to if self.half_out else y_to.astype(ms.float32)


class LayerNorm(nn.Cell):
    """[T, C] -> [T, C] over the last axis; `weight` and `bias` are MindSpore's gamma and beta. many: see Ops."""

    def __init__(self, dim: int, op: Ops, eps: float = 1e-6, many: bool = False):
        super().__init__()
        self.weight = empty((dim,), "weight")
        self.bias = empty((dim,), "bias")
        self.eps = eps
        self.op, self.half_in = op.layer_norm(eps, many), op.half

    def construct(self, x_tc):
        if self.half_in:
            x_tc = x_tc.astype(ms.float32)
        return self.op(x_tc, self.weight, self.bias)


class Conv2d(nn.Cell):
    """Convolution between feature maps in the layout of the chosen ops."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int,
        stride: int,
        pad: int,
        op: Ops,
        *,
        from_image: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.weight = empty((channels[1], channels[0], kernel, kernel), "weight")
        self.bias = empty((channels[1],), "bias") if bias else None
        self.op, self.half, self.half_out = op.conv2d(kernel, stride, pad, from_image), op.half, op.half_branch

    def construct(self, x):
        return self.with_weights(x, self.weight, self.bias)

    def with_weights(self, x, weight_oikk, bias_o):
        """The same convolution with other weights, None for no bias."""
        if not self.half:
            return self.op(x, weight_oikk, bias_o)
        bias_o = None if bias_o is None else bias_o.astype(ms.float16)
        y = self.op(x.astype(ms.float16), weight_oikk.astype(ms.float16), bias_o)
        return y if self.half_out else y.astype(ms.float32)


class DepthwiseConv2d(Conv2d):
    """A convolution of each channel by itself."""

    def __init__(self, channels: int, kernel: int, stride: int, pad: int, op: Ops, bias: bool = True):
        super().__init__((1, channels), kernel, stride, pad, op, bias=bias)
        self.op = op.depthwise(kernel, stride, pad)


class Mlp(nn.Cell):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int, op: Ops):
        super().__init__()
        self.fc1 = Linear(dim, hidden, op)
        self.fc2 = Linear(hidden, dim, op)
        self.gelu = op.gelu()

    def construct(self, x_tc):
        return self.fc2(self.gelu(self.fc1(x_tc).astype(ms.float32)))  # never a float16 GELU


class Attention(nn.Cell):
    """Multi-head self-attention with a fused qkv layer, scale (C/H)^-0.5."""

    def __init__(self, dim: int, heads: int, tokens: int, op: Ops, qkv_bias: bool = True):
        super().__init__()
        self.qkv = Linear(dim, 3 * dim, op, bias=qkv_bias)
        self.proj = Linear(dim, dim, op)
        self.attend = op.attention(tokens, heads)

    def construct(self, x_tc):
        return self.proj(self.attend(self.qkv(x_tc)))


class DropPath(nn.Cell):
    """Stochastic depth per sample: keeps a branch with probability 1 - rate and divides it by that probability.

    The kept samples come from row `draw` of `drop_scale` [draws, B] (0 or 1/(1 - rate)) when the caller gives it, so
    that a run can be repeated exactly. Without it the layer draws by itself while training, for other people's loops.
    """

    def __init__(self, rate: float, draw: int, tokens: int, op: Ops):
        super().__init__()
        self.rate, self.draw, self.tokens = rate, draw, tokens
        self.own_draw, self.scale = nn.Dropout(p=rate), op.scale_pictures()

    def construct(self, y_tc, drop_scale=None):
        if self.rate == 0 or not self.training:
            return y_tc
        if drop_scale is None:
            scale_b = self.own_draw(ops.ones((y_tc.shape[0] // self.tokens,), ms.float32))
        else:
            scale_b = drop_scale[self.draw]
        return self.scale(y_tc, scale_b)


class DropPathSchedule:
    """Hands out DropPath layers and remembers the rate of each draw, in order."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def layer(self, rate: float, tokens: int, op: Ops) -> DropPath:
        rate = float(rate)
        draw = len(self.rates)
        if rate > 0:
            self.rates.append(rate)
        return DropPath(rate, draw, tokens, op)

    def coins(self, count: int) -> int:
        """Draws of rate 0.5, for what needs random bits; returns the first one's row."""
        self.rates += [0.5] * count
        return len(self.rates) - count


class AttentionBlock(nn.Cell):
    """Pre-norm self-attention with a residual: x + attn(norm1(x)).

    In float32 a norm and what it feeds are one primitive, so that an implementation may share work between them.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        tokens: int,
        op: Ops,
        drops: DropPathSchedule,
        drop_path: float = 0.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = LayerNorm(dim, op, eps)
        self.attn = Attention(dim, heads, tokens, op, qkv_bias)
        self.drop_attn = drops.layer(drop_path, tokens, op)
        self.norm_linear, self.half = op.norm_linear(eps), op.half

    def construct(self, x_tc, drop_scale=None):
        return add(x_tc, self.drop_attn(self._attention(x_tc), drop_scale))

    def _attention(self, x_tc):
        norm, attn = self.norm1, self.attn
        if self.half:
            return attn(norm(x_tc))
        return attn.proj(attn.attend(self.norm_linear(x_tc, norm.weight, norm.bias, attn.qkv.weight, attn.qkv.bias)))


class Block(AttentionBlock):
    """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        tokens: int,
        op: Ops,
        drops: DropPathSchedule,
        drop_path: float = 0.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
    ):
        super().__init__(dim, heads, tokens, op, drops, drop_path, qkv_bias, eps)
        self.norm2 = LayerNorm(dim, op, eps)
        self.mlp = Mlp(dim, hidden, op)
        self.drop_mlp = drops.layer(drop_path, tokens, op)
        self.norm_mlp = op.norm_mlp(eps)

    def construct(self, x_tc, drop_scale=None):
        x_tc = add(x_tc, self.drop_attn(self._attention(x_tc), drop_scale))
        return add(x_tc, self.drop_mlp(self._mlp(x_tc), drop_scale))

    def _mlp(self, x_tc):
        norm, fc1, fc2 = self.norm2, self.mlp.fc1, self.mlp.fc2
        if self.half:
            return self.mlp(norm(x_tc))
        return self.norm_mlp(x_tc, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)


class CrossAttentionBlock(nn.Cell):
    """The class token attends to itself and the patches: cls + proj(attention(norm(x))); no MLP (paper eq. 4-5).

    Called with the class tokens [B, C] and with all tokens [B*N, C], the class tokens first in each picture.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        tokens: int,
        op: Ops,
        drops: DropPathSchedule,
        drop_path: float = 0.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.tokens = tokens
        self.norm1 = LayerNorm(dim, op, eps)
        self.attn = CrossAttention(dim, heads, tokens, op, qkv_bias)
        self.drop = drops.layer(drop_path, 1, op)
        self.norm_attend, self.half = op.norm_class_attention(tokens, heads, eps), op.half

    def construct(self, cls_bc, x_tc, drop_scale=None):
        return add(cls_bc, self.drop(self._attention(cls_bc, x_tc), drop_scale))

    def _attention(self, cls_bc, x_tc):
        norm, attn = self.norm1, self.attn
        if self.half:
            return attn(norm(cls_bc), norm(x_tc))
        q, k, v = attn.wq, attn.wk, attn.wv
        weights = (norm.weight, norm.bias, q.weight, q.bias, k.weight, k.bias, v.weight, v.bias)
        return attn.proj(self.norm_attend(cls_bc, x_tc, *weights))


class CrossAttention(nn.Cell):
    """Query from the class tokens [B, C], keys and values from all tokens [T, C] -> [B, C]."""

    def __init__(self, dim: int, heads: int, tokens: int, op: Ops, qkv_bias: bool = True):
        super().__init__()
        self.wq = Linear(dim, dim, op, bias=qkv_bias)
        self.wk = Linear(dim, dim, op, bias=qkv_bias)
        self.wv = Linear(dim, dim, op, bias=qkv_bias)
        self.proj = Linear(dim, dim, op)
        self.attend = op.class_attention(tokens, heads)

    def construct(self, cls_bc, x_tc):
        return self.proj(self.attend(self.wq(cls_bc), self.wk(x_tc), self.wv(x_tc)))


def add(stream, branch):
    """stream + branch in the stream's precision."""
    return stream + branch.astype(stream.dtype)


def first_token(x_tc, tokens):
    """[B*N, C] -> [B, C]."""
    if tokens == 1:
        return x_tc
    return x_tc.reshape(-1, tokens, x_tc.shape[1])[:, 0]
