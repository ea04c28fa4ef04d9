"""Mixup and CutMix against timm: one mixed batch, and the statistics of 30,000 draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference import assert_same_counts, assert_same_distribution, reference, reference_arrays

from mindcv_crossvit.data.draws import Purpose, stream
from mindcv_crossvit.data.mixing import apply_mix, cutmix_box, draw_mix, mix_groups, soft_targets
from mindcv_crossvit.models.golden import u
from mindcv_crossvit.recipe import Mix

BOTH = Mix(mixup=0.8, cutmix=1.0, prob=1.0, switch_prob=0.5)
STATISTICS = reference("crops.json")["mixing"]
SHAPE = (STATISTICS["image"]["height"], STATISTICS["image"]["width"])


def draws(epoch: int = 0, seed: int = 1):
    return lambda k: stream(seed, Purpose.MIX, epoch, k)


def batch(size: int, name: str = "x") -> tuple[np.ndarray, np.ndarray]:
    targets = np.empty((size, 10), np.float32)
    soft_targets(np.arange(size) * 3 % 10, 10, 0.1, targets)
    return u(name, (size, 3, 16, 16)).astype(np.float32), targets


@pytest.mark.parametrize("kind, lam, box", [("mixup", 0.3, None), ("cutmix", 1 - 6 * 11 / 256, (3, 9, 5, 16))])
def test_a_mixed_batch_equals_timms(kind, lam, box):
    images, targets = u("x", (4, 3, 16, 16)).astype(np.float32), np.empty((4, 10), np.float32)
    soft_targets(np.array([1, 5, 2, 9]), 10, 0.1, targets)
    apply_mix(images, targets, lam, box)
    expected = reference_arrays("mixing.npz")
    np.testing.assert_allclose(images, expected[f"{kind}_x"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets, expected[f"{kind}_target"], rtol=0, atol=1e-6)


def test_draws_are_distributed_as_timms():
    mixed, cut, boxes = [], [], []
    for k in range(STATISTICS["draws"]):
        lam, box = draw_mix(BOTH, SHAPE, draws()(k))
        (mixed if box is None else cut).append(lam)
        if box is not None:
            boxes.append(box)
    top, bottom, left, right = np.array(boxes).T
    theirs = STATISTICS["cutmix"]
    assert_same_counts(
        {"mixup": len(mixed), "cutmix": len(cut)}, {"mixup": STATISTICS["draws"] - theirs, "cutmix": theirs}
    )
    assert_same_distribution(mixed, STATISTICS["mixup_lambda"], STATISTICS["draws"] - theirs)
    assert_same_distribution(cut, STATISTICS["cutmix_lambda"], theirs)
    assert_same_distribution(bottom - top, STATISTICS["cutmix_height"], theirs)
    assert_same_distribution(right - left, STATISTICS["cutmix_width"], theirs)


def test_a_box_inside_the_picture_has_its_whole_side_as_timms():
    """In timm 1.0.31 the rows are cy - cut_h // 2 to cy + (cut_h + 1) // 2: an odd side keeps its pixel."""
    inside = 0
    for k in range(300):
        rng = draws()(k)
        lam = 0.6 + 0.4 * rng.random()
        top, bottom, left, right = cutmix_box((240, 180), lam, rng)[1]
        sides = [int(side * math.sqrt(1 - lam)) for side in (240, 180)]
        assert bottom - top <= sides[0] and right - left <= sides[1]
        if top > 0 and bottom < 240 and left > 0 and right < 180:
            assert [bottom - top, right - left] == sides
            inside += 1
    assert inside > 50


def test_lambda_is_the_share_of_own_pixels():
    for k in range(200):
        lam, (top, bottom, left, right) = cutmix_box((24, 40), k / 200, draws()(k))
        assert 0 <= top <= bottom <= 24 and 0 <= left <= right <= 40
        own = np.ones((24, 40))
        own[top:bottom, left:right] = 0
        assert lam == pytest.approx(own.mean(), abs=1e-12)


