"""Multi-scale encoders: transformer blocks per branch, then an exchange between the branches, in five ways.

B batch, i branch and j the other, P patches, N = P + class token, T = B*N, C width of a branch, D width of the large
branch. f_i and g_i stand for LayerNorm, GELU, Linear: to the common width and back, `projs.i` and `revert_projs.i`.

The paper describes the fusions and leaves details open (which projections, which widths), and only cross-attention has
official code. The others are read so that the paper's parameters and FLOPs come out (all within its digits, but
all-attention's parameters: 26.9 M here, 27.7 M there): the common width is D, and where only class tokens and patches
are added up, the large branch needs no projections.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from ..ops import Ops
from .blocks import AttentionBlock, Block, CrossAttentionBlock, DropPathSchedule, LayerNorm, Linear
from .crossvit_config import NUMERICS, CrossViTConfig
from .resize import Resize


def join(cls_bc, patches_bpc):
    """[B, C] and [B, P, C] -> [B*N, C]."""
    cls_b1c = cls_bc.astype(patches_bpc.dtype).expand_dims(1)
    return ops.concat((cls_b1c, patches_bpc), 1).reshape(-1, cls_bc.shape[1])


class MultiScaleBlock(nn.Cell):
    """Fusion `none`: N blocks for the small branch, M for the large one, and no exchange.

    triple: (N, M, L). rates: drop-path of the blocks, of a fusion the last one.
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
        self.tokens, self.patches, self.dims = config.tokens, config.patches, config.embed_dim
        self.has_cls, self.same_width_identity = config.cls_token, config.identity_projs
        self.eps = NUMERICS[config.numerics].block_eps
        self.blocks = nn.CellList(
            [nn.CellList([self._block(config, i, op, drops, rates[b]) for b in range(triple[i])]) for i in range(2)]
        )

    def _block(self, config: CrossViTConfig, i: int, op: Ops, drops: DropPathSchedule, rate: float) -> Block:
        dim, hidden, heads = config.embed_dim[i], config.hidden_dim[i], config.num_heads[i]
        return Block(dim, heads, hidden, config.tokens[i], op, drops, rate, config.qkv_bias, self.eps)

    def _project(self, in_dim: int, out_dim: int, op: Ops) -> nn.Cell:
        """LayerNorm, GELU, Linear, in that order: f or g."""
        if in_dim == out_dim and self.same_width_identity:
            return nn.Identity()
        return nn.SequentialCell(LayerNorm(in_dim, op), op.gelu(), Linear(in_dim, out_dim, op))

    def construct(self, x0_tc, x1_tc, drop_scale=None):
        for block in self.blocks[0]:
            x0_tc = block(x0_tc, drop_scale)
        for block in self.blocks[1]:
            x1_tc = block(x1_tc, drop_scale)
        return self.fuse(x0_tc, x1_tc, drop_scale)

    def fuse(self, x0_tc, x1_tc, drop_scale=None):
        """The tokens of both branches, [B*N, C] each, after the exchange."""
        return x0_tc, x1_tc

    def split(self, x_tc, i):
        """Tokens of branch i [B*N, C] -> [B, C], patches [B, P, C]: its class tokens, or the mean of its patches."""
        x_bnc = x_tc.reshape(-1, self.tokens[i], self.dims[i])
        if not self.has_cls:
            return x_bnc.astype(ms.float32).mean(1), x_bnc
        cls_b1c, patches_bpc = ops.split(x_bnc, [1, self.tokens[i] - 1], 1)  # its gradient is one Concat
        return cls_b1c.reshape(-1, self.dims[i]), patches_bpc


