"""The kernels as Cells with gradients. T tokens, C width, I/O in and out width, B pictures, N tokens of a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..composed import Conv2d as ComposedConv2d
from ..composed import NormMlp as ComposedNormMlp
from .build import library


def kernel(name: str, shapes: Callable[..., Any], outputs: int = 1) -> Any:
    """A kernel by its name; shapes: from the inputs' shapes to the outputs'."""
    kinds = ms.float32 if outputs == 1 else (ms.float32,) * outputs
    return ops.Custom(f"{library()}:{name}", shapes, kinds, func_type="aot")


class _LinearBias(nn.Cell):
    def __init__(self):
        super().__init__()
        self.forward = kernel("linear", lambda x, w, c: (x[0], w[0]))
        self.backward = kernel("linear_gradient", lambda x, w, d: (x, w, (w[0],)), 3)

    def construct(self, x_ti, weight_oi, bias_o):
        return self.forward(x_ti, weight_oi, bias_o)

    def bprop(self, x_ti, weight_oi, bias_o, out, dout):
        return self.backward(x_ti, weight_oi, dout)


class Linear(nn.Cell):
    """x W^T + b on two-dimensional x."""

    def __init__(self):
        super().__init__()
        self.inner = _LinearBias()

    def construct(self, x_ti, weight_oi, bias_o=None):
        return self.inner(x_ti, weight_oi, _or_zeros(bias_o, weight_oi))


class _NormLinear(nn.Cell):
    def __init__(self, eps: float):
        super().__init__()
        self.eps = Tensor(np.array([eps], np.float32))
        self.forward = kernel("norm_linear", lambda x, g, b, e, w, c: (x[0], w[0]))
        self.backward = kernel("norm_linear_gradient", lambda x, g, b, e, w, d: (x, g, b, w, (w[0],)), 5)

    def construct(self, x_tc, g_c, b_c, weight_oc, bias_o):
        return self.forward(x_tc, g_c, b_c, self.eps, weight_oc, bias_o)

    def bprop(self, x_tc, g_c, b_c, weight_oc, bias_o, out, dout):
        return self.backward(x_tc, g_c, b_c, self.eps, weight_oc, dout)


class NormLinear(nn.Cell):
    """linear(layer_norm(x)); keeps x only."""

    def __init__(self, eps: float):
        super().__init__()
        self.inner = _NormLinear(eps)

    def construct(self, x_tc, g_c, b_c, weight_oc, bias_o=None):
        return self.inner(x_tc, g_c, b_c, weight_oc, _or_zeros(bias_o, weight_oc))


class _NormMlp(nn.Cell):
    def __init__(self, eps: float):
        super().__init__()
        self.eps = Tensor(np.array([eps], np.float32))
        self.forward = kernel("norm_mlp", lambda x, g, b, e, v, c, w, d: (x, (x[0], v[0])), 2)
        self.backward = kernel("norm_mlp_gradient", lambda x, g, b, e, v, w, h, d: (x, g, b, v, (v[0],), w, (w[0],)), 7)

    def construct(self, x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c):
        return self.forward(x_tc, g_c, b_c, self.eps, weight1_oc, bias1_o, weight2_co, bias2_c)

    def bprop(self, x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c, out, dout):
        return self.backward(x_tc, g_c, b_c, self.eps, weight1_oc, weight2_co, out[1], dout[0])


class _NormMlpAlone(_NormMlp):
    """For evaluation: keeps nothing but x, and computes the hidden layer again where a gradient is asked for."""

    def __init__(self, eps: float):
        super().__init__(eps)
        self.alone = kernel("norm_mlp", lambda x, g, b, e, v, c, w, d: x)

    def construct(self, x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c):
        return self.alone(x_tc, g_c, b_c, self.eps, weight1_oc, bias1_o, weight2_co, bias2_c)

    def bprop(self, x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c, out, dout):
        hidden_to = self.forward(x_tc, g_c, b_c, self.eps, weight1_oc, bias1_o, weight2_co, bias2_c)[1]
        return self.backward(x_tc, g_c, b_c, self.eps, weight1_oc, weight2_co, hidden_to, dout)


class _ExactNormMlp(nn.Cell):
    """Keeps x, and while training the hidden layer before its GELU."""

    def __init__(self, eps: float):
        super().__init__()
        self.inner, self.alone = _NormMlp(eps), _NormMlpAlone(eps)

    def construct(self, x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c):
        if self.training:
            return self.inner(x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c)[0]
        return self.alone(x_tc, g_c, b_c, weight1_oc, bias1_o, weight2_co, bias2_c)


def norm_mlp(eps: float, approximate: str = "none") -> nn.Cell:
    """linear(gelu(linear(layer_norm(x)))); the tanh form is the composed one's."""
    return _ExactNormMlp(eps) if approximate == "none" else ComposedNormMlp(eps, approximate)


class _Attention(nn.Cell):
    def __init__(self):
        super().__init__()
        self.forward = kernel("attention", lambda s: ((s[0] * s[1], s[3] * s[4]), (s[0], s[3], s[1])), 2)
        self.backward = kernel("attention_gradient", lambda s, y, m, d: s)

    def construct(self, qkv_bn3hd):
        return self.forward(qkv_bn3hd)

    def bprop(self, qkv_bn3hd, out, dout):
        return (self.backward(qkv_bn3hd, out[0], out[1], dout[0]),)


class Attention(nn.Cell):
    """softmax(q k^T / sqrt(D)) v over all tokens of a picture; keeps one number a query and head."""

    def __init__(self, tokens: int, heads: int):
        super().__init__()
        self.tokens, self.heads, self.inner = tokens, heads, _Attention()

    def construct(self, qkv_t3c):
        dim = qkv_t3c.shape[1] // (3 * self.heads)
        return self.inner(qkv_t3c.reshape(-1, self.tokens, 3, self.heads, dim))[0]


class ScalePictures(nn.Cell):
    """Each picture's tokens times a factor of its own."""

    def __init__(self):
        super().__init__()
        self.forward = kernel("scale_pictures", lambda x, f: x)

    def construct(self, x_tc, factors_b):
        return self.forward(x_tc, factors_b)

    def bprop(self, x_tc, factors_b, out, dout):
        return self.forward(dout, factors_b), ops.zeros_like(factors_b)


class _PatchConv(nn.Cell):
    """The patches of an image as rows, and one product; an image has no gradient."""

    def __init__(self, side: int):
        super().__init__()
        self.side, self.linear = Tensor(np.zeros(side, np.float32)), Linear()
        self.patches = kernel("patches", lambda x, p: (x[0] * (x[2] // p[0]) * (x[3] // p[0]), x[1] * p[0] * p[0]))

    def construct(self, x_bchw, weight_oikk, bias_o=None):
        side, outer = self.side.shape[0], weight_oikk.shape[0]
        rows = self.patches(ops.stop_gradient(x_bchw), self.side)
        y = self.linear(rows, weight_oikk.reshape(outer, -1), bias_o)
        return y.reshape(-1, x_bchw.shape[2] // side, x_bchw.shape[3] // side, outer)


def conv2d(kernel_size: int, stride: int, pad: int, from_image: bool = False) -> nn.Cell:
    """A patch embedding by its own kernel, any other convolution by the composed one; maps are [B, H, W, C]."""
    if from_image and kernel_size == stride and pad == 0:
        return _PatchConv(stride)
    return ComposedConv2d(kernel_size, stride, pad, from_image)


def _or_zeros(bias_o, weight_oi):
    return ops.zeros((weight_oi.shape[0],), weight_oi.dtype) if bias_o is None else bias_o
