"""Resizing inside a model, as two products with a constant matrix.

`mindspore.ops.interpolate(mode="bicubic")` differs from PyTorch by 0.45 on unit noise on the CPU backend.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from .interpolation import MATRICES


class Resize(nn.Cell):
    """[B, C, S, S] -> [B, C, S', S'], in float32; kind is a key of MATRICES."""

    def __init__(self, kind: str, size: int, new_size: int):
        super().__init__()
        self.size, self.new_size = size, new_size
        self.matrix = Tensor(MATRICES[kind](size, new_size))
        self.matmul = ops.MatMul()

    def construct(self, x_bchw):
        channels = x_bchw.shape[1]
        x = self.matmul(x_bchw.reshape(-1, self.size), self.matrix)
        x = ops.transpose(x.reshape(-1, channels, self.size, self.new_size), (0, 1, 3, 2))
        x = self.matmul(x.reshape(-1, self.size), self.matrix)
        return ops.transpose(x.reshape(-1, channels, self.new_size, self.new_size), (0, 1, 3, 2))