class CrossAttentionEncoder(MultiScaleBlock):
    """Each class token reads the other branch's patches and is replaced by what it read (no residual to the old one).

    z_i = [g_i(CA([f_i(cls_i), patches_j])), patches_i], where CA adds attention of the first token to all (eq. 4-5).
    With L >= 2 cross-attention blocks the later ones see only the token the first one made, as in the official code
    (row D of the paper's table 6): their softmax is over one key.
    Without class tokens, the mean of the patches reads, and g_i of what it read is added to every patch of the branch.
    The paper says only that the patches' average is used "as the CLS token".
    """

    def __init__(self, config, triple, op, drops, rates):
        super().__init__(config, triple, op, drops, rates)
        dims = config.embed_dim
        self.stacked = triple[2] > 0
        self.projs = nn.CellList([self._project(dims[i], dims[1 - i], op) for i in range(2)])
        self.fusion = nn.CellList([self._fusion(config, 1 - i, triple[2], op, drops, rates[-1]) for i in range(2)])
        self.revert_projs = nn.CellList([self._project(dims[1 - i], dims[i], op) for i in range(2)])

    def _fusion(self, config: CrossViTConfig, j: int, blocks: int, op: Ops, drops: DropPathSchedule, rate: float):
        def block(tokens: int) -> CrossAttentionBlock:
            dim, heads = config.embed_dim[j], config.num_heads[j]
            return CrossAttentionBlock(dim, heads, tokens, op, drops, rate, config.qkv_bias, self.eps)

        first = block(config.patches[j] + 1)
        return first if blocks == 0 else nn.CellList([first, *(block(1) for _ in range(blocks - 1))])

    def fuse(self, x0_tc, x1_tc, drop_scale=None):
        cls0_bc, patches0_bpc = self.split(x0_tc, 0)
        cls1_bc, patches1_bpc = self.split(x1_tc, 1)
        new0_bc = self._read(0, cls0_bc, patches1_bpc, drop_scale)
        new1_bc = self._read(1, cls1_bc, patches0_bpc, drop_scale)
        if self.has_cls:
            return join(new0_bc, patches0_bpc), join(new1_bc, patches1_bpc)
        return _add_to_each(patches0_bpc, new0_bc), _add_to_each(patches1_bpc, new1_bc)

    def _read(self, i, cls_bc, other_patches_bpc, drop_scale):
        token_bc = self.projs[i](cls_bc)
        x_tc = join(token_bc, other_patches_bpc)
        if self.stacked:
            for block in self.fusion[i]:
                token_bc = x_tc = block(token_bc, x_tc, drop_scale)
        else:
            token_bc = self.fusion[i](token_bc, x_tc, drop_scale)
        return self.revert_projs[i](token_bc)


class AllAttentionEncoder(MultiScaleBlock):
    """All tokens of both branches attend to all: z = g(o), o = y + attention(LayerNorm(y)), y = [f_0(x_0), f_1(x_1)].

    Width D with the large branch's heads; both branches have f and g, no MLP follows.
    """

    def __init__(self, config, triple, op, drops, rates):
        super().__init__(config, triple, op, drops, rates)
        dims, heads = config.embed_dim, config.num_heads
        self.projs = nn.CellList([self._project(dims[i], dims[1], op) for i in range(2)])
        tokens = sum(config.tokens)
        self.fusion = AttentionBlock(dims[1], heads[1], tokens, op, drops, rates[-1], config.qkv_bias, self.eps)
        self.revert_projs = nn.CellList([self._project(dims[1], dims[i], op) for i in range(2)])

    def fuse(self, x0_tc, x1_tc, drop_scale=None):
        width = self.dims[1]
        y0_bnd = self.projs[0](x0_tc).astype(x0_tc.dtype).reshape(-1, self.tokens[0], width)
        y1_bnd = self.projs[1](x1_tc).astype(x1_tc.dtype).reshape(-1, self.tokens[1], width)
        o_td = self.fusion(ops.concat((y0_bnd, y1_bnd), 1).reshape(-1, width), drop_scale)
        o_bnd = o_td.reshape(-1, self.tokens[0] + self.tokens[1], width)
        o0_bnd, o1_bnd = ops.split(o_bnd, [self.tokens[0], self.tokens[1]], 1)
        z0_tc, z1_tc = self.revert_projs[0](o0_bnd.reshape(-1, width)), self.revert_projs[1](o1_bnd.reshape(-1, width))
        return z0_tc.astype(x0_tc.dtype), z1_tc.astype(x1_tc.dtype)


