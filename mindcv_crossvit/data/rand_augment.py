"""RandAugment (arXiv 1909.13719) with the operations, magnitudes and probabilities of timm 1.0.31.

The official runs used `rand-m9-mstd0.5-inc1`: two operations a picture, each applied with probability 0.5, magnitude
normal(9, 0.5) clipped to [0, 10], 15 operations whose strength increases with the magnitude.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from .pixels import Colour, moved

MAX_MAGNITUDE = 10.0
TRANSLATE = 0.45
"""Shift at magnitude 10, as a share of the side."""


@dataclass(frozen=True)
class Policy:
    """A parsed policy string.

    magnitude: 0 to 10. layers: operations a picture. prob: chance of each to be applied. magnitude_std: deviation of
    the magnitude, infinite for uniform in [0, magnitude]. magnitude_max: upper bound of the magnitude.
    increasing: the variants whose strength grows with the magnitude.
    """

    magnitude: float = 10.0
    layers: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = MAX_MAGNITUDE
    increasing: bool = False

    def operations(self) -> tuple[str, ...]:
        """Names of the operations, in timm's order."""
        return INCREASING if self.increasing else PLAIN


@cache  # asked for by every picture
def parse_policy(text: str) -> Policy:
    """A policy from timm's string form: `rand`, then -mN, -nN, -pX, -mstdX, -mmaxN, -inc0/1 in any order.

    Raises ValueError with the part that is not understood.
    """
    first, *parts = text.split("-")
    if first != "rand":
        raise ValueError(f"expected a policy such as rand-m9-mstd0.5-inc1, got {text!r}: it must begin with 'rand'")
    values: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|inf)", part)
        if not match:
            raise ValueError(f"{text!r}: part {part!r} is none of mN, nN, pX, mstdX, mmaxN, inc0, inc1")
        if match[1] in values:
            raise ValueError(f"{text!r}: {match[1]!r} is given twice")
        values[match[1]] = float(match[2])
    return _policy(text, values)


def _policy(text: str, values: dict[str, float]) -> Policy:
    upper = values.get("mmax", MAX_MAGNITUDE)
    checks = (
        ("m", 0, upper, True),
        ("n", 1, 15, True),
        ("p", 0, 1, False),
        ("inc", 0, 1, True),
        ("mmax", 1, 100, True),
    )
    for key, low, high, whole in checks:
        value = values.get(key, low)
        if not low <= value <= high or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{text!r}: {key} must be {kind} from {low:g} to {high:g}, not {value:g}")
    std = values.get("mstd", 0.0)
    return Policy(
        magnitude=values.get("m", MAX_MAGNITUDE),
        layers=int(values.get("n", 2)),
        prob=values.get("p", 0.5),
        magnitude_std=float("inf") if std > 100 else std,
        magnitude_max=upper,
        increasing=bool(values.get("inc", 0)),
    )


def rand_augment(image: Image.Image, policy: Policy, rng: np.random.Generator, fill: Colour) -> Image.Image:
    """Applies the policy's operations to an RGB picture; `fill` is the colour of uncovered pixels.

    Geometric operations interpolate bicubically: timm's own default is a coin between bilinear and bicubic, but it
    hands the training interpolation on, which is bicubic in the official runs.
    """
    names = policy.operations()
    for choice in rng.integers(len(names), size=policy.layers):
        if policy.prob < 1 and rng.random() > policy.prob:
            continue
        level = draw_magnitude(policy, rng) / MAX_MAGNITUDE
        negate = rng.random() > 0.5
        image = apply(names[choice], image, level, negate, fill)
    return image


def draw_magnitude(policy: Policy, rng: np.random.Generator) -> float:
    """One magnitude, clipped to [0, magnitude_max]."""
    magnitude = policy.magnitude
    if policy.magnitude_std == float("inf"):
        magnitude = rng.uniform(0, magnitude)
    elif policy.magnitude_std > 0:
        magnitude = rng.normal(magnitude, policy.magnitude_std)
    return max(0.0, min(magnitude, policy.magnitude_max))


def apply(name: str, image: Image.Image, level: float, negate: bool, fill: Colour) -> Image.Image:
    """One operation at level = magnitude / 10; `negate` mirrors those that have a sign."""
    signed = -level if negate else level
    if name in _GEOMETRIC:
        return moved(image, _GEOMETRIC[name](image.size, signed), fill)
    if name in _ENHANCE:
        factor = max(0.1, 1.0 + signed * 0.9) if name.endswith("Increasing") else level * 1.8 + 0.1
        return _ENHANCE[name](image).enhance(factor)
    return _TONE[name](image, level)


def _rotation(size: tuple[int, int], degrees: float) -> tuple[float, ...]:
    """The matrix of Pillow's Image.rotate about the centre; its sines and cosines have 15 digits."""
    radians, x, y = math.radians(-(degrees % 360.0)), size[0] / 2, size[1] / 2
    cos, sin = round(math.cos(radians), 15), round(math.sin(radians), 15)
    return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y


_GEOMETRIC: dict[str, Callable[[tuple[int, int], float], tuple[float, ...]]] = {
    "Rotate": lambda size, v: _rotation(size, v * 30.0),
    "ShearX": lambda size, v: (1, v * 0.3, 0, 0, 1, 0),
    "ShearY": lambda size, v: (1, 0, 0, v * 0.3, 1, 0),
    "TranslateXRel": lambda size, v: (1, 0, v * TRANSLATE * size[0], 0, 1, 0),
    "TranslateYRel": lambda size, v: (1, 0, 0, 0, 1, v * TRANSLATE * size[1]),
}

_ENHANCE: dict[str, Callable[..., ImageEnhance.Color]] = {
    f"{name}{suffix}": getattr(ImageEnhance, name)
    for name in ("Color", "Contrast", "Brightness", "Sharpness")
    for suffix in ("", "Increasing")
}


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the highest `bits` bits; none left is black, which newer Pillow versions refuse to make."""
    return image.point([value & ~(2 ** (8 - bits) - 1) for value in range(256)] * 3) if bits < 8 else image


def _solarize_add(image: Image.Image, add: int) -> Image.Image:
    return image.point([min(255, v + add) if v < 128 else v for v in range(256)] * 3)


_TONE: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda im, v: ImageOps.autocontrast(im),
    "Equalize": lambda im, v: ImageOps.equalize(im),
    "Invert": lambda im, v: ImageOps.invert(im),
    "Posterize": lambda im, v: _posterize(im, int(v * 4)),
    "PosterizeIncreasing": lambda im, v: _posterize(im, 4 - int(v * 4)),
    "Solarize": lambda im, v: ImageOps.solarize(im, min(256, int(v * 256))),
    "SolarizeIncreasing": lambda im, v: ImageOps.solarize(im, 256 - min(256, int(v * 256))),
    "SolarizeAdd": lambda im, v: _solarize_add(im, min(128, int(v * 110))),
}

PLAIN = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
_HAVE_INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
INCREASING = tuple(f"{name}Increasing" if name in _HAVE_INCREASING else name for name in PLAIN)
