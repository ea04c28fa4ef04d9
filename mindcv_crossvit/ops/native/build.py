"""Compiles kernels.cc and gives it MindSpore's own matrix product. Without MindSpore's Python: what is missing is said
before anything starts."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ... import compile as cpp
from ...errors import UserError

SOURCE = Path(__file__).with_name("kernels.cc")
FLAGS = (*cpp.FLAGS, "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_ELSE = "use run.ops=composed, which needs none"


@cache
def library() -> Path:
    """The compiled kernels, bound to MindSpore's oneDNN.

    Raises UserError where there is no C++ compiler, it fails, or MindSpore has no matrix product that gives the right
    numbers.
    """
    try:
        path = cpp.compiled(SOURCE, cpp.cache_folder(), FLAGS)
    except UserError as error:
        raise UserError(f"run.ops: native: {error}; {_ELSE}") from error
    kernels = ctypes.CDLL(str(path))
    product = sgemm()
    kernels.crossvit_bind.argtypes = [ctypes.c_void_p]
    kernels.crossvit_bind(ctypes.cast(product, ctypes.c_void_p))
    return path


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
