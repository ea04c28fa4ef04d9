"""Mixup and CutMix of a group of pictures with itself reversed, labels smoothed in the target. Arithmetic as timm's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..recipe import Mix

Box = tuple[int, int, int, int]


def soft_targets(labels: np.ndarray, num_classes: int, smoothing: float, out: np.ndarray) -> None:
    """Fills out [B, num_classes] with 1 - smoothing at the label and smoothing / num_classes everywhere besides."""
    out[:] = smoothing / num_classes
    out[np.arange(len(labels)), labels] += 1 - smoothing


def mix_groups(
    images: np.ndarray,
    targets: np.ndarray,
    mix: Mix,
    group: int,
    draws: Callable[[int], np.random.Generator],
    rows: np.ndarray | None = None,
) -> None:
    """Mixes images [B, 3, H, W] and targets [B, C] in place, each group or part of one with itself reversed.

    group: rows that share a draw. draws: gives the random stream of the k-th group. rows: which row of all groups each
    of the B is, groups ascending, parts of groups closed under reversal (see shares); None for the first B rows.
    """
    if not (mix.mixup or mix.cutmix):
        return
    numbers = (np.arange(len(images)) if rows is None else rows) // group
    groups, starts = np.unique(numbers, return_index=True)
    for number, start, stop in zip(groups, starts, [*starts[1:], len(images)], strict=True):
        lam, box = draw_mix(mix, images.shape[-2:], draws(int(number)))
        apply_mix(images[start:stop], targets[start:stop], lam, box)


def draw_mix(mix: Mix, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[float, Box | None]:
    """(lambda, box): the share of the own picture, and CutMix's (top, bottom, left, right); no box for mixup."""
    if rng.random() >= mix.prob:
        return 1.0, None
    if mix.cutmix and (not mix.mixup or rng.random() < mix.switch_prob):
        return cutmix_box(shape, float(rng.beta(mix.cutmix, mix.cutmix)), rng)
    return float(rng.beta(mix.mixup, mix.mixup)), None


def cutmix_box(shape: tuple[int, ...], lam: float, rng: np.random.Generator) -> tuple[float, Box]:
    """A box of area 1 - lam about a random centre, cut at the borders; lambda is what then remains."""
    height, width = shape
    share = math.sqrt(1 - lam)
    h, w = int(height * share), int(width * share)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(y - h // 2, 0), min(y + (h + 1) // 2, height)
    left, right = max(x - w // 2, 0), min(x + (w + 1) // 2, width)
    return 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)


def apply_mix(images: np.ndarray, targets: np.ndarray, lam: float, box: Box | None) -> None:
    """lam * own + (1 - lam) * partner, in place; with a box its pixels are the partner's."""
    if lam == 1.0:
        return
    targets[:] = targets * np.float32(lam) + targets[::-1] * np.float32(1 - lam)
    if box is None:
        _mix_pairs(images, np.float32(lam), np.float32(1 - lam))
    else:
        top, bottom, left, right = box
        images[:, :, top:bottom, left:right] = images[::-1, :, top:bottom, left:right].copy()


def _mix_pairs(images: np.ndarray, own: np.float32, other: np.float32) -> None:
    """own * images + other * images[::-1], in place: pair by pair it stays in the cache, at a third of the time."""
    count = len(images)
    shares = np.empty((2, *images.shape[1:]), np.float32)
    for k in range((count + 1) // 2):
        first, last = images[k], images[count - 1 - k]
        np.multiply(last, other, out=shares[0])
        np.multiply(first, other, out=shares[1])
        np.multiply(first, own, out=first)
        first += shares[0]
        if 2 * k + 1 < count:  # the middle one is its own partner
            np.multiply(last, own, out=last)
            last += shares[1]
