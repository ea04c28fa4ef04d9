"""Compiles kernels.cc once per machine and compiler, and gives it MindSpore's own matrix product. Without MindSpore's
Python: what is missing is said before anything starts."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ...errors import UserError

SOURCE = Path(__file__).with_name("kernels.cc")
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
"""No -march: the loops are compiled for several processors, and the one at hand is chosen when they are loaded."""
_ELSE = "use run.ops=composed, which needs none"


@cache
def library() -> Path:
    """The compiled kernels, bound to MindSpore's oneDNN.

    Raises UserError where there is no C++ compiler, it fails, or MindSpore has no matrix product that gives the right
    numbers.
    """
    path = compiled(cache_folder())
    kernels = ctypes.CDLL(str(path))
    product = sgemm()
    kernels.crossvit_bind.argtypes = [ctypes.c_void_p]
    kernels.crossvit_bind(ctypes.cast(product, ctypes.c_void_p))
    return path


def compiler() -> str:
    """The C++ compiler: $CXX, or c++ or g++. Raises UserError when there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise UserError(f"run.ops: native needs a C++ compiler (g++), and there is none here; {_ELSE}")


def cache_folder() -> Path:
    """Where compiled kernels are kept: mindcv_crossvit in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindcv_crossvit"


def compiled(folder: Path, flags: tuple[str, ...] = FLAGS) -> Path:
    """The kernels in `folder`, compiled if they are not there yet. Raises UserError with the compiler's first error."""
    command = compiler()
    version = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    key = hashlib.blake2b("\n".join([version, *flags]).encode() + SOURCE.read_bytes(), digest_size=8).hexdigest()
    target = folder / f"kernels-{key}.so"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:  # ranks may compile at the same time; the last one wins
        fresh = Path(work) / target.name
        done = subprocess.run([command, *flags, str(SOURCE), "-o", str(fresh)], capture_output=True, text=True)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise UserError(f"run.ops: {command} could not compile the native kernels ({first.strip()}); {_ELSE}")
        os.replace(fresh, target)
    return target


def sgemm():
    """dnnl_sgemm of the oneDNN library that MindSpore brings. Raises UserError unless it multiplies as it should."""
    spec = find_spec("mindspore")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    problem = f"no libdnnl.so in {folder}"
    for path in sorted(folder.glob("libdnnl.so*")):
        try:
            product = ctypes.CDLL(str(path)).dnnl_sgemm
        except (OSError, AttributeError) as error:
            problem = str(error)
            continue
        product.argtypes, product.restype = _SIGNATURE, ctypes.c_int
        if _multiplies(product):
            return product
        problem = f"{path.name} multiplies in another way than this suite knows"
    raise UserError(f"run.ops: native was made for another MindSpore: {problem}; {_ELSE}")


_FLOATS = ctypes.POINTER(ctypes.c_float)
_SIGNATURE = [
    *[ctypes.c_char] * 2,
    *[ctypes.c_int64] * 3,
    ctypes.c_float,
    *[_FLOATS, ctypes.c_int64] * 2,
    ctypes.c_float,
    _FLOATS,
    ctypes.c_int64,
]


def _multiplies(product) -> bool:
    """Whether 2 A^T B + C comes out right, with rows that are longer than what is multiplied."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(shape, np.float32) for shape in ((7, 9), (7, 11), (5, 12)))
    expected = 2 * a[:, :5].T @ b[:, :6] + c[:, :6]
    places = [(v.ctypes.data_as(_FLOATS), v.shape[1]) for v in (a, b, c)]
    status = product(b"T", b"N", 5, 6, 7, 2.0, *places[0], *places[1], 1.0, *places[2])
    return status == 0 and bool(np.allclose(c[:, :6], expected, rtol=1e-5, atol=1e-5))
