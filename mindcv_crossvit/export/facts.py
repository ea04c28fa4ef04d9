"""What an exported file does not say itself, in a JSON file beside it: classes, preprocessing, origin, the check."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError
from ..inference import Preprocessing, preprocessing_of
from ..models.catalog import MINDCV_PREFIX
from ..training.checkpoint import Checkpoint

ONNX, MINDIR = ".onnx", ".mindir"
_FORMAT = "mindcv_crossvit export 1"
_KEYS = {"model": dict, "class_names": list, "preprocessing": dict, "update": int, "digest": str}


@dataclass(frozen=True)
class Exported:
    """An exported file and what is known of it.

    meta: `model`, `class_names` and `update` as in the checkpoint; `weights`, model or ema; `preprocessing`; `batch`,
        pictures of a call, null for any; `checkpoint`, where it came from; `check`, what was compared; `versions`.
    """

    path: Path
    meta: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return tuple(self.meta["class_names"])

    @property
    def preprocessing(self) -> Preprocessing:
        """What its pictures must go through."""
        p = self.meta["preprocessing"]
        return Preprocessing(p["image_size"], p["crop_fraction"], tuple(p["mean"]), tuple(p["std"]))


def is_exported(path: Path) -> bool:
    """Whether a name is an exported file's: .onnx or .mindir."""
    return path.suffix.lower() in (ONNX, MINDIR)


def beside(path: Path) -> Path:
    """The facts' place: model.onnx.json beside model.onnx."""
    return path.with_name(f"{path.name}.json")


def describe(checkpoint: Checkpoint, part: str, batch: int | None) -> dict[str, Any]:
    """An Exported's meta, without `check` and the digest; JSON values only."""
    preprocessing = preprocessing_of(checkpoint)
    return {
        "format": _FORMAT,
        "model": checkpoint.meta["model"],
        "weights": part,
        "class_names": checkpoint.meta["class_names"],
        "preprocessing": {
            **asdict(preprocessing),
            "resized_shorter_side": int(preprocessing.image_size / preprocessing.crop_fraction),
            "resize": "bicubic with antialias, then the centre crop",
            "pixels": "RGB, (value / 255 - mean) / std, planes first, float32",
        },
        "batch": batch,
        "update": checkpoint.meta["update"],
        "checkpoint": {
            "path": str(checkpoint.path),
            "checksum": checkpoint.checksum or digest(checkpoint.path),
            "best_top1_of_the_run": checkpoint.meta.get("best_top1"),
            "versions": checkpoint.meta.get("versions"),
            "converted_from": checkpoint.meta.get("converted_from"),
        },
    }


def write_facts(path: Path, meta: Mapping[str, Any]) -> Exported:
    """Writes the facts beside an exported file, with a digest of it. Raises OSError."""
    meta = {**meta, "digest": digest(path)}
    beside(path).write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Exported(path, meta)


def read_exported(path: Path) -> Exported:
    """The facts of an exported file. Raises UserError when there are none, or they are another file's."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    place = beside(path)
    if not place.is_file():
        raise UserError(f"{place}: missing; scripts/export.py wrote it beside {path.name}: keep the two together")
    try:
        meta = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{place}: not readable as JSON: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise UserError(f"{place}: not the facts of an exported file: expected the format {_FORMAT!r}")
    wrong = [key for key, kind in _KEYS.items() if not isinstance(meta.get(key), kind)]
    if wrong:
        raise UserError(f"{place}: damaged: without {', '.join(wrong)}")
    if meta["digest"] != digest(path):
        raise UserError(f"{place}: the facts of another file, or {path.name} is damaged: its digest does not fit")
    return Exported(path, meta)


def digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 16 bytes in hexadecimal."""
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def check_target(target: Path, checkpoint: Checkpoint, part: str, batch: int | None) -> None:
    """Refuses what cannot be exported, before MindSpore is imported. Raises UserError with every problem."""
    problems, name = [], checkpoint.meta["model"]["name"]
    if not is_exported(target):
        problems.append(f"--output {target}: expected a name that ends in {ONNX} or {MINDIR}")
    if not target.parent.is_dir():
        problems.append(f"--output {target}: no folder {target.parent}")
    problems += [f"--output {p}: exists; remove it or name another" for p in (target, beside(target)) if p.exists()]
    if batch is not None and target.suffix.lower() == MINDIR:
        problems.append(f"--batch {batch}: a MindIR file takes any batch; leave the option out")
    if batch is not None and batch < 1:
        problems.append(f"--batch {batch}: expected a whole number from 1")
    if target.suffix.lower() == ONNX and name.startswith(MINDCV_PREFIX):
        problems.append(f"--output {target}: ONNX is written for this suite's models, not for {name}; use {MINDIR}")
    if part == "ema" and not checkpoint.part("ema"):
        problems.append(f"--weights ema: {checkpoint.path} has no moving average (ema.decay was null); use model")
    if problems:
        raise UserError(problems)


def need(package: str) -> ModuleType:
    """An optional package. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{package} is needed for this and cannot be imported ({error}): pip install .[onnx]"
        ) from error


def named_version(package: str) -> str:
    """`onnxruntime 1.23.2`."""
    return f"{package} {version(package)}"
