"""What a result depends on besides the recipe and the data: code and versions."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of the packages, by name."""
    names = ("mindspore", "mindcv", "numpy", "pillow", "safetensors")
    return {"python": platform.python_version(), **{n: _version(n) for n in names}, "mindcv_crossvit": _own_version()}


def code_hash() -> str:
    """A hash of the suite's source files."""
    package = Path(__file__).resolve().parent
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(p for suffix in ("py", "cc") for p in package.rglob(f"*.{suffix}")):
        found.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return found.hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _own_version() -> str:
    from . import __version__

    return __version__
