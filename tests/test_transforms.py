"""Pictures to arrays: against torchvision's checksums, the statistics of timm's draws, and Pillow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reference import assert_same_counts, assert_same_distribution, crc, photo, reference
from scipy.stats import chisquare

from mindcv_crossvit.data.draws import Purpose, stream
from mindcv_crossvit.data.transforms import (
    EvalTransform,
    Normalise,
    TrainTransform,
    centre_crop,
    padded_crop,
    random_erase,
    resize_shorter,
    resized_crop_box,
)
from mindcv_crossvit.models.golden import u
from mindcv_crossvit.recipe import IMAGENET_MEAN, IMAGENET_STD, Affine, Augment

CROP = reference("crops.json")["crop"]
ERASING = reference("crops.json")["erasing"]
EVAL = reference("eval_pixels.json")["cases"]
IMAGENET = Normalise(IMAGENET_MEAN, IMAGENET_STD)
PIXELS = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
"""Gives the pixel values themselves, 0 to 255."""
PLAIN = Augment(crop="none", flip=0.0)
EVERYTHING = Augment(
    crop="resized",
    rand_augment="rand-m9-mstd0.5-inc1",
    erase=0.5,
    affine=Affine(degrees=10, scale=(0.9, 1.1), shift=0.1),
)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


class QuietNoise(np.random.Generator):
    """Draws as any other, but its noise is one: only the box of an erasing matters."""

    asked: tuple[int, ...] = ()

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:  # type: ignore[override]
        self.asked = size
        return np.ones((1, 1, 1), dtype)


class Extreme:
    """A generator that always draws one of the two ends."""

    def __init__(self, upper: bool):
        self.upper = upper

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        value = high if self.upper else low
        return value if size is None else np.full(size, value)


def picture(size: int = 16) -> Image.Image:
    """A picture with different pixels everywhere."""
    return Image.fromarray(np.rint(127.5 * (u("picture", (size, size, 3)) + 1)).astype(np.uint8))


def smooth_picture(size: int = 32) -> Image.Image:
    return picture(6).resize((size, size), Image.Resampling.BICUBIC)


def channels_last(array: np.ndarray) -> np.ndarray:
    return np.rint(array).transpose(1, 2, 0)


def moved(image: Image.Image, affine: Affine, upper: bool = True, fill: tuple[int, int, int] = (1, 2, 3)) -> np.ndarray:
    """The pixels [H, W, 3] after the strongest affine transform of a recipe, to one side or the other."""
    transform = TrainTransform(image.size[0], replace(PLAIN, affine=affine, fill=fill), PIXELS)
    return channels_last(transform(image, lambda _: Extreme(upper)))  # type: ignore[arg-type, return-value]


def draw_for(index: int, epoch: int = 0, seed: int = 1) -> Callable[[Purpose], np.random.Generator]:
    return partial(lambda purpose: stream(seed, purpose, epoch, index))


def test_crops_are_distributed_as_timms():
    width, height = CROP["image"]["width"], CROP["image"]["height"]
    boxes = [resized_crop_box((width, height), SCALE, RATIO, draw_for(k)(Purpose.CROP)) for k in range(CROP["draws"])]
    left, top, right, bottom = np.array(boxes).T
    w, h = right - left, bottom - top
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= width and bottom.max() <= height
    assert_same_distribution(w * h / (width * height), CROP["area_fraction"], CROP["draws"])
    assert_same_distribution(np.log(w / h), CROP["log_aspect"], CROP["draws"])
    inner = w < width
    assert_same_distribution(left[inner] / (width - w[inner]), CROP["x_fraction"], CROP["draws"])
    inner = h < height
    assert_same_distribution(top[inner] / (height - h[inner]), CROP["y_fraction"], CROP["draws"])


@pytest.mark.parametrize(
    "size, box",
    [
        ((1000, 9), (494, 0, 506, 9)),  # 9 * 4/3 = 12 wide
        ((9, 1000), (0, 494, 9, 506)),  # 9 / (3/4) = 12 high
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_a_crop_that_never_fits_is_the_middle_as_torchvisions(size, box):
    assert resized_crop_box(size, (0.9, 1.0), RATIO, stream(1, Purpose.CROP)) == box


def test_erased_boxes_are_distributed_as_timms():
    size, count = ERASING["image"]["height"], ERASING["draws"]
    boxes, pixels = [], np.zeros((3, size, size), np.float32)
    for k in range(count):
        rng = QuietNoise(stream(1, Purpose.ERASE, 0, k).bit_generator)
        random_erase(pixels, 0.25, rng)
        if rng.asked:
            y, x = divmod(int(pixels[0].argmax()), size)
            h, w = rng.asked[1:]
            pixels[:, y : y + h, x : x + w] -= 1
            boxes.append((y, x, h, w))
            if len(boxes) % 100 == 1:
                assert rng.asked[0] == 3 and not pixels.any(), "not one box of that size in every channel"
    assert not pixels.any()
    top, left, h, w = np.array(boxes).T
    erased = ERASING["erased"]
    assert_same_counts({"yes": len(boxes), "no": count - len(boxes)}, {"yes": erased, "no": count - erased})
    assert_same_distribution(h * w / size**2, ERASING["area_fraction"], erased)
    assert_same_distribution(np.log(h / w), ERASING["log_aspect"], erased)
    assert_same_distribution(top, ERASING["top"], erased)
    assert_same_distribution(left, ERASING["left"], erased)
    assert_same_distribution(top / (size - h), ERASING["top_fraction"], erased)
    assert_same_distribution(left / (size - w), ERASING["left_fraction"], erased)


def test_erased_pixels_are_normal_noise_independent_in_every_pixel_and_channel():
    noise = []
    for k in range(40):
        pixels = np.full((3, 96, 96), np.nan, np.float32)
        random_erase(pixels, 1.0, stream(1, Purpose.ERASE, 0, k))
        noise.append(pixels[~np.isnan(pixels)])
        assert len(np.unique(noise[-1])) > 0.99 * len(noise[-1])
    values = np.concatenate(noise)
    assert abs(values.mean()) < 2.58 / math.sqrt(len(values))
    assert abs(values.std() - 1) < 2.58 / math.sqrt(2 * len(values))


def test_nothing_is_erased_at_probability_zero():
    pixels = np.zeros((3, 8, 8), np.float32)
    for k in range(100):
        random_erase(pixels, 0.0, stream(1, Purpose.ERASE, 0, k))
    assert not pixels.any()


@pytest.mark.parametrize("case", EVAL, ids=lambda c: f"{c['photo']}-{c['size']}-{c['resize']}")
def test_evaluation_pixels_equal_torchvisions(case):
    image = photo(case["photo"])
    if case["transposed"]:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    image = image.crop(case["box"])
    resized = resize_shorter(image, case["resize"])
    assert (resized.size, crc(resized)) == (tuple(case["resized_size"]), case["resized_crc32"])
    cropped = centre_crop(resized, case["crop"])
    assert crc(cropped) == case["crc32"]
    np.testing.assert_array_equal(np.asarray(cropped)[0, :8], case["first_pixels"])
    whole = EvalTransform(case["crop"], 0.875 if case["crop"] == 240 else 1.0, PIXELS)(image)
    assert (whole.shape, whole.dtype) == ((3, case["crop"], case["crop"]), np.float32)
    assert crc(channels_last(whole)) == case["crc32"]


def test_the_shorter_side_before_the_crop_is_rounded_down_as_timms():
    resized = picture(150).resize((109, 109), Image.Resampling.BICUBIC)  # 96 / 0.875 = 109.7
    result = channels_last(EvalTransform(96, 0.875, PIXELS)(picture(150)))
    np.testing.assert_array_equal(result, np.asarray(resized)[6:102, 6:102])


@pytest.mark.parametrize("margin, before", [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (7, 4)])
def test_half_a_margin_is_rounded_to_even_as_torchvisions(margin, before):
    for across in (True, False):
        size = (8 + margin, 8) if across else (8, 8 + margin)
        left, top = (before, 0) if across else (0, before)
        image = picture(16).crop((0, 0, *size))
        np.testing.assert_array_equal(np.asarray(centre_crop(image, 8)), np.asarray(image)[top : top + 8, left:][:, :8])


def test_a_picture_of_the_right_size_is_not_resampled():
    image = picture(20).crop((0, 0, 20, 16))
    assert resize_shorter(image, 16).tobytes() == image.tobytes()


@pytest.mark.parametrize("normalise", [IMAGENET, Normalise((0.5, 0.4, 0.3), (0.1, 1.0, 3.0))])
def test_normalise_equals_the_formula_in_float64(normalise):
    values = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(np.stack([values, values[::-1], np.roll(values, 7)], -1).reshape(16, 16, 3))
    expected = (np.asarray(image, np.float64) / 255 - normalise.mean) / normalise.std
    result = normalise(image)
    assert (result.dtype, result.shape) == (np.float32, (3, 16, 16))
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_training_is_a_function_of_the_stream():
    transform, image = TrainTransform(24, EVERYTHING, IMAGENET), picture(40)
    first = [transform(image, draw_for(k)) for k in range(10)]
    again = [transform(image, draw_for(k)) for k in range(10)]
    for a, b in zip(first, again, strict=True):
        assert (a.shape, a.dtype) == ((3, 24, 24), np.float32)
        np.testing.assert_array_equal(a, b)
    assert len({a.tobytes() for a in first}) == 10
    others = [draw_for(0, epoch=1), draw_for(0, seed=2)]
    assert all(transform(image, draw).tobytes() != first[0].tobytes() for draw in others)


def test_the_picture_itself_is_not_changed():
    image = picture(40)
    TrainTransform(24, EVERYTHING, IMAGENET)(image, draw_for(0))
    assert image.tobytes() == picture(40).tobytes()


@pytest.mark.parametrize("erase", [0.0, 1.0])
def test_each_step_has_a_stream_of_its_own(erase):
    """So that turning one step off leaves the others' draws as they are."""
    asked: list[Purpose] = []

    def draw(purpose: Purpose) -> np.random.Generator:
        asked.append(purpose)
        return stream(1, purpose)

    TrainTransform(24, replace(EVERYTHING, erase=erase), IMAGENET)(picture(40), draw)
    steps = [Purpose.CROP, Purpose.FLIP, Purpose.AFFINE, Purpose.RAND_AUGMENT]
    assert asked == (steps if erase == 0 else [*steps, Purpose.ERASE])