def test_a_batch_is_unchanged_when_nothing_is_to_be_mixed():
    for mix in (Mix(mixup=0.8, cutmix=1.0, prob=0.0), Mix(), Mix(prob=1.0)):
        images, targets = batch(8)
        mix_groups(images, targets, mix, 4, draws())
        np.testing.assert_array_equal(images, batch(8)[0])
        np.testing.assert_array_equal(targets, batch(8)[1])


def test_the_probability_is_that_of_a_group():
    kept = sum(draw_mix(Mix(mixup=0.8, cutmix=1.0, prob=0.3), SHAPE, draws()(k)) == (1.0, None) for k in range(4000))
    assert abs(kept / 4000 - 0.7) < 2.58 * math.sqrt(0.3 * 0.7 / 4000)


@pytest.mark.parametrize(
    "mix, cut",
    [
        (Mix(mixup=0.8), False),
        (Mix(cutmix=1.0), True),
        (Mix(mixup=0.8, cutmix=1.0, switch_prob=0), False),
        (Mix(mixup=0.8, cutmix=1.0, switch_prob=1), True),
    ],
)
def test_only_what_is_on_is_drawn(mix, cut):
    assert {draw_mix(mix, SHAPE, draws()(k))[1] is not None for k in range(100)} == {cut}


def test_two_groups_of_a_batch_have_different_draws_and_do_not_mix_with_each_other():
    mix, size = Mix(mixup=0.8), 8
    images, targets = batch(2 * size)
    images[:size] = 0
    images[size:] = 1
    images[size + 1] = images[1] = 3
    targets[:] = 0
    targets[:size, 0] = 1
    targets[size:, 1] = 1
    mix_groups(images, targets, mix, size, draws())
    assert targets[:size, 0] == pytest.approx(1) and not targets[:size, 1].any()
    assert targets[size:, 1] == pytest.approx(1) and not targets[size:, 0].any()
    first, second = images[1, 0, 0, 0] / 3, (images[size + 1, 0, 0, 0] - 1) / 2
    assert first == pytest.approx(draw_mix(mix, (16, 16), draws()(0))[0], abs=1e-6)
    assert second == pytest.approx(draw_mix(mix, (16, 16), draws()(1))[0], abs=1e-6)
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("mix", [Mix(mixup=0.8), Mix(cutmix=1.0), BOTH])
def test_a_group_does_not_depend_on_what_else_is_in_the_batch(mix):
    images, targets = batch(12)
    mix_groups(images, targets, mix, 4, draws())
    for k in range(3):
        rows = slice(4 * k, 4 * k + 4)
        alone, alone_targets = (array[rows].copy() for array in batch(12))
        mix_groups(alone, alone_targets, mix, 4, lambda _, k=k: draws()(k))
        np.testing.assert_array_equal(alone, images[rows])
        np.testing.assert_array_equal(alone_targets, targets[rows])


def test_the_partner_is_the_group_reversed():
    images, targets = batch(6)
    mix_groups(images, targets, Mix(mixup=0.8), 6, draws())
    lam = draw_mix(Mix(mixup=0.8), (16, 16), draws()(0))[0]
    before, targets_before = (array.astype(np.float64) for array in batch(6))
    np.testing.assert_allclose(images, lam * before + (1 - lam) * before[::-1], atol=1e-6)
    np.testing.assert_allclose(targets, lam * targets_before + (1 - lam) * targets_before[::-1], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_soft_targets_are_distributions(smoothing, classes):
    out = np.full((5, classes), np.nan, np.float32)
    labels = np.array([0, 1, 1, classes - 1, 0])
    soft_targets(labels, classes, smoothing, out)
    np.testing.assert_allclose(out.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(out.argmax(1), labels)
    assert out[0, 0] == pytest.approx(1 - smoothing + smoothing / classes)
    assert out[0, 1] == pytest.approx(smoothing / classes)


def test_mixed_targets_are_distributions():
    images, targets = batch(64)
    mix_groups(images, targets, BOTH, 8, draws())
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
    assert (targets > 0).all()


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_mixing_in_place_is_the_formula_bit_for_bit(size):
    images, targets = batch(size)
    expected = images * np.float32(0.3) + images[::-1] * np.float32(1 - 0.3)
    apply_mix(images, targets, 0.3, None)
    np.testing.assert_array_equal(images, expected)
