"""From an image to patch tokens.

B batch, S pixels of the square image, P patches, C width.
"""

from __future__ import annotations

from mindspore import nn

from ..ops import Ops
from .blocks import Conv2d


class PatchEmbed(nn.Cell):
    """Image [B, 3, S, S] -> patch tokens [B*P, C], row-major: one convolution, or the three of the dagger variants."""

    def __init__(self, patch: int, dim: int, multi_conv: bool, op: Ops, stem_bias: bool = True):
        super().__init__()
        if multi_conv:
            # 12: 240 -> 60 -> 20 -> 20 pixels; 16: 224 -> 56 -> 28 -> 14
            middle, last = ((3, 3, 0), (3, 1, 1)) if patch == 12 else ((3, 2, 1), (3, 2, 1))
            self.proj = nn.SequentialCell(
                Conv2d((3, dim // 4), 7, 4, 3, op, from_image=True, bias=stem_bias),
                nn.ReLU(),
                Conv2d((dim // 4, dim // 2), *middle, op, bias=stem_bias),
                nn.ReLU(),
                Conv2d((dim // 2, dim), *last, op, bias=stem_bias),
            )
        else:
            self.proj = Conv2d((3, dim), patch, patch, 0, op, from_image=True)
        self.to_tokens = op.to_tokens()

    def construct(self, x_b3ss):
        return self.to_tokens(self.proj(x_b3ss))
