"""Checkpoints that know themselves, in one safetensors file each, whole or refused.

A file holds `model.NAME` and `optimizer.NAME` tensors and, in its header, everything needed to go on or to evaluate:
model, recipe, class names, epoch, update, best score, versions, and a checksum over all of it. It is written under a
fresh name, synced and renamed, so that a kill or a full disk leaves the one before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from ..files import replacing, sync

HEADER_KEY = "mindcv_crossvit"
"""The header entry that makes a safetensors file a checkpoint of this suite."""
SUFFIX = ".safetensors"


class Described(Protocol):
    """Trained weights that know their model, classes and update: a checkpoint, or what was exported from one."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def meta(self) -> dict[str, Any]:
        """`model`, `class_names`, `update` and more."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """What was read: tensors by name, the metadata, and the checksum over both."""

    path: Path
    tensors: dict[str, np.ndarray]
    meta: dict[str, Any]
    checksum: str = ""

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors of one part (`model`, `optimizer`), without its prefix."""
        return {n[len(prefix) + 1 :]: t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}


def write_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint; on any error the target is what it was before. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    text = json.dumps(dict(meta), sort_keys=True)
    header = {HEADER_KEY: text, "checksum": _checksum(tensors, text)}
    try:
        with replacing(path) as fresh:
            save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, fresh, header)
            sync(fresh)
        sync(path.parent)
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads and checks a checkpoint of this suite. Raises UserError when it is not whole or not ours."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint{neighbours(path)}")
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from error
    if HEADER_KEY not in header:
        raise UserError(f"{path}: not a checkpoint of this suite: its header has no {HEADER_KEY} entry")
    if header != {HEADER_KEY: header[HEADER_KEY], "checksum": _checksum(tensors, header[HEADER_KEY])}:
        raise UserError(f"{path}: damaged: its checksum does not fit its contents")
    return Checkpoint(path, tensors, _meta(path, header[HEADER_KEY]), header["checksum"])


def _meta(path: Path, text: str) -> dict[str, Any]:
    """What a checkpoint says of itself. A checksum shows that it is whole, not that this suite wrote it: UserError."""
    try:
        meta = {"model": None, "class_names": None, "update": None, **json.loads(text)}
        wrong = [key for key, fits in _KINDS.items() if key in meta and not fits(meta[key])]
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: what it says of itself cannot be read: {error}") from error
    if wrong:
        raise UserError(f"{path}: no checkpoint of this suite: its {', '.join(wrong)} cannot be")
    return meta


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


_KINDS: dict[str, Callable[[Any], bool]] = {
    "model": lambda v: isinstance(v, dict) and isinstance(v.get("name"), str),
    "recipe": lambda v: isinstance(v, dict),
    "class_names": lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
    "update": _is_count,
    "applied": _is_count,
    "skipped": _is_count,
    "best_update": _is_count,
    **dict.fromkeys(("world", "per_device", "mix_group"), lambda v: _is_count(v) and v > 0),
    **dict.fromkeys(("global_batch", "train_images", "steps_per_epoch"), lambda v: _is_count(v) and v > 0),
    "best_top1": lambda v: v is None or (type(v) in (int, float) and -1 <= v <= 100),
    "loss_scale": lambda v: (
        isinstance(v, dict)
        and v.keys() == {"dynamic", "scale", "good"}
        and type(v["dynamic"]) is bool
        and type(v["scale"]) in (int, float)
        and 0 < v["scale"] < 1e30
        and _is_count(v["good"])
    ),
}
"""What the entries that are relied on must be; model, class names and update are always there."""


def _checksum(tensors: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def neighbours(path: Path) -> str:
    """For messages: what else is in the folder of a file that is not there."""
    folder = path.parent
    found = sorted(p.name for p in folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    return f"; {folder} has {', '.join(found)}" if found else ""
