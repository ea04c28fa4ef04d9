"""CrossViT (arXiv 2103.14899): two branches of patches of different size, fused by their class tokens.

B batch, i branch (0 small patches, 1 large), P patches, N = 1 + P tokens, T = B*N, C width. Tokens travel as [T, C].
Follows the official code to the last epsilon: exact GELU, LayerNorm eps 1e-6, bicubic resize inside the model; or
MindCV's (config.numerics).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, nn, ops

from ..ops import Ops
from .blocks import Block, CrossAttentionBlock, DropPathSchedule, LayerNorm, Linear, empty, first_token
from .crossvit_config import NUMERICS, CrossViTConfig
from .init import init_weights
from .patch_embed import PatchEmbed
from .resize import Resize


def project_token(in_dim: int, out_dim: int, op: Ops) -> nn.SequentialCell:
    """LayerNorm, GELU, Linear, in that order: a class token to the other branch's width (paper eq. 3, f and g)."""
    return nn.SequentialCell(LayerNorm(in_dim, op), op.gelu(), Linear(in_dim, out_dim, op))


class MultiScaleBlock(nn.Cell):
    """One multi-scale encoder: transformer blocks per branch, then each class token reads the other branch.

    With L >= 2 cross-attention blocks the later ones see only the token the first one made, as in the official code
    (row D of the paper's table 6): their softmax is over one key.
    """

    def __init__(
        self,
        config: CrossViTConfig,
        triple: tuple[int, int, int],
        op: Ops,
        drops: DropPathSchedule,
        rates: list[float],
    ):
        super().__init__()
        dims, heads, self.tokens = config.embed_dim, config.num_heads, config.tokens
        self.dims = dims
        self.stacked = triple[2] > 0
        self.blocks = nn.CellList(
            [
                nn.CellList(
                    [
                        Block(
                            dims[i],
                            heads[i],
                            config.hidden_dim[i],
                            self.tokens[i],
                            op,
                            drops,
                            rates[b],
                            config.qkv_bias,
                            NUMERICS[config.numerics].block_eps,
                        )
                        for b in range(triple[i])
                    ]
                )
                for i in range(2)
            ]
        )
        self.projs = nn.CellList([project_token(dims[i], dims[1 - i], op) for i in range(2)])
        self.fusion = nn.CellList([self._fusion(config, 1 - i, triple[2], op, drops, rates[-1]) for i in range(2)])
        self.revert_projs = nn.CellList([project_token(dims[1 - i], dims[i], op) for i in range(2)])

    @staticmethod
    def _fusion(config: CrossViTConfig, j: int, blocks: int, op: Ops, drops: DropPathSchedule, rate: float) -> nn.Cell:
        def block(tokens: int) -> CrossAttentionBlock:
            eps = NUMERICS[config.numerics].block_eps
            return CrossAttentionBlock(
                config.embed_dim[j], config.num_heads[j], tokens, op, drops, rate, config.qkv_bias, eps
            )

        first = block(config.tokens[j])
        return first if blocks == 0 else nn.CellList([first, *(block(1) for _ in range(blocks - 1))])

    def construct(self, x0_tc, x1_tc, drop_scale=None):
        for block in self.blocks[0]:
            x0_tc = block(x0_tc, drop_scale)
        for block in self.blocks[1]:
            x1_tc = block(x1_tc, drop_scale)
        return self.fuse(x0_tc, x1_tc, drop_scale)

    def fuse(self, x0_tc, x1_tc, drop_scale=None):
        """Replaces both class tokens by what they read in the other branch."""
        cls0_bc, patches0_bpc = self.split(x0_tc, 0)
        cls1_bc, patches1_bpc = self.split(x1_tc, 1)
        new0_bc = self._fuse(0, cls0_bc, patches1_bpc, drop_scale)
        new1_bc = self._fuse(1, cls1_bc, patches0_bpc, drop_scale)
        return join(new0_bc, patches0_bpc), join(new1_bc, patches1_bpc)

    def split(self, x_tc, i):
        """Tokens of branch i [B*N, C] -> class tokens [B, C], patches [B, P, C]."""
        x_bnc = x_tc.reshape(-1, self.tokens[i], self.dims[i])
        cls_b1c, patches_bpc = ops.split(x_bnc, [1, self.tokens[i] - 1], 1)  # its gradient is one Concat
        return cls_b1c.reshape(-1, self.dims[i]), patches_bpc

    def _fuse(self, i, cls_bc, other_patches_bpc, drop_scale):
        """The class token of branch i, replaced by what it read in the other branch (no residual to the old one)."""
        token_bc = self.projs[i](cls_bc)
        x_tc = join(token_bc, other_patches_bpc)
        if self.stacked:
            for block in self.fusion[i]:
                token_bc = x_tc = block(token_bc, x_tc, drop_scale)
        else:
            token_bc = self.fusion[i](token_bc, x_tc, drop_scale)
        return self.revert_projs[i](token_bc)


