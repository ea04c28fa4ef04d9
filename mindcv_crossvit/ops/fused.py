"""Single operators of Ascend cards where `standard` has several. Not run on Ascend: what is asked of them, layouts and
scales, is tested on the CPU against stand-ins for what MindSpore documents.

B batch, N tokens, T = B*N, C width, H heads, D = C/H head width.
"""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops.auto_generate import GeluExt

from .standard import STANDARD, Attention, ClassAttention, NormMlp

score = ops.flash_attention_score
exact_gelu = GeluExt()


def takes(dtype: object, head_dim: int) -> bool:
    """Whether fused attention takes such queries: half precision, D a multiple of 16 up to 512, as documented."""
    return dtype in (ms.float16, ms.bfloat16) and head_dim % 16 == 0 and head_dim <= 512


class FusedGelu(nn.Cell):
    """x * Phi(x) by one operator; MindSpore's own composition has seven, and ten in the gradient."""

    def __init__(self, approximate: str = "none"):
        super().__init__()
        self.approximate = approximate

    def construct(self, x):
        return exact_gelu(x, self.approximate)


class FusedNormMlp(NormMlp):
    """linear(gelu(linear(layer_norm(x))))."""

    def __init__(self, eps: float, approximate: str = "none"):
        super().__init__(eps, approximate)
        self.gelu = FusedGelu(approximate)


class FusedAttention(Attention):
    """softmax(q k^T / sqrt(D)) v without a matrix of N x N scores in memory; plain attention where it cannot be."""

    def construct(self, qkv_t3c):
        width = qkv_t3c.shape[1] // 3
        head_dim = width // self.heads
        if not takes(qkv_t3c.dtype, head_dim):
            return self.plain(qkv_t3c)
        q_bnc, k_bnc, v_bnc = ops.split(qkv_t3c.reshape(-1, self.tokens, 3 * width), width, 2)
        out_bnc = score(q_bnc, k_bnc, v_bnc, self.heads, scalar_value=head_dim**-0.5, input_layout="BSH")
        return out_bnc.reshape(-1, width)


class FusedClassAttention(ClassAttention):
    """The same for one query a picture."""

    def construct(self, q_bc, k_tc, v_tc):
        width = q_bc.shape[1]
        head_dim = width // self.heads
        if not takes(k_tc.dtype, head_dim):
            return self.plain(q_bc, k_tc, v_tc)
        q_b1c, keys = q_bc.reshape(-1, 1, width), (-1, self.tokens, width)
        out_b1c = score(
            q_b1c, k_tc.reshape(keys), v_tc.reshape(keys), self.heads, scalar_value=head_dim**-0.5, input_layout="BSH"
        )
        return out_b1c.reshape(-1, width)


FUSED = replace(
    STANDARD,
    name="fused",
    norm_mlp=FusedNormMlp,
    gelu=FusedGelu,
    attention=FusedAttention,
    class_attention=FusedClassAttention,
)
