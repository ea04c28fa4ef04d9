"""The reference numbers of tests/data, and how two samples of random draws are told apart at the 1 % level."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2, chi2_contingency
from sklearn.datasets import load_sample_image

from mindcv_crossvit.models.golden import u

DATA = Path(__file__).resolve().parent / "data"
ONE_PERCENT = 0.01


@cache
def reference(name: str) -> Any:
    """A JSON file of tests/data."""
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def official_rows() -> list[dict[str, Any]]:
    """The logits of others' code for the released models, each with its overrides and input size."""
    files = ("golden.json", "crossformer.json", "deit.json", "cabvit.json")
    return [{"overrides": {}, "input": [224, 224], **row} for name in files for row in reference(name)["rows"]]


@cache
def reference_arrays(name: str) -> dict[str, np.ndarray]:
    """An NPZ file of tests/data."""
    with np.load(DATA / name) as arrays:
        return dict(arrays)


def assert_summary(
    name: str, values: np.ndarray, expected: Mapping[str, Any], share: float = 3e-5, least: float = 1e-3
) -> None:
    """A tensor is the one of a reference file, where it is summed up; differences up to `share` of its norm.

    least: a smaller norm counts as this: some gradients are zero but for rounding.
    """
    values = values.astype(np.float64)
    found = [values.sum(), np.sqrt((values**2).sum()), (values * u(name, values.shape)).sum()]
    np.testing.assert_allclose(
        [*found, *values.reshape(-1)[:4]],
        [expected["sum"], expected["norm"], expected["dot"], *expected["first"]],
        rtol=0,
        atol=share * max(expected["norm"], least),
        err_msg=name,
    )


def crc(image: Image.Image | np.ndarray) -> int:
    """The checksum of the reference files: uint8 bytes, row by row, channels last."""
    return zlib.crc32(np.ascontiguousarray(image, np.uint8).tobytes())


def photo(name: str) -> Image.Image:
    """A sample photograph of scikit-learn; skips the test where the JPEG decoder gives other pixels."""
    pixels = load_sample_image(name)
    if crc(pixels) != reference("eval_pixels.json")["photo_crc32"][name]:
        pytest.skip("this JPEG decoder gives other pixels than the one the reference numbers were made with")
    return Image.fromarray(pixels)


def assert_same_distribution(values: Sequence[float] | np.ndarray, quantiles: Sequence[float], count: int) -> None:
    """Kolmogorov and Smirnov's bound for two samples, the other one known by 101 quantiles of its `count` values."""
    ours, quantile = np.sort(np.asarray(values, np.float64)), np.asarray(quantiles)
    share = np.linspace(0, 1, len(quantile))
    below = np.searchsorted(ours, quantile, "left") / len(ours)
    up_to = np.searchsorted(ours, quantile, "right") / len(ours)
    distance = max((below - share).max(), (share - up_to).max())
    bound = np.sqrt(-np.log(ONE_PERCENT / 2) / 2 * (1 / len(ours) + 1 / count))
    assert distance < bound, f"distance {distance:.4f}, allowed {bound:.4f}"


def assert_same_counts(ours: Mapping[Any, int], theirs: Mapping[Any, int]) -> None:
    """Chi-square test that two samples of categories are from one distribution."""
    ours, theirs = ({str(k): v for k, v in counts.items()} for counts in (ours, theirs))
    assert set(ours) == set(theirs)
    p: Any = chi2_contingency([[ours[k], theirs[k]] for k in sorted(ours)], correction=False)[1]
    assert p > ONE_PERCENT, f"p = {p:.5f}: {ours} against {theirs}"


def assert_same_shares(tables: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """One chi-square test over several pairs of categories: (ours, theirs) of each."""
    results: list[Any] = [chi2_contingency(table, correction=False) for table in tables]
    p = chi2.sf(sum(float(r[0]) for r in results), sum(int(r[2]) for r in results))
    assert p > ONE_PERCENT, f"p = {p:.5f}: {tables}"
