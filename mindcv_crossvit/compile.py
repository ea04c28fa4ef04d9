"""Compiles this suite's C++ once per machine and compiler. Without MindSpore: what is missing is said before anything
starts."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import UserError

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
"""No -march: the loops are compiled for several processors, and the one at hand is chosen when they are loaded."""


def compiler() -> str:
    """The C++ compiler: $CXX, or c++ or g++. Raises UserError when there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise UserError("a C++ compiler (g++) is needed, and there is none here")


def cache_folder() -> Path:
    """Where compiled code is kept: mindcv_crossvit in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindcv_crossvit"


def compiled(source: Path, folder: Path, flags: tuple[str, ...]) -> Path:
    """A source file as a shared library in `folder`, compiled if it is not there yet.

    Raises UserError without a compiler, with its first error, or where `folder` cannot be written.
    """
    command = compiler()
    version = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    key = hashlib.blake2b("\n".join([version, *flags]).encode() + source.read_bytes(), digest_size=8).hexdigest()
    target = folder / f"{source.stem}-{key}.so"
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder
        ) as work:  # processes may compile at the same time; the last one wins
            fresh = Path(work) / target.name
            done = subprocess.run([command, *flags, str(source), "-o", str(fresh)], capture_output=True, text=True)
            if done.returncode:
                first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
                raise UserError(f"{command} could not compile {source.name} ({first.strip()})")
            os.replace(fresh, target)
    except OSError as error:
        raise UserError(f"compiled code cannot be kept in {folder}: {error}") from error
    return target
