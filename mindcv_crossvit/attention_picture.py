"""A picture with attention drawn over it. Reads arrays only; MindSpore is not needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .errors import UserError

COLOURS = "magma"
OPACITY = 0.65
SIDE = 224
"""Pixels a drawn map has at least, so that maps over tiny pictures are smooth."""
TINY = 1e-30
"""In place of zero where a class token attends to no patch at all."""


class Panel(NamedTuple):
    """One map to draw: what it shows, and its weights over the patches, [G, G], none negative."""

    title: str
    weights: np.ndarray


def upsample(weights: np.ndarray, side: int) -> np.ndarray:
    """[G, G] -> float32 [side, side], side >= G: bilinear between the middles of the patches, the border repeated."""
    image = Image.fromarray(np.ascontiguousarray(weights, np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def overlay(square: Image.Image, weights: np.ndarray) -> np.ndarray:
    """uint8 [R, R, 3]: the picture in grey under the colours of the weights, black for 0, brightest for the maximum.

    R: the picture's side times the smallest whole number that makes it SIDE or more.
    """
    from matplotlib import colormaps

    side = square.size[0] * -(-SIDE // square.size[0])
    colours = colormaps[COLOURS](upsample(weights, side) / max(float(weights.max()), TINY))[..., :3]
    large = square.convert("L").resize((side, side), Image.Resampling.NEAREST)
    grey = np.asarray(large, np.float64)[..., None] / 255
    return np.rint(255 * (OPACITY * colours + (1 - OPACITY) * grey)).astype(np.uint8)


def draw(path: Path, square: Image.Image, panels: Sequence[Panel]) -> None:
    """Writes a PNG: the picture as the model sees it, and beside it every panel over it.

    The titles say how far a map's peak is above its mean: 1 is attention to everything alike.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 1 + len(panels), figsize=(2.4 * (1 + len(panels)), 3.2), layout="constrained")
    axes[0].imshow(square)
    axes[0].set_title("the picture, as the model sees it", fontsize=8)
    for axis, panel in zip(axes[1:], panels, strict=True):
        axis.imshow(overlay(square, panel.weights))
        peak = panel.weights.max() / max(float(panel.weights.mean()), TINY)
        axis.set_title(f"{panel.title}\npeak {peak:.1f} x mean", fontsize=8)
    for axis in axes:
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def targets(folder: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """Where each picture's drawing goes: its name with .png added, under `folder` as under the pictures' common folder.

    Raises UserError when one would replace a picture.
    """
    whole = [Path(os.path.abspath(p)) for p in paths]
    common = os.path.commonpath([p.parent for p in whole])
    found = {path: folder / f"{p.relative_to(common)}.png" for path, p in zip(paths, whole, strict=True)}
    taken = {p.resolve() for p in paths}
    problems = [
        f"--attention {folder}: {to} is one of the pictures and would be replaced; name another folder"
        for to in found.values()
        if to.resolve() in taken
    ]
    if problems:
        raise UserError(problems[:1])
    return found