def join(cls_bc, patches_bpc):
    """[B, C] and [B, P, C] -> [B*N, C]."""
    cls_b1c = cls_bc.astype(patches_bpc.dtype).expand_dims(1)
    return ops.concat((cls_b1c, patches_bpc), 1).reshape(-1, cls_bc.shape[1])


class CrossViT(nn.Cell):
    """Image [B, 3, S, S] (S = config.img_size[0], normalised) -> logits [B, num_classes], the mean of two heads.

    drop_path_rate: 0 to 1, linear over depth; the small branch and the fusion take their encoder's first values and
        last value, as in the official code.
    drop_scale (argument of the call, optional): [len(model.drop_rates), B], see DropPath.
    Raises ValueError for an input of another size.
    """

    def __init__(
        self, config: CrossViTConfig, op: Ops, num_classes: int = 1000, drop_path_rate: float = 0.0, seed: int = 0
    ):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.tokens, self.dims, self.input_size = config.tokens, config.embed_dim, config.img_size[0]
        self.sides = tuple(config.img_size[i] // config.patch_size[i] for i in range(2))
        numerics = NUMERICS[config.numerics]
        op = op.with_gelu(numerics.gelu).shared()
        self.pos_embed = ParameterTuple(
            [empty((1, config.tokens[i], config.embed_dim[i]), f"pos_embed.{i}") for i in range(2)]
        )
        self.cls_token = ParameterTuple([empty((1, 1, config.embed_dim[i]), f"cls_token.{i}") for i in range(2)])
        self.resize = nn.CellList([_resize(numerics.resize, self.input_size, config.img_size[i]) for i in range(2)])
        self.patch_embed = nn.CellList(
            [
                PatchEmbed(config.patch_size[i], config.embed_dim[i], config.multi_conv, op, numerics.stem_bias)
                for i in range(2)
            ]
        )
        drops = DropPathSchedule()
        self.blocks = nn.CellList(
            [
                MultiScaleBlock(config, triple, op, drops, rates)
                for triple, rates in zip(config.depth, drop_path_rates(config, drop_path_rate), strict=True)
            ]
        )
        self.drop_rates = tuple(drops.rates)
        self.half_in, self.half_stream = op.half, op.half_stream
        self.norm = nn.CellList([LayerNorm(dim, op) for dim in config.embed_dim])
        self.head = nn.CellList([Linear(dim, num_classes, op) for dim in config.embed_dim])
        init_weights(self, seed)

    def construct(self, x_b3ss, drop_scale=None):
        x0_tc, x1_tc = self.embed(x_b3ss)
        for encoder in self.blocks:
            x0_tc, x1_tc = encoder(x0_tc, x1_tc, drop_scale)
        return self.classify(x0_tc, x1_tc)

    def features(self, x_b3ss: Any, norm: bool = True) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """(class tokens, patch grids) after the last encoder, float32: what a head of one's own is built on.

        Class tokens [B, C] and grids [B, C, H, W], rows from the top, of both branches, the small patches' first; for
        crossvit_9 [B, 128], [B, 256] and [B, 128, 20, 20], [B, 256, 14, 14].
        norm: after the model's last LayerNorms, as its own heads read them. These are the tokens of timm's
            `forward_features`; without it, the grids are those of timm's `features_only=True`.
        Runs as one graph, called by itself or in another Cell's `construct` (plain tuples: a named one would stop the
        gradient there). Raises ValueError as a call does.
        """
        return self._features(x_b3ss, norm)

    @ms.jit
    def _features(self, x_b3ss, norm):
        x0_tc, x1_tc = self.embed(x_b3ss)
        for encoder in self.blocks:
            x0_tc, x1_tc = encoder(x0_tc, x1_tc)
        if norm:
            x0_tc, x1_tc = self.norm[0](x0_tc), self.norm[1](x1_tc)
        cls0_bc, grid0_bchw = self._grid(x0_tc, 0)
        cls1_bc, grid1_bchw = self._grid(x1_tc, 1)
        return (cls0_bc, cls1_bc), (grid0_bchw, grid1_bchw)

    def _grid(self, x_tc, i):
        x_bnc = x_tc.astype(ms.float32).reshape(-1, self.tokens[i], self.dims[i])
        patches_bcp = ops.transpose(x_bnc[:, 1:], (0, 2, 1))
        return x_bnc[:, 0], patches_bcp.reshape(-1, self.dims[i], self.sides[i], self.sides[i])

    def embed(self, x_b3ss):
        """Images -> the tokens of both branches, [B*N, C] each."""
        if x_b3ss.shape[2] != self.input_size or x_b3ss.shape[3] != self.input_size:
            raise ValueError(f"this model takes images of {self.input_size} pixels, not {x_b3ss.shape}")
        return self._embed(x_b3ss, 0), self._embed(x_b3ss, 1)

    def _embed(self, x_b3ss, i):
        tokens, dim = self.tokens[i], self.dims[i]
        patches_bpc = self.patch_embed[i](self.resize[i](x_b3ss)).reshape(-1, tokens - 1, dim)
        if self.half_in:
            patches_bpc = patches_bpc.astype(ms.float32)
        cls_b1c = ops.broadcast_to(self.cls_token[i], (patches_bpc.shape[0], 1, dim))
        x_bnc = ops.concat((cls_b1c, patches_bpc), 1) + self.pos_embed[i]
        if self.half_stream:
            x_bnc = x_bnc.astype(ms.float16)
        return x_bnc.reshape(-1, dim)

    def classify(self, x0_tc, x1_tc):
        """The tokens of both branches -> logits, float32."""
        return (self._head(x0_tc, 0) + self._head(x1_tc, 1)).astype(ms.float32) * 0.5

    def _head(self, x_tc, i):
        return self.head[i](self.norm[i](first_token(x_tc, self.tokens[i])))


def create(config: CrossViTConfig, op: Ops, num_classes: int, drop_path_rate: float, seed: int) -> CrossViT:
    """See Family."""
    return CrossViT(config, op, num_classes, drop_path_rate, seed)


def _resize(kind: str, size: int, new_size: int) -> nn.Cell:
    return nn.Identity() if size == new_size else Resize(kind, size, new_size)


def drop_path_rates(config: CrossViTConfig, rate: float) -> list[list[float]]:
    """The drop-path values of each encoder: its max(N, M) + L next values of a line from 0 to `rate`.

    Block b of either branch uses value b, all cross-attention blocks the last one. The official line has M + L points
    an encoder, which runs out when N > M; ours has max(N, M) + L, the same for every published variant.
    """
    sizes = [max(n, m) + l for n, m, l in config.depth]
    line = np.linspace(0, rate, sum(sizes))
    starts = np.cumsum([0, *sizes])
    return [[float(v) for v in line[a:b]] for a, b in pairwise(starts)]
