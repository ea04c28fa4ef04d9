"""Large tensors in pieces: what passes over them several times takes half the time while they stay in the cache."""

from __future__ import annotations

from mindspore import ops
from mindspore.ops.functional import is_sequence_value_unknown

HIDDEN, SCORES = 1_250_000, 5_000_000
"""Numbers of a hidden layer, which 17 operators pass over, and of attention's scores, that are worked on at a time.
Smaller ones are hardly faster, and every piece of a training step takes time to compile."""


def in_pieces(cell, x, units: int, numbers: int, most: int, *rest):
    """cell(x, *rest)[0] piece by piece: of whole units of x [rows, ...], as many as have `most` numbers, or one.

    units: how many there are; they divide the rows. numbers: what the cell makes of each.
    """
    done = ()
    for piece in split_rows(x, units, numbers, most):
        done = done + (cell(piece, *rest)[0],)  # noqa: RUF005 (the graph parser)
    return done[0] if len(done) == 1 else ops.concat(done, 0)


def split_rows(x, units: int, numbers: int, most: int):
    """The pieces, see in_pieces."""
    if is_sequence_value_unknown(x.shape):  # of a MindIR file, which takes any batch
        return (x,)
    return ops.split(x, _rows(x.shape[0], units, numbers, most), 0)


@ops.constexpr
def _rows(rows, units, numbers, most):
    """Rows of a piece; whole units, as equal as can be."""
    pieces = min(units, -(-units * numbers // most))
    return -(-units // pieces) * (rows // units)
