"""Fused attention of Ascend cards. Not run on Ascend: its layout and scale are tested against a stand-in on the CPU.

B batch, N tokens, T = B*N, C width, H heads, D = C/H head width.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

from .standard import Attention

score = ops.flash_attention_score


def takes(dtype: object, head_dim: int) -> bool:
    """Whether the fused operator takes such queries: half precision, D a multiple of 16 up to 512, as documented."""
    return dtype in (ms.float16, ms.bfloat16) and head_dim % 16 == 0 and head_dim <= 512


class FlashAttention(Attention):
    """softmax(q k^T / sqrt(D)) v without a matrix of N x N scores in memory; plain attention where it cannot be."""

    def construct(self, qkv_t3c):
        width = qkv_t3c.shape[1] // 3
        head_dim = width // self.heads
        if not takes(qkv_t3c.dtype, head_dim):
            return self.plain(qkv_t3c)
        q_bnc, k_bnc, v_bnc = ops.split(qkv_t3c.reshape(-1, self.tokens, 3 * width), width, 2)
        out_bnc = score(q_bnc, k_bnc, v_bnc, self.heads, scalar_value=head_dim**-0.5, input_layout="BSH")
        return out_bnc.reshape(-1, width)