def test_erasing_changes_one_box_and_nothing_else():
    erased = TrainTransform(24, replace(EVERYTHING, erase=1.0), IMAGENET)
    whole = TrainTransform(24, replace(EVERYTHING, erase=0.0), IMAGENET)
    for k in range(20):
        a, b = erased(picture(40), draw_for(k)), whole(picture(40), draw_for(k))
        rows, columns = (np.flatnonzero((a != b).any(axis)) for axis in ((0, 2), (0, 1)))
        assert 0 < len(rows) * len(columns) < 0.45 * 24 * 24
        assert (a != b)[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.99


def test_without_augmentation_training_pixels_are_the_pictures():
    transform = TrainTransform(16, PLAIN, PIXELS)
    np.testing.assert_array_equal(channels_last(transform(picture(16), draw_for(0))), np.asarray(picture(16)))
    resized = picture(40).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(channels_last(transform(picture(40), draw_for(0))), np.asarray(resized))


def test_a_resized_crop_is_pillows_bicubic_of_its_box():
    transform = TrainTransform(16, Augment(crop="resized", flip=0.0), PIXELS)
    for k in range(10):
        box = resized_crop_box((40, 40), SCALE, RATIO, draw_for(k)(Purpose.CROP))
        expected = picture(40).crop(box).resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(channels_last(transform(picture(40), draw_for(k))), np.asarray(expected))


def test_a_padded_crop_is_a_shift_of_at_most_the_padding_with_black_borders():
    image = picture(12)
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)))
    windows = {padded[y : y + 12, x : x + 12].tobytes(): (x, y) for y in range(9) for x in range(9)}
    found = [windows[padded_crop(image, 4, draw_for(k)(Purpose.CROP)).tobytes()] for k in range(30_000)]
    counts = Counter(found)
    assert set(counts) == set(windows.values())
    assert chisquare(list(counts.values())).pvalue > 0.01
    again = TrainTransform(12, replace(PLAIN, crop="padded"), PIXELS)(image, draw_for(0))
    assert windows[channels_last(again).astype(np.uint8).tobytes()] == found[0]


