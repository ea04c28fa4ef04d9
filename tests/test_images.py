"""Odd picture files, written by Pillow or byte by byte: read as they should be, or named in the reason why not."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import socket
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindcv_crossvit.data import storage
from mindcv_crossvit.data.images import BadImage, decode
from mindcv_crossvit.data.sources import FileSource
from mindcv_crossvit.errors import MachineError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode(data, "picture")
    assert image.mode == "RGB"
    return np.asarray(image)


def reason(data: bytes, name: str = "some/picture.jpg") -> str:
    """Why a picture cannot be read: begins with its name and is the same every time, without memory addresses."""
    messages = []
    for _ in range(2):
        with pytest.raises(BadImage) as caught:
            decode(bytes(data), name)
        assert caught.value.name == name
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and messages[0].startswith(f"{name}: ")
    assert not re.search(r"0x[0-9a-f]{6}|BytesIO|\n", messages[0])
    return messages[0].removeprefix(f"{name}: ")


def png(width: int, height: int, data: bytes, bits: int = 8, colours: int = 2) -> bytes:
    """A PNG byte by byte: colours 2 is RGB, 4 grey with alpha, 6 RGBA; data: rows of samples after a zero each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has almost no data."""
    return png(width, height, bytes(100))


def noise(size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_rgb_files_keep_every_pixel(kind):
    np.testing.assert_array_equal(pixels(encoded(noise(), kind)), np.asarray(noise()))


def test_a_grey_picture_has_three_equal_channels():
    grey = noise().convert("L")
    np.testing.assert_array_equal(pixels(encoded(grey, "PNG")), np.stack([np.asarray(grey)] * 3, -1))


@pytest.mark.parametrize(
    "ink, colour", [((0, 255, 255, 0), RED), ((255, 255, 0, 0), BLUE), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_a_cmyk_jpeg_has_the_colours_of_its_inks(ink, colour):
    data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(pixels(data).astype(int) - colour).max() <= 4


def test_sixteen_bit_grey_is_scaled_to_eight():
    values = np.array([[0, 257, 128 * 257, 254 * 257, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    np.testing.assert_array_equal(pixels(data)[0, :, 0], [0, 1, 128, 254, 255])
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 1], [0, 1, 128, 254, 255])


def byte_wise(bits: int, colours: int) -> tuple[bytes, np.ndarray]:
    """(PNG, what it must be read as): two rows of three pixels; with 16 bits the high byte counts, alpha never."""
    samples = {2: 3, 4: 2, 6: 4}[colours]
    values = np.random.default_rng(bits + colours).integers(0, 1 << bits, (2, 3, samples))
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in values)
    shown = values[..., [0, 0, 0] if colours == 4 else [0, 1, 2]] >> (bits - 8)
    return png(3, 2, rows, bits, colours), shown


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colours", [2, 4, 6])
def test_png_of_every_kind_of_sample_written_byte_by_byte(bits, colours):
    data, shown = byte_wise(bits, colours)
    np.testing.assert_array_equal(pixels(data), shown)


@pytest.mark.parametrize("mode, pixel, colour", [("LA", (90, 40), (90, 90, 90)), ("RGBA", (*RED, 0), RED)])
def test_alpha_is_left_out(mode, pixel, colour):
    np.testing.assert_array_equal(pixels(encoded(Image.new(mode, (3, 2), pixel), "PNG")), np.full((2, 3, 3), colour))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80"])
def test_a_palette_gives_its_colours_whatever_is_transparent(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    data = encoded(image, "PNG", **options)
    assert ("transparency" in Image.open(io.BytesIO(data)).info) == (transparency is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns where transparency is given as bytes
        np.testing.assert_array_equal(pixels(data), [[GREEN, BLUE]])


def test_one_bit_is_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    assert image.mode == "1"
    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), [[(255,) * 3, (0,) * 3]])


@pytest.mark.parametrize("kind, options", [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_an_animation_gives_its_first_frame(kind, options):
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    np.testing.assert_array_equal(pixels(data), np.full((6, 8, 3), RED))


def test_a_single_pixel_is_a_picture():
    np.testing.assert_array_equal(pixels(encoded(Image.new("RGB", (1, 1), BLUE), "PNG")), [[BLUE]])


def test_an_orientation_tag_is_not_followed():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = (encoded(noise(), "JPEG", **options) for options in ({"exif": exif}, {}))
    assert Image.open(io.BytesIO(turned)).getexif()[0x0112] == 6
    np.testing.assert_array_equal(pixels(turned), pixels(plain))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_refused(kind, share):
    data = encoded(noise(), kind)
    assert reason(data[: int(share * len(data))])


def test_a_truncated_jpeg_is_called_truncated():
    data = encoded(noise(), "JPEG")
    assert "truncated" in reason(data[: len(data) // 2])


def test_an_empty_file_is_called_empty():
    assert reason(b"") == "the file is empty"


@pytest.mark.parametrize("text", [b"<html>not found</html>", b"hello", "图片".encode(), bytes(1000)])
def test_what_is_no_picture_is_refused(text):
    assert "cannot identify image file" in reason(text)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_goes_off(side):
    assert "decompression bomb" in reason(png_header(side, side))


def test_a_large_claim_with_little_data_is_refused():
    assert reason(png_header(300, 300))


def test_a_broken_jpeg_is_read_or_refused_never_anything_else():
    data = encoded(noise(), "JPEG")
    rng = np.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(data)
        for at in rng.integers(2, len(data), 5):
            damaged[at] = rng.integers(256)
        try:
            assert decode(bytes(damaged), "picture").mode == "RGB"
        except BadImage as error:
            assert error.name == "picture"


@pytest.mark.parametrize("name", ["a.jpg", "C:\\a: b.jpg", "数据/猫 1.jpg", ""])
def test_the_reason_survives_the_way_from_another_process(name):
    error = BadImage(name, "image file is truncated: 3 bytes")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.name, str(again)) == (BadImage, name, str(error))


@pytest.mark.parametrize("name", ["照片/一只 猫.jpg", "with spaces/a b.jpg", "%20#?.jpg", "é" * 60 + ".jpg"])
def test_any_file_name_will_do(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoded(noise(), "PNG"))
    np.testing.assert_array_equal(np.asarray(FileSource([str(path)], np.zeros(1)).read(0)), np.asarray(noise()))


def bad_file(path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        FileSource(["not this", str(path)], np.zeros(2)).read(1)
    assert caught.value.name == str(path) and str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_files_that_cannot_be_opened_are_named(tmp_path):
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "text.jpg").write_text("hello")
    assert bad_file(tmp_path / "broken.jpg") == "No such file or directory"
    assert bad_file(tmp_path / "folder.jpg") == "Is a directory"
    assert bad_file(tmp_path / "text.jpg").startswith("cannot identify image file")


def test_what_is_no_regular_file_is_named_and_neither_waited_for_nor_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "terminal.jpg").symlink_to("/dev/tty")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)  # a file with a hole takes no room
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
    began = time.monotonic()
    assert bad_file(tmp_path / "pipe.jpg") == "no file with a picture, but a pipe"
    assert bad_file(tmp_path / "device.jpg") == "no file with a picture, but a device"
    assert bad_file(tmp_path / "socket.jpg") == "No such device or address"
    assert bad_file(tmp_path / "terminal.jpg")
    assert bad_file(tmp_path / "huge.jpg") == "1,099,511,627,776 bytes, more than 1,073,741,824"
    assert time.monotonic() - began < 2


def test_storage_that_fails_is_asked_again_and_is_no_fault_of_the_picture(tmp_path, monkeypatch):
    """Reading a process's memory from its beginning is an input/output error: of a real file system, every time."""
    monkeypatch.setattr(storage, "WAITS", (0.05, 0.1))
    (tmp_path / "sector.jpg").symlink_to("/proc/self/mem")
    with pytest.raises(MachineError) as caught:
        FileSource([str(tmp_path / "sector.jpg")], np.zeros(1)).read(0)
    name, reason = str(caught.value).split(": ", 1)
    assert name == str(tmp_path / "sector.jpg") and not isinstance(caught.value, BadImage)
    assert reason == "Input/output error, 3 times in 0.15 s: the storage fails"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_an_error_that_passes_is_not_noticed(tmp_path, monkeypatch, number):
    monkeypatch.setattr(storage, "WAITS", (0.05, 0.1))
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    errors, fstat = [OSError(number, "passing"), OSError(number, "passing")], os.fstat
    monkeypatch.setattr(storage.os, "fstat", lambda handle: fstat(handle) if not errors else _raise(errors.pop()))
    np.testing.assert_array_equal(np.asarray(FileSource([str(tmp_path / "a.png")], []).read(0)), np.asarray(noise()))
    assert not errors


def _raise(error: Exception) -> None:
    raise error
