"""CabViT-H (Haokui Zhang and others, 2022): convolution stages, then attention that reads all earlier blocks' digests.

B batch, N tokens of a map of S x S pixels, T = B*N, C width, H heads, M tokens of the digests so far. Tokens travel as
[T, C], row-major. Follows the official code, which mixes LayerNorm epsilons: 1e-6 in the convolution blocks, 1e-5 else.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ..ops import Ops
from .blocks import Conv2d, DepthwiseConv2d, DropPathSchedule, LayerNorm, Linear, add, empty
from .cabvit_config import DIGEST, CabViTConfig
from .conv_norm import ConvNorm
from .init import init_weights

CONV_EPS, EPS = 1e-6, 1e-5
CONSTANTS = {"gamma": 1e-6, "gamma_1": 1e-6, "gamma_2": 1e-6}
CONSTANTS |= {"attention_biases": 0.0, "s_token_bias": 0.0, "s_scale_factors": 1.0}
"""Initial values, besides those of init_weights."""


class Stem(nn.Cell):
    """Image [B, 3, S, S] -> tokens [B*(S/4)^2, C]."""

    def __init__(self, dim: int, op: Ops):
        super().__init__()
        self.seq = nn.SequentialCell(
            ConvNorm(Conv2d((3, dim // 2), 3, 2, 1, op, from_image=True, bias=False), op),
            op.gelu(),
            ConvNorm(Conv2d((dim // 2, dim), 3, 2, 1, op, bias=False), op, stream=True),
        )
        self.to_tokens = op.to_tokens()

    def construct(self, x_b3ss):
        return self.to_tokens(self.seq(x_b3ss))


class Merge(nn.Cell):
    """Tokens of an S x S map [B*S*S, C] -> of an S/2 x S/2 map of another width."""

    def __init__(self, dim: int, new_dim: int, side: int, op: Ops):
        super().__init__()
        self.side, self.gelu = side, op.gelu()
        self.conv1 = ConvNorm(Conv2d((dim, new_dim), 1, 1, 0, op, bias=False), op)
        self.conv2 = ConvNorm(DepthwiseConv2d(new_dim, 3, 2, 1, op, bias=False), op)
        self.conv3 = ConvNorm(Conv2d((new_dim, new_dim), 1, 1, 0, op, bias=False), op, stream=True)
        self.to_map, self.to_tokens = op.to_map(), op.to_tokens()

    def construct(self, x_tc):
        x = self.gelu(self.conv1(self.to_map(x_tc, self.side, self.side)))
        return self.to_tokens(self.conv3(self.gelu(self.conv2(x))))


class ConvBlock(nn.Cell):
    """ConvNeXt's block: x + gamma * mlp(norm(depthwise 7 x 7 (x)))."""

    def __init__(self, dim: int, side: int, op: Ops, drops: DropPathSchedule, drop_path: float):
        super().__init__()
        self.side, self.half = side, op.half
        self.gamma = empty((dim,), "gamma")
        self.dwconv = DepthwiseConv2d(dim, 7, 1, 3, op)
        self.norm = LayerNorm(dim, op, CONV_EPS)
        self.pwconv1, self.pwconv2 = Linear(dim, 4 * dim, op), Linear(4 * dim, dim, op)
        self.drop = drops.layer(drop_path, side * side, op)
        self.to_map, self.to_tokens = op.to_map(), op.to_tokens()
        self.norm_mlp, self.gelu = op.norm_mlp(CONV_EPS), op.gelu()

    def construct(self, x_tc, drop_scale=None):
        y_tc = self.to_tokens(self.dwconv(self.to_map(x_tc, self.side, self.side)))
        return add(x_tc, self.drop(self._mlp(y_tc), drop_scale))

    def _mlp(self, y_tc):
        norm, first, last = self.norm, self.pwconv1, self.pwconv2
        if self.half:
            return last(self.gelu(first(norm(y_tc)).astype(ms.float32))) * self.gamma
        weight_co, bias_c = scaled(last, self.gamma)
        return self.norm_mlp(y_tc, norm.weight, norm.bias, first.weight, first.bias, weight_co, bias_c)


