"""Which tokens attend to which: the size of every block's groups, and the tokens of each group, without MindSpore.

A grid of H x W tokens is cut into W groups of G x G (short distance), or into groups of every I-th token (long
distance). N = G*G.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .crossformer_config import CrossFormerConfig

SMALLEST_GROUP = 4
"""Where groups grow with depth they begin with this side."""


class Groups(NamedTuple):
    """How one block groups a grid of `height` x `width` tokens.

    side: G. interval: I; 1 where neighbours make a group. top, left: tokens of padding before the grid; rows, columns:
    of the padded grid, divisible by G*I.
    """

    height: int
    width: int
    side: int
    interval: int
    top: int
    left: int
    rows: int
    columns: int

    @property
    def padded(self) -> bool:
        """Whether some tokens of a group are padding."""
        return self.rows * self.columns > self.height * self.width

    @property
    def groups(self) -> int:
        """Groups of a picture."""
        return self.rows * self.columns // self.side**2

    @property
    def tokens(self) -> int:
        """Tokens of a group, padding included."""
        return self.side**2


def groups_of(height: int, width: int, side: int, interval: int, pad_type: int) -> Groups:
    """The groups of a grid. A grid of which a side is not longer than G is one group, padded to its longer side.

    The official classifier, whose grids are square, takes the shorter side, its dense backbone the longer: the same
    where both apply.
    """
    if min(height, width) <= side:
        side, interval = max(height, width), 1
    step = side * interval
    rows, columns = math.ceil(height / step) * step, math.ceil(width / step) * step
    top, left = ((rows - height) // 2, (columns - width) // 2) if pad_type else (0, 0)
    return Groups(height, width, side, interval, top, left, rows, columns)


def block_groups(config: CrossFormerConfig, stage: int, block: int, height: int, width: int) -> Groups:
    """The groups of a block (both from 0) on its stage's grid; every second block attends over long distances."""
    interval = config.crs_interval[stage] if block % 2 else 1
    return groups_of(height, width, group_sides(config)[stage][block], interval, config.pad_type)


def group_tokens(groups: Groups) -> np.ndarray:
    """[W, N] int32: the token (row-major in the unpadded grid) at each place of each group; -1 for padding."""
    place = np.full((groups.rows, groups.columns), -1, np.int32)
    inner = np.arange(groups.height * groups.width, dtype=np.int32).reshape(groups.height, groups.width)
    place[groups.top : groups.top + groups.height, groups.left : groups.left + groups.width] = inner
    g, i = groups.side, groups.interval
    cut = place.reshape(groups.rows // (g * i), g, i, groups.columns // (g * i), g, i)
    return cut.transpose(0, 2, 3, 5, 1, 4).reshape(groups.groups, groups.tokens)


def offset_index(side: int) -> np.ndarray:
    """[N, N] int32: the row of the offset between query and key (rows of tokens) in `offset_table`."""
    y, x = np.divmod(np.arange(side * side), side)
    rows, columns = y[:, None] - y[None] + side - 1, x[:, None] - x[None] + side - 1
    return (rows * (2 * side - 1) + columns).astype(np.int32)


def offset_table(side: int) -> np.ndarray:
    """[(2G-1)^2, 2] float32: all offsets (rows, columns) between two tokens of a group, columns fastest."""
    y, x = np.divmod(np.arange((2 * side - 1) ** 2), 2 * side - 1)
    return np.stack([y, x], 1).astype(np.float32) - (side - 1)


def group_sides(config: CrossFormerConfig) -> tuple[tuple[int, ...], ...]:
    """G of every block of every stage, before it is limited to the grid.

    | group_type | |
    |---|---|
    | constant | group_size of the stage |
    | 7_14 | as constant, but half of it in the first four blocks of the third stage |
    | linear | a share of the grid that grows with every block, from 4 tokens of the first to nearly all; at least 4 |
    | linear_div | linear; what is above half of the grid becomes all of it (third stage: half up to 3/4) |
    | alter | linear; what is above half of the grid becomes all of it (third stage: half and all in turn) |
    """
    first = config.img_size // config.patch_size[0]
    start = SMALLEST_GROUP / first
    step = (1 - start) / sum(config.depths)
    sides, block = [], 0
    for s, depth in enumerate(config.depths):
        grid = first // 2**s
        stage = []
        for b in range(depth):
            if config.group_type in ("constant", "7_14"):
                half = config.group_type == "7_14" and s == 2 and b < 4
                stage.append(config.group_size[s] // 2 if half else config.group_size[s])
            else:
                share = grid * (start + block * step)
                stage.append(max(SMALLEST_GROUP, math.ceil(_snapped(config.group_type, share, grid, s, block))))
            block += 1
        sides.append(tuple(stage))
    return tuple(sides)


def _snapped(group_type: str, share: float, grid: int, stage: int, block: int) -> float:
    if group_type == "linear" or share <= grid // 2:
        return share
    halved = share <= grid * 3 / 4 if group_type == "linear_div" else block % 2 == 0
    return grid // 2 if stage == 2 and halved else grid
