"""Large tensors in pieces: what passes over them several times takes half the time while they stay in the cache."""

from __future__ import annotations

from mindspore import ops
from mindspore.ops.functional import is_sequence_value_unknown

HIDDEN, SCORES = 1_250_000, 5_000_000
"""Numbers of a hidden layer, which 17 operators pass over, and of attention's scores, that are worked on at a time.
Smaller ones are hardly faster, and every piece of a training step takes time to compile."""


def split_rows(x, units: int, numbers: int, most: int):
    """Pieces of x [rows, ...] of whole units, `numbers` each, that have `most` of them or are a single unit.

    units: how many there are; they divide the rows.
    """
    if is_sequence_value_unknown(x.shape):  # of a MindIR file, which takes any batch
        return (x,)
    return ops.split(x, _rows(x.shape[0], units, numbers, most), 0)


def joined(pieces):
    """The inverse."""
    return pieces[0] if len(pieces) == 1 else ops.concat(pieces, 0)


@ops.constexpr
def _rows(rows, units, numbers, most):
    """Rows of a piece; whole units, as equal as can be."""
    pieces = min(units, -(-units * numbers // most))
    return -(-units // pieces) * (rows // units)