@pytest.mark.parametrize("size, crop", [(16, "padded"), (32, "padded"), (33, "resized"), (240, "resized")])
def test_input_of_up_to_32_pixels_is_padded_and_shifted_unless_said_otherwise(size, crop):
    """As the official loader, whose condition is `input_size > 32`."""

    def pixels(**how: str) -> bytes:
        return TrainTransform(size, Augment(**how), PIXELS)(picture(40), draw_for(5)).tobytes()  # type: ignore[arg-type]

    assert pixels() == pixels(crop="auto") == pixels(crop=crop)
    assert len({pixels(crop=name) for name in ("resized", "padded", "none")}) == 3


def test_a_flip_is_left_to_right_and_as_likely_as_said():
    image, plain = picture(16), np.asarray(picture(16))
    always = TrainTransform(16, replace(PLAIN, flip=1.0), PIXELS)
    for k in range(10):
        np.testing.assert_array_equal(channels_last(always(image, draw_for(k))), plain[:, ::-1])
    often = TrainTransform(16, replace(PLAIN, flip=0.3), PIXELS)
    flipped = sum(not (channels_last(often(image, draw_for(k))) == plain).all() for k in range(2000))
    assert abs(flipped / 2000 - 0.3) < 2.58 * math.sqrt(0.3 * 0.7 / 2000)