class CabBlock(nn.Cell):
    """Attention to the map and the digests, a depthwise convolution in place of the map, and an MLP.

    The d-th block of a stage. Called with tokens [T, C] and the d earlier blocks' digests [B, M, C] (None for d = 0);
    returns both, the digests with its own, which every block but the last makes of its tokens after attention.
    """

    def __init__(self, config: CabViTConfig, stage: int, d: int, op: Ops, drops: DropPathSchedule, drop_path: float):
        super().__init__()
        dim, heads, self.side = config.embed_dims[stage], config.num_heads[stage], config.side(stage)
        self.tokens, self.seen, self.dim, self.half = self.side**2, d * config.digest(stage), dim, op.half
        self.digests = d < config.depths[stage] - 1
        self.gamma_1, self.gamma_2 = empty((dim,), "gamma_1"), empty((dim,), "gamma_2")
        self.attention_biases = empty((heads, self.tokens), "attention_biases")
        if self.seen:
            self.s_token_bias = empty((1, heads, 1, self.seen), "s_token_bias")
            self.s_scale_factors = empty((1, self.seen, 1), "s_scale_factors")
            self.s_norm = LayerNorm(dim, op, EPS)
        if self.digests:
            self.dw_conv = DepthwiseConv2d(dim, *DIGEST, op, bias=False)
        self.norm1, self.norm2 = LayerNorm(dim, op, EPS), LayerNorm(dim, op, EPS)
        self.qkv, self.proj = Linear(dim, 3 * dim, op), Linear(dim, dim, op)
        self.local_conv = ConvNorm(DepthwiseConv2d(dim, 3, 1, 1, op, bias=False), op, stream=True)
        self.mlp = DoubleNormMlp(dim, op)
        self.expand = DistanceBias(self.side)
        self.attend, self.norm_linear, self.linear = op.biased_attention(heads), op.norm_linear(EPS), op.linear()
        self.drop_attn = drops.layer(drop_path, self.tokens, op)
        self.drop_mlp = drops.layer(drop_path, self.tokens, op)
        self.to_map, self.to_tokens = op.to_map(), op.to_tokens()

    def construct(self, x_tc, digests_bmc, drop_scale=None):
        x_tc = add(x_tc, self.drop_attn(self._attention(x_tc, digests_bmc), drop_scale))
        x = self.to_map(x_tc, self.side, self.side)
        if self.digests:
            own_bmc = (
                self.to_tokens(self.dw_conv(x)).astype(ms.float32).reshape(x_tc.shape[0] // self.tokens, -1, self.dim)
            )
            digests_bmc = ops.concat((digests_bmc, own_bmc), 1) if self.seen else own_bmc
        x_tc = self.to_tokens(self.local_conv(x))
        return add(x_tc, self.drop_mlp(self.mlp(self.norm2(x_tc), self.gamma_2), drop_scale)), digests_bmc

    def _attention(self, x_tc, digests_bmc):
        """gamma_1 * proj(attention of the tokens to themselves and the digests), [T, C]."""
        n, dim = self.tokens, self.dim
        bias_hnm = self.expand(self.attention_biases)
        q_bnc, k_bmc, v_bmc = ops.split(self._qkv(x_tc, self.norm1).reshape(-1, n, 3 * dim), dim, 2)
        if self.seen:
            s_mc = (digests_bmc * self.s_scale_factors).reshape(-1, dim)
            qkv_bm3c = self._qkv(s_mc, self.s_norm).reshape(-1, self.seen, 3 * dim)
            _, k2_bmc, v2_bmc = ops.split(qkv_bm3c, dim, 2)
            k_bmc, v_bmc = ops.concat((k_bmc, k2_bmc), 1), ops.concat((v_bmc, v2_bmc), 1)
            shared_hnm = ops.broadcast_to(self.s_token_bias[0], (bias_hnm.shape[0], n, self.seen))
            bias_hnm = ops.concat((bias_hnm, shared_hnm), 2)
        y_tc = self.attend(q_bnc, k_bmc, v_bmc, bias_hnm).reshape(-1, dim)
        if self.half:
            return self.proj(y_tc) * self.gamma_1
        return self.linear(y_tc, *scaled(self.proj, self.gamma_1))

    def _qkv(self, x_tc, norm):
        if self.half:
            return self.qkv(norm(x_tc))
        return self.norm_linear(x_tc, norm.weight, norm.bias, self.qkv.weight, self.qkv.bias)


class DoubleNormMlp(nn.Cell):
    """gamma * fc2(gelu(fc1(norm(x)))), of tokens that were normalised before."""

    def __init__(self, dim: int, op: Ops):
        super().__init__()
        self.norm = LayerNorm(dim, op, EPS)
        self.fc1, self.fc2 = Linear(dim, 4 * dim, op), Linear(4 * dim, dim, op)
        self.norm_mlp, self.gelu, self.half = op.norm_mlp(EPS), op.gelu(), op.half

    def construct(self, x_tc, gamma_c):
        norm, fc1, fc2 = self.norm, self.fc1, self.fc2
        if self.half:
            return fc2(self.gelu(fc1(norm(x_tc)).astype(ms.float32))) * gamma_c
        return self.norm_mlp(x_tc, norm.weight, norm.bias, fc1.weight, fc1.bias, *scaled(fc2, gamma_c))


class DistanceBias(nn.Cell):
    """[H, S*S] by distance of rows and of columns -> [H, N, N] by pairs of tokens.

    As two products with constant 0/1 matrices, whose gradients are products as well.
    """

    def __init__(self, side: int):
        super().__init__()
        places = np.arange(side)
        distance = np.abs(places[:, None] - places).reshape(-1)
        self.pairs = Tensor((places[:, None] == distance).astype(np.float32))  # [S, S*S]
        self.side = side

    def construct(self, table_hn):
        s = self.side
        table_rows = ops.matmul(table_hn.reshape(-1, s), self.pairs).reshape(-1, s, s * s)  # by column pairs
        table = ops.matmul(ops.transpose(table_rows, (0, 2, 1)).reshape(-1, s), self.pairs)
        return ops.transpose(table.reshape(-1, s, s, s, s), (0, 3, 1, 4, 2)).reshape(-1, s * s, s * s)


class Stage(nn.Cell):
    """The blocks of one stage, and the merging after it."""

    def __init__(self, blocks: list[nn.Cell], downsample: nn.Cell | None, digests: bool):
        super().__init__()
        self.blocks, self.digests, self.merges = nn.CellList(blocks), digests, downsample is not None
        if downsample is not None:
            self.downsample = downsample

    def construct(self, x_tc, drop_scale=None):
        digests_bmc = None
        for block in self.blocks:
            if self.digests:
                x_tc, digests_bmc = block(x_tc, digests_bmc, drop_scale)
            else:
                x_tc = block(x_tc, drop_scale)
        return self.downsample(x_tc) if self.merges else x_tc


class CabViT(nn.Cell):
    """Image [B, 3, S, S] (S = config.img_size, normalised) -> logits [B, num_classes] of the tokens' mean.

    drop_path_rate: 0 to 1, linear over the blocks of all stages.
    drop_scale (argument of the call, optional): [len(model.drop_rates), B], see DropPath.
    Raises ValueError for an input of another size.
    """

    def __init__(
        self, config: CabViTConfig, op: Ops, num_classes: int = 1000, drop_path_rate: float = 0.0, seed: int = 0
    ):
        super().__init__()
        self.config, self.num_classes, self.input_size = config, num_classes, config.input_size
        op = op.shared()
        dims, depths, self.last = config.embed_dims, config.depths, config.side(3) ** 2
        self.patch_embed = Stem(dims[0], op)
        drops, line = DropPathSchedule(), iter(np.linspace(0, drop_path_rate, sum(depths)))
        for stage in range(4):
            blocks: list[nn.Cell] = []
            for d in range(depths[stage]):
                if stage < 2:
                    blocks.append(ConvBlock(dims[stage], config.side(stage), op, drops, next(line)))
                else:
                    blocks.append(CabBlock(config, stage, d, op, drops, next(line)))
            merge = Merge(dims[stage], dims[stage + 1], config.side(stage), op) if stage < 3 else None
            setattr(self, f"layer_{stage}", Stage(blocks, merge, digests=stage > 1))
        self.drop_rates = tuple(drops.rates)
        self.norm_head = LayerNorm(dims[3], op, EPS)
        self.head = Linear(dims[3], num_classes, op)
        init_weights(self, seed, conv_std=0.02, constants=CONSTANTS)

    def construct(self, x_b3ss, drop_scale=None):
        if x_b3ss.shape[2] != self.input_size or x_b3ss.shape[3] != self.input_size:
            raise ValueError(f"this model takes images of {self.input_size} pixels, not {x_b3ss.shape}")
        x_tc = self.layer_1(self.layer_0(self.patch_embed(x_b3ss), drop_scale), drop_scale)
        x_tc = self.layer_3(self.layer_2(x_tc, drop_scale), drop_scale)
        mean_bc = x_tc.astype(ms.float32).reshape(-1, self.last, x_tc.shape[1]).mean(1)
        return self.head(self.norm_head(mean_bc)).astype(ms.float32)


def scaled(linear: Linear, gamma_c):
    """(weight, bias) of gamma * linear(x): the layer scale lies in the small weights."""
    return linear.weight * gamma_c.reshape(-1, 1), linear.bias * gamma_c


create = CabViT
"""How the catalogue makes a model of this family: config, primitives, classes, drop_path_rate, seed."""
