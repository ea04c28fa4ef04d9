"""What CrossFormers are made of: cross-scale embeddings, the dynamic position bias, attention in groups, the block.

B batch, H x W tokens of the grid, T = B*H*W, C width, h heads, G tokens on a group's side, N = G*G. Tokens travel as
[T, C], the grid row by row. Sizes of the grid are given with every call: nothing here remembers one.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from ..ops import Ops
from ..ops.standard import place
from .blocks import Conv2d, DepthwiseConv2d, DropPathSchedule, LayerNorm, Linear, Mlp, add
from .crossformer_config import CrossFormerConfig, scale_widths
from .crossformer_groups import group_sides, groups_of, offset_index, offset_table

EPS = 1e-5
"""Of every LayerNorm."""


def cross_scale(kernels: tuple[int, ...], stride: int, channels: int, width: int, op: Ops) -> nn.CellList:
    """The convolutions of a cross-scale embedding: each kernel is centred on the patch of the stride, and their outputs
    stand side by side in the channels."""
    convolutions = [
        Conv2d((channels, out), kernel, stride, (kernel - stride) // 2, op, from_image=channels == 3)
        for kernel, out in zip(kernels, scale_widths(kernels, width), strict=True)
    ]
    return nn.CellList(convolutions)


class PatchEmbed(nn.Cell):
    """Image [B, 3, H*p, W*p] -> [T, C]; p is the first kernel."""

    def __init__(self, config: CrossFormerConfig, op: Ops):
        super().__init__()
        self.projs = cross_scale(config.patch_size, config.patch_size[0], 3, config.embed_dim, op)
        self.norm = LayerNorm(config.embed_dim, op, EPS, many=True)
        self.to_tokens = op.to_tokens()

    def construct(self, x_b3hw):
        scales = ()
        for proj in self.projs:
            scales = scales + (self.to_tokens(proj(x_b3hw)),)  # noqa: RUF005 (the graph parser)
        return self.norm(ops.concat(scales, 1))


class PatchMerging(nn.Cell):
    """[T, C] -> [T/4, 2C]: the norm, then a cross-scale embedding of 2 x 2 tokens."""

    def __init__(self, config: CrossFormerConfig, stage: int, op: Ops):
        super().__init__()
        dim = config.dim(stage)
        self.norm = LayerNorm(dim, op, EPS, many=True)
        self.reductions = cross_scale(config.merge_size[stage], 2, dim, 2 * dim, op)
        self.to_map, self.to_tokens = op.to_map(), op.to_tokens()

    def construct(self, x_tc, height, width):
        x = self.to_map(self.norm(x_tc), height, width)
        scales = ()
        for reduction in self.reductions:
            scales = scales + (self.to_tokens(reduction(x)),)  # noqa: RUF005 (the graph parser)
        return ops.concat(scales, 1).astype(x_tc.dtype)


class DynamicPosBias(nn.Cell):
    """The bias of every pair of tokens in a group, [h, N, N], an MLP of the offset between them; float32 always."""

    def __init__(self, dim: int, heads: int, op: Ops):
        super().__init__()
        op = op.exact()
        self.pos_proj = Linear(2, dim, op)
        self.pos1, self.pos2, self.pos3 = (
            nn.SequentialCell(LayerNorm(dim, op, EPS), nn.ReLU(), Linear(dim, out, op)) for out in (dim, dim, heads)
        )

    def construct(self, side):
        table_rh = self.pos3(self.pos2(self.pos1(self.pos_proj(_offsets(side)))))
        bias_hn = ops.gather(ops.transpose(table_rh, (1, 0)), _pairs(side), 1)
        return bias_hn.reshape(-1, side * side, side * side)


class Attention(nn.Cell):
    """Multi-head attention in groups, with the position bias."""

    def __init__(self, dim: int, heads: int, op: Ops, qkv_bias: bool):
        super().__init__()
        self.qkv = Linear(dim, 3 * dim, op, bias=qkv_bias)
        self.proj = Linear(dim, dim, op)
        self.pos = DynamicPosBias(dim // 16, heads, op)
        self.attend = op.group_attention(heads)

    def construct(self, qkv_t3c, groups):
        return self.proj(self.attend(qkv_t3c, self.pos(groups[2]), groups))


class CrossFormerBlock(nn.Cell):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); a cooling layer, norm(conv(x)), then takes the place of x.

    In float32 a norm and what it feeds are one primitive, as in blocks.Block.
    """

    def __init__(
        self, config: CrossFormerConfig, stage: int, block: int, op: Ops, drops: DropPathSchedule, drop_path: float
    ):
        super().__init__()
        dim = config.dim(stage)
        self.side, self.pad_type = group_sides(config)[stage][block], config.pad_type
        self.interval = config.crs_interval[stage] if block % 2 else 1
        self.norm1 = LayerNorm(dim, op, EPS)
        self.attn = Attention(dim, config.num_heads[stage], op, config.qkv_bias)
        self.norm2 = LayerNorm(dim, op, EPS)
        self.mlp = Mlp(dim, config.hidden_dim(stage), op)
        self.drop_attn, self.drop_mlp = drops.layer(drop_path, 1, op), drops.layer(drop_path, 1, op)
        self.norm_linear, self.norm_mlp = op.norm_linear(EPS), op.norm_mlp(EPS)
        self.half, self.no_mask, self.acl = op.half, config.no_mask, config.has_acl(stage, block)
        if self.acl:
            self.ex_conv = DepthwiseConv2d(dim, 3, 1, 1, op)
            self.ex_ln = LayerNorm(dim, op, EPS, many=True)
            self.to_map, self.to_tokens = op.to_map(), op.to_tokens()

    def construct(self, x_tc, height, width, drop_scale=None):
        groups = _groups(height, width, self.side, self.interval, self.pad_type)
        x_tc = add(x_tc, _drop(self.drop_attn, self._attention(x_tc, groups), height * width, drop_scale))
        x_tc = add(x_tc, _drop(self.drop_mlp, self._mlp(x_tc), height * width, drop_scale))
        if not self.acl:
            return x_tc
        y_tc = self.to_tokens(self.ex_conv(self.to_map(x_tc, height, width)))
        return self.ex_ln(y_tc).astype(x_tc.dtype)

    def _attention(self, x_tc, groups):
        norm, attn = self.norm1, self.attn
        if self.no_mask and groups[6] * groups[7] > groups[0] * groups[1]:
            return self._attend_to_padding(x_tc, groups)
        if self.half:
            return attn(attn.qkv(norm(x_tc)), groups)
        return attn(self.norm_linear(x_tc, norm.weight, norm.bias, attn.qkv.weight, attn.qkv.bias), groups)

    def _attend_to_padding(self, x_tc, groups):
        """The padding is tokens like others, zeros before the query, key and value projection."""
        height, width, side, interval, top, left, rows, columns = groups
        x_bhwc = self.norm1(x_tc).reshape(-1, height, width, x_tc.shape[1])
        x_bhwc = place(place(x_bhwc, 1, top, rows), 2, left, columns)
        inner = (rows, columns, side, interval, 0, 0, rows, columns)
        y_tc = self.attn(self.attn.qkv(x_bhwc.reshape(-1, x_tc.shape[1])), inner)
        y_bhwc = y_tc.reshape(-1, rows, columns, x_tc.shape[1])
        return y_bhwc[:, top : top + height, left : left + width].reshape(x_tc.shape)

    def _mlp(self, x_tc):
        norm, fc1, fc2 = self.norm2, self.mlp.fc1, self.mlp.fc2
        if self.half:
            return self.mlp(norm(x_tc))
        return self.norm_mlp(x_tc, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)


def _drop(drop, y_tc, tokens, drop_scale):
    """DropPath of a picture's tokens as one row, so that their number may change from call to call."""
    return drop(y_tc.reshape(-1, tokens * y_tc.shape[1]), drop_scale).reshape(y_tc.shape)


@ops.constexpr
def _groups(height, width, side, interval, pad_type):
    return tuple(groups_of(height, width, side, interval, pad_type))


@ops.constexpr
def _offsets(side):
    return Tensor(offset_table(side))


@ops.constexpr
def _pairs(side):
    return Tensor(np.ascontiguousarray(offset_index(side).reshape(-1)))