def test_an_affine_transform_that_does_nothing_keeps_the_picture():
    for upper in (True, False):
        assert np.abs(moved(picture(17), Affine(), upper) - np.asarray(picture(17))).max() <= 1


@pytest.mark.parametrize("upper, dx", [(True, 4), (False, -4)])
def test_a_shift_to_the_positive_is_right_and_down(upper, dx):
    image = picture(16)
    expected = np.full((16, 16, 3), (1, 2, 3))
    kept, taken = (slice(4, 16), slice(0, 12)) if upper else (slice(0, 12), slice(4, 16))
    expected[kept, kept] = np.asarray(image)[taken, taken]
    result = moved(image, Affine(shift=0.25), upper)
    inner = slice(abs(dx) + 2, 14) if upper else slice(2, 14 - abs(dx))  # the filter sees the fill at the edge
    np.testing.assert_array_equal(result[inner, inner], expected[inner, inner])
    np.testing.assert_array_equal(result[0 if upper else -1, 0 if upper else -1], (1, 2, 3))


@pytest.mark.parametrize("degrees, upper", [(90, True), (90, False), (180, True), (30, True), (30, False)])
def test_a_rotation_is_pillows_clockwise_for_positive_angles(degrees, upper):
    image = smooth_picture()
    angle = -degrees if upper else degrees
    expected = np.asarray(image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(1, 2, 3)), np.float64)
    difference = np.abs(moved(image, Affine(degrees=degrees), upper) - expected)
    assert difference.max() <= 1 if degrees % 90 == 0 else np.quantile(difference, 0.99) <= 1


@pytest.mark.parametrize("zoom", [2.0, 0.5])
def test_a_zoom_above_one_enlarges(zoom):
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (12, 12, 20, 20))
    bright = moved(image, Affine(scale=(zoom, zoom)), fill=(0, 0, 0))[..., 0] > 127
    side = int(8 * zoom)
    rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    for found in (rows, columns):
        assert (found[0], found[-1]) == (16 - side // 2, 15 + side // 2)


def test_rotation_comes_before_the_shift_as_pillows():
    image, affine = smooth_picture(), Affine(degrees=90, shift=0.125)
    expected = image.rotate(-90, Image.Resampling.BICUBIC, translate=(4, 4), fillcolor=(1, 2, 3))
    inner = slice(7, 31)  # the filter sees the fill at the edge
    difference = moved(image, affine)[inner, inner] - np.asarray(expected, np.float64)[inner, inner]
    assert np.abs(difference).max() <= 1
