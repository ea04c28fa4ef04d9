"""The kernels as Cells with gradients. T tokens, C width, I/O in and out width, B pictures, N tokens of a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

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


def _output_side(x: int, kernel_size: int, stride: int, pad: int) -> int:
    return (x + 2 * pad - kernel_size) // stride + 1


class Conv2d(nn.Cell):
    """A convolution of maps [B, H, W, I], or of an image [B, I, H, W], which gets no gradient, to maps [B, H, W, O]."""

    def __init__(self, kernel_size: int, stride: int, pad: int, from_image: bool = False):
        super().__init__()
        self.inner = _Conv2d(kernel_size, stride, pad, from_image)

    def construct(self, x, weight_oikk, bias_o=None):
        return self.inner(x, weight_oikk, _or_zeros(bias_o, weight_oikk))


class _Conv2d(nn.Cell):
    def __init__(self, kernel_size: int, stride: int, pad: int, from_image: bool):
        super().__init__()
        self.from_image, rows = from_image, 2 if from_image else 1
        self.how = Tensor(np.zeros((stride, pad + 1, 1 + from_image), np.float32))  # told by its shape

        def output(x, w, *_):
            sides = (_output_side(n, kernel_size, stride, pad) for n in x[rows : rows + 2])
            return (x[0], *sides, w[0])

        self.forward = kernel("convolution", output)
        gradients = (lambda x, w, *_: (w, (w[0],))) if from_image else (lambda x, w, *_: (w, (w[0],), x))
        self.backward = kernel("convolution_gradient", gradients, 2 if from_image else 3)

    def construct(self, x, weight_oikk, bias_o):
        return self.forward(x, weight_oikk, bias_o, self.how)

    def bprop(self, x, weight_oikk, bias_o, out, dout):
        found = self.backward(x, weight_oikk, dout, self.how)
        return ops.zeros_like(x) if self.from_image else found[2], found[0], found[1]


def _or_zeros(bias_o, weight_oi):
    return ops.zeros((weight_oi.shape[0],), weight_oi.dtype) if bias_o is None else bias_o
