"""DeiT (arXiv 2012.12877) and the single-branch baselines of CrossViT's supplement (arXiv 2103.14899).

B batch, P patches, N = 1 + P tokens, T = B*N, C width. Tokens travel as [T, C]. Exact GELU, LayerNorm eps 1e-6.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ..ops import Ops
from .blocks import Block, DropPathSchedule, LayerNorm, Linear, empty, first_token
from .deit_config import DeiTConfig
from .init import init_weights
from .patch_embed import PatchEmbed


class DeiT(nn.Cell):
    """Image [B, 3, S, S] (S = config.img_size, normalised) -> logits [B, num_classes] of the class token.

    drop_path_rate: 0 to 1, linear over the blocks.
    drop_scale (argument of the call, optional): [len(model.drop_rates), B], see DropPath.
    Raises ValueError for an input of another size.
    """

    def __init__(
        self, config: DeiTConfig, op: Ops, num_classes: int = 1000, drop_path_rate: float = 0.0, seed: int = 0
    ):
        super().__init__()
        self.config, self.num_classes, self.input_size = config, num_classes, config.input_size
        self.tokens, self.dim = config.tokens, config.embed_dim
        op = op.shared()
        self.cls_token = empty((1, 1, self.dim), "cls_token")
        self.pos_embed = empty((1, self.tokens, self.dim), "pos_embed")
        self.patch_embed = PatchEmbed(config.patch_size, self.dim, config.multi_conv, op)
        drops = DropPathSchedule()
        self.blocks = nn.CellList(
            [
                Block(self.dim, config.num_heads, config.hidden_dim, self.tokens, op, drops, rate, config.qkv_bias)
                for rate in np.linspace(0, drop_path_rate, config.depth)
            ]
        )
        self.drop_rates = tuple(drops.rates)
        self.half_in, self.half_stream = op.half, op.half_stream
        self.norm = LayerNorm(self.dim, op)
        self.head = Linear(self.dim, num_classes, op)
        init_weights(self, seed)

    def construct(self, x_b3ss, drop_scale=None):
        x_tc = self.embed(x_b3ss)
        for block in self.blocks:
            x_tc = block(x_tc, drop_scale)
        return self.head(self.norm(first_token(x_tc, self.tokens))).astype(ms.float32)

    def embed(self, x_b3ss):
        """Images -> tokens with class token and positions, [B*N, C]."""
        if x_b3ss.shape[2] != self.input_size or x_b3ss.shape[3] != self.input_size:
            raise ValueError(f"this model takes images of {self.input_size} pixels, not {x_b3ss.shape}")
        patches_bpc = self.patch_embed(x_b3ss).reshape(-1, self.tokens - 1, self.dim)
        if self.half_in:
            patches_bpc = patches_bpc.astype(ms.float32)
        cls_b1c = ops.broadcast_to(self.cls_token, (patches_bpc.shape[0], 1, self.dim))
        x_bnc = ops.concat((cls_b1c, patches_bpc), 1) + self.pos_embed
        if self.half_stream:
            x_bnc = x_bnc.astype(ms.float16)
        return x_bnc.reshape(-1, self.dim)


create = DeiT
"""How the catalogue makes a model of this family: config, primitives, classes, drop_path_rate, seed."""
