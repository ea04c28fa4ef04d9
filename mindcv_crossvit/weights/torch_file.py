"""What torch.save wrote, read without PyTorch: the zip form (since 1.6) and the one before it.

Nothing in the file is run: see pickles.py. Tensors are views of their storage, which is read when a tensor is asked
for; all arrays together are no larger than the file (twice, for half precision), whatever it says of their sizes.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import KINDS, item_size, to_array
from .pickles import Inert, Named, plain_dict, read_pickle

ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"
_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_INERT = (
    "argparse.Namespace",
    "torch.device",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
"""Found in training checkpoints beside the weights: settings, the device, a score as a NumPy number."""


@dataclass(frozen=True)
class Storage:
    """The numbers behind one or more tensors."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True)
class TorchTensor:
    """A view of a storage: first number, shape, strides, all in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """An opened file: `content` is what was saved, with TorchTensor for tensors; `array` gives their values."""

    def __init__(self, content: Any, raw: Callable[[Storage], bytes | memoryview], size: int):
        self.content = content
        self._raw, self._left = raw, size
        self._arrays: dict[Storage, np.ndarray] = {}

    def array(self, tensor: TorchTensor) -> np.ndarray:
        """Its values, read-only, perhaps not contiguous. Raises ValueError when the storage has not that many."""
        storage = tensor.storage
        if storage not in self._arrays:
            raw = self._raw(storage)
            if len(raw) != storage.count * item_size(storage.kind):
                raise ValueError(
                    f"storage {storage.key} has {len(raw)} bytes instead of {storage.count} numbers of {storage.kind}"
                )
            self._left -= len(raw)
            if self._left < 0:
                raise ValueError("its storages overlap: together they are larger than the file")
            self._arrays[storage] = to_array(raw, storage.kind)
        values = self._arrays[storage]
        count = math.prod(tensor.shape)
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
        if count > len(values) or (count and last >= len(values)):
            raise ValueError(f"a tensor of shape {tensor.shape} does not fit into a storage of {len(values)} numbers")
        if not count:
            return np.zeros(tensor.shape, values.dtype)
        strides = [s * values.itemsize for s in tensor.strides]
        return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)


def read_torch(data: bytes) -> TorchFile:
    """Reads either form. Raises Refused for a class that is not allowed, ValueError for anything not whole."""
    return _read_zip(data) if data.startswith(ZIP_START) else _read_legacy(data)


def _read_zip(data: bytes) -> TorchFile:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, struct.error, RuntimeError, OSError) as error:
        raise ValueError(f"not a whole zip archive: {error}") from error
    pickles = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("a zip archive that torch.save did not write: it has no data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.namelist():
        raise ValueError("a TorchScript program; save its state_dict() instead")
    if f"{folder}byteorder" in archive.namelist() and _member(archive, f"{folder}byteorder", 16) != b"little":
        raise ValueError("written on a big-endian machine, which is not read")
    content = read_pickle(io.BytesIO(_member(archive, pickles[0], len(data))), _allowed(), _persistent)
    return TorchFile(content, lambda storage: _member(archive, f"{folder}data/{storage.key}", len(data)), len(data))


def _member(archive: zipfile.ZipFile, name: str, largest: int) -> bytes:
    """A member's bytes; they must lie in the archive as they are, so that a small file cannot become a large one."""
    try:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size > 0:
            raise ValueError(f"{name} is compressed, which torch.save does not do")
        if info.file_size > largest:
            raise ValueError(f"{name} says it has {info.file_size} bytes, more than the file")
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, struct.error, KeyError, EOFError, RuntimeError, OSError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


def _read_legacy(data: bytes) -> TorchFile:
    """Five pickles (magic number, version, facts, content, storage keys), then each storage: count, numbers."""
    file = io.BytesIO(data)
    if read_pickle(file, _allowed(), _persistent) != _MAGIC:
        raise ValueError("a pickle that torch.save did not write")
    version, facts = (read_pickle(file, {}, _persistent) for _ in range(2))
    if version != 1001 or not isinstance(facts, dict) or not facts.get("little_endian"):
        raise ValueError(f"of version {version!r}, or written on a big-endian machine, which is not read")
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        found = _persistent(pid)
        return storages.setdefault(found.key, found)

    content = read_pickle(file, _allowed(), persistent)
    keys = read_pickle(file, {}, persistent)
    view, at, places = memoryview(data), file.tell(), {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in storages or key in places or len(data) < at + 8:
            raise ValueError("a storage that is unknown, given twice or cut off")
        count, size = int.from_bytes(data[at : at + 8], "little", signed=True), item_size(storages[key].kind)
        if not 0 <= count <= (len(data) - at - 8) // size:
            raise ValueError(
                f"storage {key} is cut off: {count} numbers of {size} bytes, {len(data) - at - 8} are left"
            )
        places[key] = view[at + 8 : at + 8 + count * size]
        at += 8 + count * size
    if at != len(data) or set(places) != set(storages):
        raise ValueError(f"has {len(data) - at} bytes after its end, and {len(storages) - len(places)} storages lack")
    return TorchFile(content, lambda storage: places[storage.key], len(data))


def _persistent(pid: Any) -> Storage:
    if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[1], Named)):
        raise ValueError("a persistent id that is no storage")
    if len(pid) == 6 and pid[5] is not None:
        raise ValueError("a storage that is a view of another; written by a PyTorch before 0.4")
    kind, key, count = _STORAGES.get(pid[1].name), pid[2], pid[4]
    if kind is None or not isinstance(key, str) or not _counts((count,)):
        raise ValueError(f"storage {key!r} of {pid[1].name} with {count!r} numbers")
    return Storage(key, kind, count)


def _allowed() -> dict[str, Callable[..., Any] | None]:
    """What a file may name, and what stands for it here."""
    inert: dict[str, Callable[..., Any] | None] = {name: _inert(name) for name in _INERT}
    return inert | {
        "collections.OrderedDict": plain_dict,
        "yacs.config.CfgNode": plain_dict,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch.Size": lambda sizes=(): tuple(sizes),
        **dict.fromkeys((*_STORAGES, *(f"torch.{kind}" for kind in KINDS))),
    }


def _inert(name: str) -> Callable[..., Inert]:
    return lambda *_: Inert(name)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TorchTensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor without storage, shape or strides")
    if len(shape) != len(strides) or len(shape) > 32 or not _counts((offset, *shape, *strides)):
        raise ValueError(f"a tensor of shape {shape!r}, strides {strides!r} from {offset!r}")
    return TorchTensor(storage, offset, shape, strides)


def _counts(values: tuple[Any, ...]) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**62 for v in values)