class ClassTokenEncoder(MultiScaleBlock):
    """The class tokens are added, s = f_0(cls_0) + cls_1: z_0 = [g_0(s), patches_0], z_1 = [s, patches_1]."""

    def __init__(self, config, triple, op, drops, rates):
        super().__init__(config, triple, op, drops, rates)
        small, large = config.embed_dim
        self.projs = nn.CellList([self._project(small, large, op)])
        self.revert_projs = nn.CellList([self._project(large, small, op)])

    def fuse(self, x0_tc, x1_tc, drop_scale=None):
        cls0_bc, patches0_bpc = self.split(x0_tc, 0)
        cls1_bc, patches1_bpc = self.split(x1_tc, 1)
        sum_bd = self.projs[0](cls0_bc) + cls1_bc
        return join(self.revert_projs[0](sum_bd), patches0_bpc), join(sum_bd, patches1_bpc)


class PairwiseEncoder(ClassTokenEncoder):
    """As ClassTokenEncoder, and patches at the same place, too: f_0 and g_0 are those of the class token.

    z_0's patches are g_0(f_0(p_0) + R(p_1)), z_1's are p_1 + R(f_0(p_0)). R resizes the other branch's grid: bilinear
    between the middles of patches, without antialiasing, where the paper says "interpolation" only.
    """

    def __init__(self, config, triple, op, drops, rates):
        super().__init__(config, triple, op, drops, rates)
        self.sides = tuple(config.img_size[i] // config.patch_size[i] for i in range(2))
        self.resize = nn.CellList([Resize("bilinear_middles", self.sides[1 - i], self.sides[i]) for i in range(2)])

    def fuse(self, x0_tc, x1_tc, drop_scale=None):
        width = self.dims[1]
        f0_bnd = self.projs[0](x0_tc).astype(x1_tc.dtype).reshape(-1, self.tokens[0], width)
        x1_bnd = x1_tc.reshape(-1, self.tokens[1], width)
        cls0_b1d, patches0_bpd = ops.split(f0_bnd, [1, self.tokens[0] - 1], 1)
        cls1_b1d, patches1_bpd = ops.split(x1_bnd, [1, self.tokens[1] - 1], 1)
        sum_b1d = cls0_b1d + cls1_b1d
        new0_bpd = patches0_bpd + self._resized(patches1_bpd, 0)
        new1_bpd = patches1_bpd + self._resized(patches0_bpd, 1)
        z0_tc = self.revert_projs[0](ops.concat((sum_b1d, new0_bpd), 1).reshape(-1, width))
        return z0_tc.astype(x0_tc.dtype), ops.concat((sum_b1d, new1_bpd), 1).reshape(-1, width)

    def _resized(self, patches_bpd, i):
        """Patches of the other branch on the grid of branch i, [B, P_i, D]."""
        width, side = self.dims[1], self.sides[1 - i]
        grid_bdhw = ops.transpose(patches_bpd.astype(ms.float32), (0, 2, 1)).reshape(-1, width, side, side)
        resized_bdp = self.resize[i](grid_bdhw).reshape(-1, width, self.patches[i])
        return ops.transpose(resized_bdp, (0, 2, 1)).astype(patches_bpd.dtype)


def _add_to_each(patches_bpc, token_bc):
    """[B, P, C] plus [B, C] for every patch -> [B*P, C]."""
    return (patches_bpc + token_bc.astype(patches_bpc.dtype).expand_dims(1)).reshape(-1, token_bc.shape[1])


ENCODERS = {
    "none": MultiScaleBlock,
    "all_attention": AllAttentionEncoder,
    "class_token": ClassTokenEncoder,
    "pairwise": PairwiseEncoder,
    "cross_attention": CrossAttentionEncoder,
}
"""By the name of a fusion, see crossvit_config.FUSIONS."""
