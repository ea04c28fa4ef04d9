"""CrossViT (arXiv 2103.14899): two branches of patches of different size, fused by their class tokens.

B batch, i branch (0 small patches, 1 large), P patches, N = P + class token, T = B*N, C width. Tokens travel as [T, C].
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
from .blocks import DropPathSchedule, LayerNorm, Linear, empty, first_token
from .crossvit_config import BRANCHES, NUMERICS, CrossViTConfig
from .fusion import ENCODERS
from .init import init_weights
from .patch_embed import PatchEmbed
from .resize import Resize
from .t2t import T2T


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
        self.tokens, self.patches, self.dims = config.tokens, config.patches, config.embed_dim
        self.input_size, self.has_cls = config.img_size[0], config.cls_token
        self.sides = tuple(config.img_size[i] // config.patch_size[i] for i in range(2))
        numerics = NUMERICS[config.numerics]
        op = op.with_gelu(numerics.gelu).shared()
        self.pos_embed = ParameterTuple(
            [empty((1, config.tokens[i], config.embed_dim[i]), f"pos_embed.{i}") for i in range(2)]
        )
        if config.cls_token:
            self.cls_token = ParameterTuple([empty((1, 1, dim), f"cls_token.{i}") for i, dim in enumerate(self.dims)])
        self.resize = nn.CellList([_resize(numerics.resize, self.input_size, config.img_size[i]) for i in range(2)])
        drops = DropPathSchedule()
        self.patch_embed = nn.CellList([_patch_embed(config, i, op, drops) for i in range(2)])
        self.random_embed = config.hybrid_backbone is not None
        self.blocks = nn.CellList(
            [
                ENCODERS[config.fusion](config, triple, op, drops, rates)
                for triple, rates in zip(config.depth, drop_path_rates(config, drop_path_rate), strict=True)
            ]
        )
        self.drop_rates = tuple(drops.rates)
        self.half_in, self.half_stream = op.half, op.half_stream
        self.norm = nn.CellList([LayerNorm(dim, op) for dim in config.embed_dim])
        self.head = nn.CellList([Linear(dim, num_classes, op) for dim in config.embed_dim])
        init_weights(self, seed)

    def construct(self, x_b3ss, drop_scale=None):
        x0_tc, x1_tc = self.encode(x_b3ss, drop_scale)
        return self.classify(x0_tc, x1_tc)

    def encode(self, x_b3ss, drop_scale=None):
        """Images -> the tokens of both branches after the last encoder, [B*N, C] each."""
        x0_tc, x1_tc = self.embed(x_b3ss, drop_scale)
        for encoder in self.blocks:
            x0_tc, x1_tc = encoder(x0_tc, x1_tc, drop_scale)
        return x0_tc, x1_tc

    def features(self, x_b3ss: Any, norm: bool = True) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """(class tokens, patch grids) after the last encoder, float32: what a head of one's own is built on.

        Class tokens [B, C] and grids [B, C, H, W], rows from the top, of both branches, the small patches' first; for
        crossvit_9 [B, 128], [B, 256] and [B, 128, 20, 20], [B, 256, 14, 14]. A model without class tokens gives the
        mean of its patches instead.
        norm: after the model's last LayerNorms, as its own heads read them. These are the tokens of timm's
            `forward_features`; without it, the grids are those of timm's `features_only=True`.
        Runs as one graph, called by itself or in another Cell's `construct` (plain tuples: a named one would stop the
        gradient there). Raises ValueError as a call does.
        """
        return self._features(x_b3ss, norm)

    @ms.jit
    def _features(self, x_b3ss, norm):
        x0_tc, x1_tc = self.encode(x_b3ss)
        if norm:
            x0_tc, x1_tc = self.norm[0](x0_tc), self.norm[1](x1_tc)
        cls0_bc, grid0_bchw = self._grid(x0_tc, 0)
        cls1_bc, grid1_bchw = self._grid(x1_tc, 1)
        return (cls0_bc, cls1_bc), (grid0_bchw, grid1_bchw)

    def _grid(self, x_tc, i):
        x_bnc = x_tc.astype(ms.float32).reshape(-1, self.tokens[i], self.dims[i])
        cls_bc, patches_bpc = (x_bnc[:, 0], x_bnc[:, 1:]) if self.has_cls else (x_bnc.mean(1), x_bnc)
        patches_bcp = ops.transpose(patches_bpc, (0, 2, 1))
        return cls_bc, patches_bcp.reshape(-1, self.dims[i], self.sides[i], self.sides[i])

    def embed(self, x_b3ss, drop_scale=None):
        """Images -> the tokens of both branches, [B*N, C] each."""
        if x_b3ss.shape[2] != self.input_size or x_b3ss.shape[3] != self.input_size:
            raise ValueError(f"this model takes images of {self.input_size} pixels, not {x_b3ss.shape}")
        return self._embed(x_b3ss, 0, drop_scale), self._embed(x_b3ss, 1, drop_scale)

    def _embed(self, x_b3ss, i, drop_scale):
        dim, image = self.dims[i], self.resize[i](x_b3ss)
        x_tc = self.patch_embed[i](image, drop_scale) if self.random_embed else self.patch_embed[i](image)
        x_bnc = x_tc.reshape(-1, self.patches[i], dim)
        if self.half_in:
            x_bnc = x_bnc.astype(ms.float32)
        if self.has_cls:
            x_bnc = ops.concat((ops.broadcast_to(self.cls_token[i], (x_bnc.shape[0], 1, dim)), x_bnc), 1)
        x_bnc = x_bnc + self.pos_embed[i]
        if self.half_stream:
            x_bnc = x_bnc.astype(ms.float16)
        return x_bnc.reshape(-1, dim)

    def classify(self, x0_tc, x1_tc):
        """The tokens of both branches -> logits, float32."""
        return (self.branch_logits(x0_tc, 0) + self.branch_logits(x1_tc, 1)) * 0.5

    def branch_logits(self, x_tc, i):
        """The tokens of branch i after the last encoder -> the logits of its head, float32."""
        if self.has_cls:
            read_bc = self.norm[i](first_token(x_tc, self.tokens[i]))
        else:
            read_bc = self.norm[i](x_tc).astype(ms.float32).reshape(-1, self.tokens[i], self.dims[i]).mean(1)
        return self.head[i](read_bc).astype(ms.float32)

    def of_branch(self, branch: str) -> nn.Cell:
        """Image -> the logits of one branch's head alone, `small` or `large`; a Cell with this model's parameters."""
        return _OneHead(self, BRANCHES.index(branch))


class _OneHead(nn.Cell):
    def __init__(self, model: CrossViT, i: int):
        super().__init__(auto_prefix=False)  # the model's parameters keep their names
        self.model, self.i = model, i

    def construct(self, x_b3ss):
        return self.model.branch_logits(self.model.encode(x_b3ss)[self.i], self.i)


def create(config: CrossViTConfig, op: Ops, num_classes: int, drop_path_rate: float, seed: int) -> CrossViT:
    """See Family."""
    return CrossViT(config, op, num_classes, drop_path_rate, seed)


def _patch_embed(config: CrossViTConfig, i: int, op: Ops, drops: DropPathSchedule) -> nn.Cell:
    patch, dim = config.patch_size[i], config.embed_dim[i]
    if config.hybrid_backbone:
        return T2T(config.hybrid_backbone, config.img_size[i], patch, dim, op, drops)
    return PatchEmbed(patch, dim, config.multi_conv, op, NUMERICS[config.numerics].stem_bias)


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
