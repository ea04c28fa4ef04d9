"""What is written straight into a batch is what the plain formula gives, bit for bit, and nothing of what lay there."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mindcv_crossvit.data.draws import Purpose, stream
from mindcv_crossvit.data.transforms import EvalTransform, Normalise, TrainTransform
from mindcv_crossvit.recipe import IMAGENET_MEAN, IMAGENET_STD, Augment

NORMALISE = Normalise(IMAGENET_MEAN, IMAGENET_STD)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8))


def test_normalising_into_place_is_the_formula():
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = np.asarray(PICTURE, np.float32).transpose(2, 0, 1)
    expected = pixels * (np.float32(1) / (np.float32(255) * std)) - mean / std
    place = np.full((3, 50, 61), np.nan, np.float32)
    assert NORMALISE(PICTURE, place) is place
    np.testing.assert_array_equal(place, expected)
    np.testing.assert_array_equal(NORMALISE(PICTURE), expected)


def test_transforms_into_place_give_what_they_give():
    train = TrainTransform(24, Augment(rand_augment="rand-m9-mstd0.5-inc1", erase=1.0), NORMALISE)
    for index in range(20):

        def draw(purpose: Purpose, index: int = index) -> np.random.Generator:
            return stream(0, purpose, 0, index)

        place = np.full((3, 24, 24), np.nan, np.float32)
        train(PICTURE, draw, place)
        np.testing.assert_array_equal(place, train(PICTURE, draw))
    evaluate = EvalTransform(24, 0.875, NORMALISE)
    place = np.full((3, 24, 24), np.nan, np.float32)
    evaluate(PICTURE, place)
    np.testing.assert_array_equal(place, evaluate(PICTURE))
