"""From the bytes of a file to an RGB picture, or to a plain reason why not."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from PIL import Image

from ..errors import printable

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Decoders that are used; a file of another kind, such as PostScript, starts no other program."""


LONGEST = 200
"""Longer side over the shorter: resized to a shorter side of 256, more would be a decompression bomb again."""


class BadImage(Exception):
    """A picture that cannot be read: which, and why; the message has both, in one line."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason
        super().__init__(printable(f"{name}: {reason}"))

    def __reduce__(self):
        return BadImage, (self.name, self.reason)


def decode(data: bytes, name: str) -> Image.Image:
    """An RGB picture from an encoded file's bytes; the first frame of an animation, 16-bit grey scaled to 8.

    Raises BadImage for anything that cannot be decoded, is cut short, has more pixels than Pillow's bomb limit, or is
    but a line.
    """
    if not data:
        raise BadImage(name, "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if max(image.size) > LONGEST * min(image.size):
                    raise ValueError(
                        f"{image.width} x {image.height} pixels, one side more than {LONGEST} times the other"
                    )
                return _to_rgb(image)
    except Exception as error:  # decoders raise what they like, struct.error and SyntaxError among it
        reason = str(error) or type(error).__name__
        raise BadImage(name, re.sub(r" <_io\.BytesIO object at \w+>", "", reason)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        scale = 257 if image.mode.startswith("I;16") or grey.max(initial=0) > 255 else 1
        return Image.fromarray((grey // scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    if image.mode == "RGB" and image.format == "JPEG":
        image.load()
        return image  # convert would copy it
    return image.convert("RGB")
