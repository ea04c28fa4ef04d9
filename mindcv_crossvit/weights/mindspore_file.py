"""MindSpore's `.ckpt`, read from its bytes (protobuf's wire format) without MindSpore.

    Checkpoint {repeated Value value = 1}   Value {string tag = 1; TensorProto tensor = 2}
    TensorProto {repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3}

A large tensor comes in several values of one tag. Behind it all there may be `crc_num` and ten bytes of a CRC-32.
A file that was cut between two tensors looks whole; what then lacks is found when the weights are fitted.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np

from .arrays import KINDS, item_size, to_array

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_CRC, _CRC_SIZE = b"crc_num", 17


def read_ckpt(data: bytes) -> dict[str, np.ndarray]:
    """The tensors by name; texts are left out. Raises ValueError for a file that is not whole."""
    content = memoryview(data)
    if data[-_CRC_SIZE:].startswith(_CRC):
        content = content[:-_CRC_SIZE]
        if zlib.crc32(content) != int.from_bytes(data[-10:], "big"):
            raise ValueError("damaged: its checksum does not fit its contents")
    parts: dict[str, list[memoryview]] = {}
    forms: dict[str, tuple[tuple[int, ...], str]] = {}
    for field, value in _fields(content):
        if field != 1 or isinstance(value, int):
            raise ValueError(f"field {field} in place of a parameter")
        name, dims, kind, raw = _parameter(value)
        if forms.setdefault(name, (dims, kind)) != (dims, kind):
            raise ValueError(f"{name} comes twice with different shapes")
        parts.setdefault(name, []).append(raw)
    return {n: _join(n, *forms[n], pieces) for n, pieces in parts.items() if forms[n][1] != "str"}


def _join(name: str, dims: tuple[int, ...], kind: str, pieces: list[memoryview]) -> np.ndarray:
    if kind not in KINDS:
        raise ValueError(f"{name} has numbers of the kind {kind!r}, which are not read")
    shape = () if dims == (0,) else dims  # a scalar
    raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(raw) != math.prod(shape) * item_size(kind):
        raise ValueError(f"{name} has {len(raw)} bytes instead of shape {shape} of {kind}")
    return to_array(raw, kind).reshape(shape)


def _parameter(value: memoryview) -> tuple[str, tuple[int, ...], str, memoryview]:
    """Name, shape, kind of numbers and bytes of one value."""
    fields = dict(_fields(value))
    tag, tensor = fields.get(1), fields.get(2)
    if isinstance(tag, int) or isinstance(tensor, int) or tag is None or tensor is None:
        raise ValueError("a value without a name and a tensor")
    name, dims, kind, raw = str(tag, "utf-8"), [], None, None
    for field, part in _fields(tensor):
        if field == 1:
            dims += [part] if isinstance(part, int) else _packed(part)
        elif field == 2 and not isinstance(part, int):
            kind = str(part, "utf-8")
        elif field == 3 and not isinstance(part, int):
            raw = part
    if kind is None or raw is None or any(d >= 2**62 for d in dims):
        raise ValueError(f"{name} has no whole tensor")
    return name, tuple(dims), kind if kind == "str" else kind.lower(), raw


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire not in (_EIGHT, _BYTES, _FOUR):
            raise ValueError(f"no protobuf at byte {at}")
        size, at = _varint(data, at) if wire == _BYTES else ({_EIGHT: 8, _FOUR: 4}[wire], at)
        if size > len(data) - at:
            raise ValueError(f"cut off: {size} bytes are announced at byte {at}, {len(data) - at} are left")
        yield key >> 3, data[at : at + size]
        at += size


def _packed(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("cut off within a number")
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"no protobuf at byte {at}")
