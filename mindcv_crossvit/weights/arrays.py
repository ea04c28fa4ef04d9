"""Raw little-endian numbers to arrays; every kind of floating point becomes float32, as the models have it."""

from __future__ import annotations

import numpy as np

BFLOAT16 = "bfloat16"
KINDS = {
    "float32": "<f4",
    "float16": "<f2",
    BFLOAT16: "<u2",
    "float64": "<f8",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "i1",
    "uint8": "u1",
    "bool": "?",
}
"""The kinds of numbers that are read, and how their bytes lie."""


def item_size(kind: str) -> int:
    """Bytes of one number."""
    return np.dtype(KINDS[kind]).itemsize


def to_array(raw: bytes | memoryview, kind: str) -> np.ndarray:
    """The numbers in `raw`, one-dimensional: float32 for floats, else as they are. Raises ValueError for a rest."""
    values = np.frombuffer(raw, KINDS[kind])
    if kind == BFLOAT16:  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    if values.dtype.kind == "f" and kind != "float32":
        with np.errstate(over="ignore"):
            return values.astype(np.float32)
    return values
