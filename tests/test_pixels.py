"""The compiled code for pixels has Pillow's bits, stays within its memory, and is left out where it cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mindcv_crossvit import compile as cpp
from mindcv_crossvit.data import pixels
from mindcv_crossvit.data.pixels import BICUBIC, compiled, moved, normalised, resized

FILL = (124, 116, 104)
SANITIZED = ("-O1", "-g", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-Wno-psabi", "-fsanitize=address")


@pytest.fixture(autouse=True)
def fresh():
    compiled.cache_clear()
    yield
    compiled.cache_clear()


def noise(rng, width, height):
    """A picture whose every pixel differs from its neighbours, black and white among them."""
    return Image.fromarray(np.clip(rng.normal(128, 90, (height, width, 3)), 0, 255).astype(np.uint8))


def sides(rng, most):
    """Few pixels as often as many."""
    return int(np.exp(rng.uniform(0, np.log(most))))


def check_resizing(rng, cases):
    for _ in range(cases):
        image = noise(rng, sides(rng, 400), sides(rng, 400))
        width, height = (int(rng.integers(1, side + 1)) for side in image.size)
        left, top = (int(rng.integers(side - part + 1)) for side, part in zip(image.size, (width, height), strict=True))
        box, size = (left, top, left + width, top + height), (sides(rng, 300), sides(rng, 300))
        assert resized(image, box, size).tobytes() == image.crop(box).resize(size, BICUBIC).tobytes(), (box, size)


def check_moving(rng, cases):
    for k in range(cases):
        image = noise(rng, sides(rng, 200), sides(rng, 200))
        exact = (
            (1, 0, 0, 0, 1, 0),
            (1, rng.normal(), 0, 0, 1, 0),
            (1, 0, rng.normal(0, 20), 0, 1, 3),
            (0, 1, 0, -1, 0, 9),
        )
        matrix = exact[k] if k < len(exact) else tuple(rng.normal(0, (1, 1, 30) * 2))
        expected = image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=FILL)
        assert moved(image, matrix, FILL).tobytes() == expected.tobytes(), (image.size, matrix)


def test_resizing_has_pillows_bits():
    assert compiled() is not None
    check_resizing(np.random.default_rng(0), 150)


def test_moving_has_pillows_bits():
    assert compiled() is not None
    check_moving(np.random.default_rng(1), 60)


def test_normalising_has_numpys_bits(monkeypatch):
    image, rng = noise(np.random.default_rng(2), 33, 17), np.random.default_rng(3)
    scale, shift = (rng.standard_normal(3).astype(np.float32) for _ in range(2))
    found = []
    for name in ("compiled", "pillow"):
        monkeypatch.setenv("CROSSVIT_PIXELS", name)
        compiled.cache_clear()
        found.append(np.empty((3, 17, 33), np.float32))
        normalised(image, scale, shift, found[-1])
    assert compiled() is None
    np.testing.assert_array_equal(*found)
    strided = np.zeros((3, 17, 66), np.float32)[:, :, ::2]
    monkeypatch.setenv("CROSSVIT_PIXELS", "compiled")
    compiled.cache_clear()
    normalised(image, scale, shift, strided)
    np.testing.assert_array_equal(strided, found[0])


def test_other_modes_and_pictures_in_pieces_are_pillows():
    rng = np.random.default_rng(4)
    for image in (noise(rng, 9, 9).convert("L"), noise(rng, 2300, 2000)):
        box = (1, 1, 8, 7)
        assert pixels._memory_of(image) is None
        assert resized(image, box, (5, 5)).tobytes() == image.crop(box).resize((5, 5), BICUBIC).tobytes()


@pytest.mark.parametrize("reason", ["no compiler", "left out", "no folder"])
def test_without_the_code_pillow_does_it(reason, monkeypatch, tmp_path):
    if reason == "no compiler":
        monkeypatch.setenv("PATH", "/nonexistent")
        monkeypatch.delenv("CXX", raising=False)
    elif reason == "left out":
        monkeypatch.setenv("CROSSVIT_PIXELS", "pillow")
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiled() is None
    check_resizing(np.random.default_rng(5), 3)


def test_code_that_rounds_elsewhere_is_not_used(monkeypatch, tmp_path):
    other = tmp_path / "other.cc"
    text = pixels.SOURCE.read_text()
    other.write_text(text.replace("constexpr double a = -0.5;", "constexpr double a = -0.6;"))
    assert other.read_text() != text
    monkeypatch.setattr(pixels, "SOURCE", other)
    assert compiled() is None


CHECK = """import ctypes, sys
import numpy as np
from mindcv_crossvit.data import pixels
import test_pixels
code = ctypes.CDLL(sys.argv[1])
assert pixels._agrees(pixels._declared(code))
pixels.compiled = lambda: code
rng = np.random.default_rng(0)
test_pixels.check_resizing(rng, 20), test_pixels.check_moving(rng, 15)
pixels.normalised(test_pixels.noise(rng, 7, 5), *np.ones((2, 3), np.float32), np.empty((3, 5, 7), np.float32))
print("within")
"""


@pytest.mark.parametrize("change, expected", [("", "within"), ("to + y * bytes + 4", "heap-buffer-overflow")])
def test_it_stays_within_its_memory(change, expected, tmp_path):
    source = tmp_path / "pixels.cc"
    source.write_text(pixels.SOURCE.read_text().replace("to + y * bytes", change or "to + y * bytes"))
    library = cpp.compiled(source, tmp_path, (*SANITIZED, "-DCROSSVIT_PLAIN"))
    sanitizer = subprocess.run([cpp.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    environment = {"LD_PRELOAD": sanitizer.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", CHECK, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert expected in done.stdout + done.stderr, done.stderr[-3000:]
