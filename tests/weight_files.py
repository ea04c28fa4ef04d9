"""Writes weights files of every kind that is read, with NumPy alone; what real PyTorch wrote is in tests/data."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mindcv_crossvit.training.checkpoint import write_checkpoint
from mindcv_crossvit.weights.names import to_timm

State = Mapping[str, np.ndarray]
START = b"\x80\x02"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def mapping(items: Mapping[str, bytes]) -> bytes:
    """A dict of pickled values, as instructions."""
    return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def tensor(key: str, value: np.ndarray, legacy: bool = False) -> bytes:
    """A tensor of float32, or of whole numbers of 64 bits, of its own storage, as instructions."""
    strides = tuple(s // value.itemsize for s in np.asarray(value, order="C").strides)
    numbers_of = {"f": b"FloatStorage", "i": b"LongStorage"}[value.dtype.kind]
    storage = b"(" + text("storage") + b"ctorch\n" + numbers_of + b"\n" + text(key) + text("cpu") + number(value.size)
    storage += (b"N" if legacy else b"") + b"tQ"
    view = storage + number(0) + numbers(value.shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"


def pickled(state: State, legacy: bool = False) -> bytes:
    return mapping({name: tensor(str(i), v, legacy) for i, (name, v) in enumerate(state.items())})


def write_zip(path: Path, state: State, content: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> None:
    """PyTorch's zip form; `content` in place of the bare state dict."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", START + (content or pickled(state)) + b".")
        archive.writestr("archive/byteorder", "little")
        for i, value in enumerate(state.values()):
            archive.writestr(f"archive/data/{i}", np.ascontiguousarray(value).data.cast("B"))


def write_legacy(path: Path, state: State, under: str = "model") -> None:
    """PyTorch's older form, the state dict in a training checkpoint."""
    facts = b"}(" + text("little_endian") + b"\x88u"
    magic = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
    content = mapping({under: pickled(state, legacy=True), "epoch": number(299)})
    keys = b"](" + b"".join(text(str(i)) for i in range(len(state))) + b"e"
    with path.open("wb") as file:
        file.writelines(START + part + b"." for part in (magic, number(1001), facts, content, keys))
        for value in state.values():
            file.write(struct.pack("<q", value.size))
            file.write(np.ascontiguousarray(value).data)


def write_safetensors(path: Path, state: State) -> None:
    from safetensors.numpy import save_file

    save_file({n: np.ascontiguousarray(v) for n, v in state.items()}, path)


def write_suite(path: Path, state: State) -> None:
    meta = {"model": {"name": "crossvit_9"}, "class_names": [], "update": 7}
    write_checkpoint(path, {f"model.{n}": v for n, v in state.items()}, meta)


def timm(state: State) -> State:
    return {to_timm(n): v for n, v in state.items()}


FORMATS: dict[str, tuple[str, Callable[[Path, State], None]]] = {
    "official.pth": ("official", write_zip),
    "official_legacy.pth": ("official", write_legacy),
    "official.safetensors": ("official", write_safetensors),
    "timm.pth": ("timm", lambda path, state: write_zip(path, timm(state))),
    "timm.safetensors": ("timm", lambda path, state: write_safetensors(path, timm(state))),
    "suite.safetensors": ("suite", write_suite),
}
"""File name to (the kind that reading must find, how it is written); tensors by official name."""
