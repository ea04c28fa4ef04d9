"""One picture to one normalised array, for training and for evaluation; pixels as torchvision and timm make them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..recipe import Augment
from .draws import Purpose
from .pixels import moved, normalised, resized
from .rand_augment import parse_policy, rand_augment

Draw = Callable[[Purpose], np.random.Generator]
ERASE_AREA = (0.02, 1 / 3)
ERASE_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


@dataclass(frozen=True)
class Normalise:
    """RGB picture -> float32 [3, H, W], (pixel / 255 - mean) / std per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image, out: np.ndarray | None = None) -> np.ndarray:
        """See the class; written into `out` where it is given."""
        scale = np.float32(1) / (np.float32(255) * np.asarray(self.std, np.float32))
        shift = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        out = np.empty((3, image.height, image.width), np.float32) if out is None else out
        normalised(image, scale, shift, out)
        return out


@dataclass(frozen=True)
class TrainTransform:
    """The training recipe for one picture; each step takes its random numbers from a stream of its own."""

    size: int
    augment: Augment
    normalise: Normalise

    def __call__(self, image: Image.Image, draw: Draw, out: np.ndarray | None = None) -> np.ndarray:
        """RGB picture of any size -> float32 [3, size, size], in `out` if given; `draw` gives a purpose's stream."""
        a = self.augment
        image = self._crop(image, draw)
        if a.flip and draw(Purpose.FLIP).random() < a.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if a.affine:
            image = self._affine(image, draw(Purpose.AFFINE))
        if a.rand_augment:
            image = rand_augment(image, parse_policy(a.rand_augment), draw(Purpose.RAND_AUGMENT), a.fill)
        pixels = self.normalise(image, out)
        if a.erase:
            random_erase(pixels, a.erase, draw(Purpose.ERASE))
        return pixels

    def _crop(self, image: Image.Image, draw: Draw) -> Image.Image:
        a, size, crop = self.augment, (self.size, self.size), self.augment.crop_at(self.size)
        if crop == "resized":
            box = resized_crop_box(image.size, a.crop_scale, a.crop_ratio, draw(Purpose.CROP))
            return resized(image, box, size)
        if image.size != size:
            image = resized(image, (0, 0, *image.size), size)
        return padded_crop(image, 4, draw(Purpose.CROP)) if crop == "padded" else image

    def _affine(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        a = self.augment.affine
        assert a is not None
        angle = math.radians(rng.uniform(-a.degrees, a.degrees))
        zoom = rng.uniform(*a.scale)
        dx, dy = rng.uniform(-a.shift, a.shift, 2) * self.size
        centre = self.size / 2
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        # output pixel (x, y) takes the input at R (p - centre - shift) + centre
        matrix = (cos, sin, centre - cos * (centre + dx) - sin * (centre + dy))
        matrix += (-sin, cos, centre + sin * (centre + dx) - cos * (centre + dy))
        return moved(image, matrix, self.augment.fill)


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side, centre crop, normalise; pixels equal torchvision's on PIL."""

    size: int
    crop_fraction: float
    normalise: Normalise

    def __call__(self, image: Image.Image, out: np.ndarray | None = None) -> np.ndarray:
        """RGB picture of any size -> float32 [3, size, size], in `out` if given."""
        return self.normalise(self.square(image), out)

    def square(self, image: Image.Image) -> Image.Image:
        """The part of a picture that the model sees, [size, size] pixels."""
        return centre_crop(resize_shorter(image, int(self.size / self.crop_fraction)), self.size)


def resize_shorter(image: Image.Image, side: int) -> Image.Image:
    """Bicubic with antialias; the longer side is cut to a whole number of pixels, as torchvision does."""
    w, h = image.size
    if min(w, h) == side:
        return image
    size = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
    return resized(image, (0, 0, w, h), size)


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The middle square; an odd margin is rounded half to even, as torchvision does."""
    left, top = round((image.size[0] - side) / 2), round((image.size[1] - side) / 2)
    return image.crop((left, top, left + side, top + side))


def resized_crop_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom): uniform area share, log-uniform aspect; after ten misses the centre."""
    width, height = size
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def padded_crop(image: Image.Image, padding: int, rng: np.random.Generator) -> Image.Image:
    """A crop of the same size from the picture with black borders, as the official loader does up to 32 pixels."""
    width, height = image.size
    dx, dy = (int(v) for v in rng.integers(-padding, padding + 1, 2))
    return image.crop((dx, dy, dx + width, dy + height))


def random_erase(pixels: np.ndarray, prob: float, rng: np.random.Generator) -> None:
    """Fills one random box of [3, H, W] with normal noise, in place: area share uniform, aspect log-uniform."""
    if rng.random() > prob:
        return
    _, height, width = pixels.shape
    for _ in range(10):
        area = rng.uniform(*ERASE_AREA) * height * width
        aspect = math.exp(rng.uniform(*ERASE_LOG_ASPECT))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            pixels[:, top : top + h, left : left + w] = rng.standard_normal((3, h, w), np.float32)
            return
