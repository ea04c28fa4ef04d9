"""CrossFormer (arXiv 2108.00154) and CrossFormer++ (arXiv 2303.06908): the classifier and the dense backbone.

B batch, H x W tokens of the grid, T = B*H*W, C width. Tokens travel as [T, C]. Follows the official code to the last
epsilon; where that remembers a small picture for ever (its dense backbone) or ignores an argument, this does not.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ..ops import Ops
from .blocks import DropPathSchedule, LayerNorm, Linear
from .crossformer_blocks import EPS, CrossFormerBlock, PatchEmbed, PatchMerging
from .crossformer_config import CrossFormerConfig
from .init import init_weights


class Stage(nn.Cell):
    """The blocks of one stage, and, but for the last, the cross-scale embedding of the next."""

    def __init__(self, config: CrossFormerConfig, stage: int, op: Ops, drops: DropPathSchedule, rates: list[float]):
        super().__init__()
        self.dim = config.dim(stage)
        self.blocks = nn.CellList([CrossFormerBlock(config, stage, b, op, drops, rate) for b, rate in enumerate(rates)])
        self.merges = stage < len(config.depths) - 1
        if self.merges:
            self.downsample = PatchMerging(config, stage, op)

    def construct(self, x_tc, height, width, drop_scale=None):
        for block in self.blocks:
            x_tc = block(x_tc, height, width, drop_scale)
        return x_tc


class _Trunk(nn.Cell):
    """Patch embedding and stages, which the classifier and the dense backbone share, names included."""

    def __init__(self, config: CrossFormerConfig, op: Ops, drop_path_rate: float):
        super().__init__()
        self.config = config
        self.cell_size = config.patch_size[0]
        op = op.shared()
        drops = DropPathSchedule()
        self.patch_embed = PatchEmbed(config, op)
        self.layers = nn.CellList(
            [Stage(config, s, op, drops, rates) for s, rates in enumerate(drop_path_rates(config, drop_path_rate))]
        )
        self.drop_rates = tuple(drops.rates)
        self.half_in, self.half_stream = op.half, op.half_stream

    def embed(self, x_b3hw):
        """Images -> tokens of the first stage."""
        x_tc = self.patch_embed(x_b3hw)
        return x_tc.astype(ms.float16) if self.half_stream else x_tc


class CrossFormer(_Trunk):
    """Image [B, 3, S, S] (S = config.img_size, normalised) -> logits [B, num_classes], float32.

    drop_path_rate: 0 to 1, linear over depth.
    drop_scale (argument of the call, optional): [len(model.drop_rates), B], see DropPath.
    Raises ValueError for an input of another size.
    """

    def __init__(
        self, config: CrossFormerConfig, op: Ops, num_classes: int = 1000, drop_path_rate: float = 0.0, seed: int = 0
    ):
        super().__init__(config, op, drop_path_rate)
        self.num_classes, self.input_size = num_classes, config.input_size
        width = config.dim(len(config.depths) - 1)
        self.norm = LayerNorm(width, op, EPS)
        self.head = Linear(width, num_classes, op)
        init_weights(self, seed)

    def construct(self, x_b3ss, drop_scale=None):
        size = self.input_size
        if x_b3ss.shape[2] != size or x_b3ss.shape[3] != size:
            raise ValueError(f"this model takes images of {size} pixels, not {x_b3ss.shape}")
        x_tc, side = self.embed(x_b3ss), size // self.cell_size
        for stage in self.layers:
            x_tc = stage(x_tc, side, side, drop_scale)
            if stage.merges:
                x_tc, side = stage.downsample(x_tc, side, side), side // 2
        x_bnc = self.norm(x_tc).reshape(-1, side * side, x_tc.shape[1])
        return self.head(x_bnc.mean(1)).astype(ms.float32)


class CrossFormerBackbone(_Trunk):
    """Image [B, 3, H, W] -> the map of every stage before its merging, [B, 2^s C, H/(4 2^s), W/(4 2^s)], float32.

    For detection and segmentation: any H and W divisible by the last stage's stride (32), which may change from call to
    call; each size is compiled once. The official backbone's maps; but where that, after one picture no larger than a
    group, attends over short distances only, for ever, this treats each picture by its own size, and it follows
    `pad_type` and `no_mask`, which that ignores. Weights of a classifier fit, but for its `norm` and `head`.
    drop_path_rate, drop_scale: as in CrossFormer.
    Raises ValueError for other sizes.
    """

    without = ("norm", "head")

    def __init__(self, config: CrossFormerConfig, op: Ops, drop_path_rate: float = 0.0, seed: int = 0):
        super().__init__(config, op, drop_path_rate)
        self.stride = config.stride
        init_weights(self, seed)

    def construct(self, x_b3hw, drop_scale=None):
        if x_b3hw.shape[2] % self.stride != 0 or x_b3hw.shape[3] % self.stride != 0:
            raise ValueError(f"height and width must be divisible by {self.stride}: {x_b3hw.shape}")
        height, width = x_b3hw.shape[2] // self.cell_size, x_b3hw.shape[3] // self.cell_size
        x_tc, maps = self.embed(x_b3hw), ()
        for stage in self.layers:
            x_tc = stage(x_tc, height, width, drop_scale)
            x_bhwc = x_tc.astype(ms.float32).reshape(-1, height, width, stage.dim)
            maps = maps + (ops.transpose(x_bhwc, (0, 3, 1, 2)),)  # noqa: RUF005 (the graph parser)
            if stage.merges:
                x_tc, height, width = stage.downsample(x_tc, height, width), height // 2, width // 2
        return maps


def drop_path_rates(config: CrossFormerConfig, rate: float) -> list[list[float]]:
    """The drop-path value of each block of each stage: a line from 0 to `rate` over all blocks."""
    line = np.linspace(0, rate, sum(config.depths))
    return [[float(v) for v in part] for part in np.split(line, np.cumsum(config.depths)[:-1])]


def create(config: CrossFormerConfig, op: Ops, num_classes: int, drop_path_rate: float, seed: int) -> CrossFormer:
    """The family's model."""
    return CrossFormer(config, op, num_classes, drop_path_rate, seed)
