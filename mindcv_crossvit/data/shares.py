"""Which rows of a global batch a device holds at once: whole pairs of mixing groups, so that any number of devices
mixes the same pictures.

A group of G rows is mixed with itself reversed, as timm's batch: the partner of its row r is row G - 1 - r. A part of
it that takes rows a to b - 1 from the front and rows G - b to G - 1 - a from the back, in this order, is closed under
that: reversed, it gives every row its partner.
"""

from __future__ import annotations

import numpy as np


def keeps_pairs(size: int, group: int) -> bool:
    """Whether batches of `size` rows hold whole pairs of groups of `group` rows."""
    return size % group == 0 or (size % 2 == 0 and group % 2 == 0)


def share_rows(share: int, size: int, group: int) -> np.ndarray:
    """The rows of a global batch in its share-th part of `size` rows, [size]; all parts together are all rows.

    Whole groups come row by row, and so does a part that cannot keep pairs. Others hold the next size / 2 pairs: of
    each group they touch some rows from the front and as many from the back.
    """
    if size % group == 0 or not keeps_pairs(size, group):
        return np.arange(share * size, (share + 1) * size)
    pairs = np.arange(share * size // 2, (share + 1) * size // 2)
    groups, front = np.divmod(pairs, group // 2)
    parts = []
    for number in np.unique(groups):
        rows = front[groups == number]
        parts += [number * group + rows, number * group + group - 1 - rows[::-1]]
    return np.concatenate(parts)
