"""From a file of any known kind to arrays in official names; what kind it is, its contents say and not its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..training.checkpoint import HEADER_KEY, neighbours, read_checkpoint
from .arrays import BFLOAT16, to_array
from .mindspore_file import read_ckpt
from .names import MINDCV, OFFICIAL, OTHER, SUITE, family, is_buffer, numerics_of, to_official
from .pickles import Refused
from .torch_file import PICKLE_START, ZIP_START, TorchTensor, read_torch

PARTS = {"model": ("model", "state_dict"), "ema": ("model_ema", "state_dict_ema")}
"""What PyTorch's training checkpoints call the raw weights and their moving average."""
_SAFETENSORS = {"F32": "float32", "F16": "float16", "BF16": BFLOAT16, "F64": "float64", "BOOL": "bool"} | {
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}
}
_PARALLEL = "module."
_SPELLINGS = (
    "understood are PyTorch's .pth, .safetensors of PyTorch and timm, MindSpore's .ckpt and the checkpoints of this"
    " suite"
)


@dataclass(frozen=True)
class Weights:
    """What a file held.

    kind: `official`, `timm` or `mindcv` by the names in it, `suite` for a checkpoint of this suite, `other` for a
        model that is none of its families.
    numerics: for which numerics they were trained, `official` or `mindcv`; None for kind `other`.
    tensors: by official name, read-only; floats are float32. Names of kind `other` are as in the file.
    meta: what a checkpoint of this suite says of itself.
    notes: what else a user should know, a sentence each.
    """

    path: Path
    kind: str
    numerics: str | None
    tensors: dict[str, np.ndarray]
    meta: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read_weights(path: Path | str, part: str = "model") -> Weights:
    """Reads a weights file of PyTorch, timm, MindCV or this suite; nothing in it is run.

    part: `model` for the raw weights of a training checkpoint, `ema` for their moving average.
    Raises UserError, naming the file, when it is none of these, not whole, or has no such part.
    """
    path = Path(path)
    if part not in PARTS:
        raise UserError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
    if not path.is_file():
        raise UserError(
            f"{path}: " + ("a folder; name a file in it" if path.is_dir() else f"no such file{neighbours(path)}")
        )
    try:
        return _read(path, path.read_bytes(), part)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except Refused as error:
        raise UserError(
            f"{path}: refused, nothing was run: it needs {error}, and only tensors and plain containers are read from"
            " a pickle. If you trust its author, load it once with PyTorch and save the weights alone:"
            ' torch.save(checkpoint["model"], "weights.pth")'
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error


def _read(path: Path, data: bytes, part: str) -> Weights:
    if _is_safetensors(data):
        return _from_safetensors(path, data, part)
    if data.startswith((ZIP_START, PICKLE_START)):
        return _from_torch(path, data, part)
    if data.startswith(b"\n"):  # field 1, bytes
        return _weights(path, _only_part(read_ckpt(data), part))
    raise ValueError(f"no weights file, it begins with {data[:16]!r}; {_SPELLINGS}")


def _is_safetensors(data: bytes) -> bool:
    """Eight bytes of the header's length, below 2^40, then JSON."""
    return data[5:9] == b"\0\0\0{"


def _from_safetensors(path: Path, data: bytes, part: str) -> Weights:
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
        if HEADER_KEY in header:
            return _from_suite(path, part)
        found = dict(deserialize(data))
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file: {error}") from error
    unknown = sorted({str(f["dtype"]) for f in found.values()} - set(_SAFETENSORS))
    if unknown:
        raise ValueError(f"has numbers of the kind {', '.join(unknown)}, which are not read")
    tensors = {n: to_array(f["data"], _SAFETENSORS[f["dtype"]]).reshape(f["shape"]) for n, f in found.items()}
    return _weights(path, _only_part(tensors, part))


def _from_suite(path: Path, part: str) -> Weights:
    checkpoint = read_checkpoint(path)
    wanted = checkpoint.part(part)
    if not wanted:
        raise ValueError(f"this checkpoint has no {part} weights; trained without a moving average (ema.decay)?")
    found = _weights(path, {**checkpoint.part("model"), **wanted})
    model = checkpoint.meta.get("model", {})
    numerics = found.numerics if found.kind in (MINDCV, OTHER) else model.get("numerics", OFFICIAL)
    note = f"a checkpoint of {model.get('name', 'an unnamed model')} after update {checkpoint.meta.get('update')}"
    return Weights(path, SUITE, numerics, found.tensors, checkpoint.meta, (*found.notes, note))


def _from_torch(path: Path, data: bytes, part: str) -> Weights:
    file = read_torch(data)
    state, notes = _state(file.content, part)
    return _weights(path, {name: file.array(tensor) for name, tensor in state.items()}, notes)


def _state(content: Any, part: str) -> tuple[dict[str, TorchTensor], tuple[str, ...]]:
    """The state dict in what torch.save was given, and a note where it lay."""
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not a state dict")
    bare = _only_tensors(content)
    if bare:
        return _only_part(bare, part), ()
    for key in PARTS[part]:
        inner = content.get(key)
        state = _only_tensors(inner) if isinstance(inner, dict) else {}
        if state:
            rest = [str(k) for k in content if k != key]
            return state, (f"under {key!r} of a training checkpoint" + (f"; beside it {_few(rest)}" if rest else ""),)
    raise ValueError(f"has no weights under {' or '.join(map(repr, PARTS[part]))}; its keys are {_few(content)}")


def _only_tensors(state: dict[Any, Any]) -> dict[str, TorchTensor]:
    """The same, when it is nothing but tensors by name; empty otherwise."""
    whole = all(isinstance(k, str) and isinstance(v, TorchTensor) for k, v in state.items())
    return dict(state) if whole else {}


def _few(names: Any, most: int = 8) -> str:
    names = [str(n)[:40] for n in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _only_part(tensors: dict[str, Any], part: str) -> dict[str, Any]:
    if part != "model":
        raise ValueError(f"has one set of weights and no {part} part")
    return tensors


def _weights(path: Path, tensors: dict[str, np.ndarray], notes: tuple[str, ...] = ()) -> Weights:
    if not tensors:
        raise ValueError("holds no tensors")
    if all(n.startswith(_PARALLEL) for n in tensors):
        tensors = {n.removeprefix(_PARALLEL): t for n, t in tensors.items()}
    buffers = [n for n in tensors if is_buffer(n)]
    if buffers:
        tensors = {n: t for n, t in tensors.items() if not is_buffer(n)}
        notes = (*notes, f"{len(buffers)} tensors left out that are no weights: {_few(buffers, 2)}")
    kind, renamed = family(tensors), to_official(tensors)
    found = {renamed[n]: t for n, t in tensors.items()}
    return Weights(path, kind, numerics_of(kind), found, notes=notes)
