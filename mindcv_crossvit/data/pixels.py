"""Resizing, moving and normalising pictures: by Pillow, or by pixels.cc with the same bits where a compiler is found.

`CROSSVIT_PIXELS=pillow` in the environment leaves the compiled code out.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .. import compile as cpp
from ..errors import UserError

SOURCE = Path(__file__).with_name("pixels.cc")
FLAGS = (*cpp.FLAGS, "-ffp-contract=off", "-Wno-psabi")
BICUBIC = Image.Resampling.BICUBIC

Box = tuple[int, int, int, int]
Size = tuple[int, int]
Colour = tuple[int, int, int]


def resized(image: Image.Image, box: Box, size: Size) -> Image.Image:
    """image.crop(box).resize(size), bicubic with antialias; box: (left, top, right, bottom) inside an RGB picture."""
    code = compiled()
    fast = code and _resized(code, image, box, size)
    return fast or image.crop(box).resize(size, BICUBIC)


def moved(image: Image.Image, matrix: tuple[float, ...], fill: Colour) -> Image.Image:
    """An RGB picture's image.transform by an affine matrix, same size, bicubic; uncovered pixels get `fill`."""
    code = compiled()
    fast = code and _moved(code, image, matrix, fill)
    return fast or image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=fill)


def normalised(image: Image.Image, scale: np.ndarray, shift: np.ndarray, out: np.ndarray) -> None:
    """Fills out [3, H, W] with pixel * scale - shift of each channel of an RGB picture; all float32."""
    code = compiled()
    if not (code and _normalised(code, image, scale, shift, out)):
        np.multiply(np.asarray(image).transpose(2, 0, 1), scale[:, None, None], out=out)
        np.subtract(out, shift[:, None, None], out=out)


@cache
def compiled() -> Any:
    """The compiled code; None where there is no compiler, it is left out, or this Pillow has other bits."""
    if os.environ.get("CROSSVIT_PIXELS") == "pillow":
        return None
    try:
        code = ctypes.CDLL(str(cpp.compiled(SOURCE, cpp.cache_folder(), FLAGS)))
    except (UserError, OSError):
        return None
    return code if _agrees(_declared(code)) else None


def _declared(code: Any) -> Any:
    whole, place = ctypes.c_int, ctypes.c_void_p
    code.crossvit_resize.argtypes = [place, ctypes.c_int64, *[whole] * 4, place, *[whole] * 2]
    code.crossvit_affine.argtypes = [place, whole, whole, ctypes.POINTER(ctypes.c_double), place]
    code.crossvit_normalise.argtypes = [place, ctypes.c_int64, *[place] * 3]
    return code


def _agrees(code: Any) -> bool:
    """Whether the code does what this Pillow does, on noise: another version or processor may round elsewhere."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8))
    pairs = [
        (_resized(code, image, (3, 2, 47, 36), size), image.crop((3, 2, 47, 36)).resize(size, BICUBIC))
        for size in ((23, 31), (61, 53))
    ]
    for matrix in ((0.9, 0.3, -4.7, -0.3, 0.9, 5.1), (1, 0.27, 0, 0, 1, 0)):
        theirs = image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=(9, 8, 7))
        pairs.append((_moved(code, image, matrix, (9, 8, 7)), theirs))
    return all(ours is not None and ours.tobytes() == theirs.tobytes() for ours, theirs in pairs)


def _resized(code: Any, image: Image.Image, box: Box, size: Size) -> Image.Image | None:
    left, top, right, bottom = box
    result = Image.new("RGB", size)
    source, target = _memory_of(image), _memory_of(result)
    if not (source and target):
        return None
    sides = (left, top, right - left, bottom - top)
    failed = code.crossvit_resize(source.address, 4 * image.width, *sides, target.address, *size)
    return None if failed else result


def _moved(code: Any, image: Image.Image, matrix: tuple[float, ...], fill: Colour) -> Image.Image | None:
    result = Image.new("RGB", image.size, fill)
    source, target = _memory_of(image), _memory_of(result)
    if not (source and target):
        return None
    failed = code.crossvit_affine(source.address, *image.size, (ctypes.c_double * 6)(*matrix), target.address)
    return None if failed else result


def _normalised(code: Any, image: Image.Image, scale: np.ndarray, shift: np.ndarray, out: np.ndarray) -> bool:
    source = _memory_of(image)
    if not (source and out.flags.c_contiguous):
        return False
    places = [array.ctypes.data for array in (scale, shift, out)]
    return not code.crossvit_normalise(source.address, image.width * image.height, *places)


class _Memory(NamedTuple):
    """Where an RGB picture's pixels lie, 4 bytes each, row by row, as long as `owner` lives."""

    address: int
    owner: object


def _memory_of(image: Image.Image) -> _Memory | None:
    """Pillow's own memory of a picture; None for other modes, and where it does not lie in one piece."""
    if image.mode != "RGB" or not hasattr(image, "__arrow_c_array__"):
        return None
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:  # above 16 MB Pillow may use several pieces
        return None
    pixels = _Array.from_address(_pointer_of(capsule, b"arrow_array")).children[0].contents
    return _Memory(pixels.buffers[1], capsule)


class _Array(ctypes.Structure):
    """An array of Arrow's C data interface."""


_Array._fields_ = [
    *[(name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")],
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
    *[(name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")],
]
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
