"""RandAugment against timm: the pixels of each operation, and the statistics of 30,000 draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from reference import assert_same_counts, assert_same_distribution, assert_same_shares, crc, reference, reference_arrays

from mindcv_crossvit.data import rand_augment as module
from mindcv_crossvit.data.draws import Purpose, stream
from mindcv_crossvit.data.rand_augment import INCREASING, PLAIN, Policy, apply, parse_policy, rand_augment

CASES = reference("rand_augment.json")
DRAWS = reference("rand_augment_draws.json")
FILL = tuple(CASES["fillcolor"])
OFFICIAL = "rand-m9-mstd0.5-inc1"


class Applied(NamedTuple):
    picture: int
    name: str
    level: float
    negate: bool


def source(name: str) -> Image.Image:
    pixels = reference_arrays("rand_augment.npz")["source"]
    if name == "dull":
        pixels = (pixels // np.array(CASES["dull_divisors"]) + CASES["dull_offset"]).astype(np.uint8)
    assert crc(pixels) == CASES[f"{name}_crc32"]
    return Image.fromarray(pixels)


def record(monkeypatch: pytest.MonkeyPatch, policy: Policy, pictures: int, seed: int = 1) -> list[Applied]:
    """What the policy applies to each picture, drawn from the streams a training run would use."""
    applied: list[Applied] = []
    current = 0

    def remember(name: str, image: Image.Image, level: float, negate: bool, fill: object) -> Image.Image:
        applied.append(Applied(current, name, level, negate))
        return image

    monkeypatch.setattr(module, "apply", remember)
    image = Image.new("RGB", (8, 8))
    for current in range(pictures):
        rand_augment(image, policy, stream(seed, Purpose.RAND_AUGMENT, 0, current), FILL)
    return applied


@pytest.mark.parametrize("operation", sorted({case["op"] for case in CASES["cases"]}))
def test_pixels_equal_timms(operation, pixels):
    arrays = reference_arrays("rand_augment.npz")
    cases = [case for case in CASES["cases"] if case["op"] == operation and case["resample"] != "BILINEAR"]
    for case in cases:
        image = source(case["source"])
        result = apply(operation, image, case["magnitude"] / 10, case["sign"] < 0, FILL)
        assert (result.mode, result.size) == (image.mode, image.size)
        if "array" in case:
            np.testing.assert_array_equal(np.asarray(result), arrays[case["array"]], str(case))
        assert crc(result) == case["crc32"], case


def test_the_reference_covers_every_increasing_operation():
    assert {case["op"] for case in CASES["cases"]} == set(INCREASING) == set(DRAWS["chosen"])


@pytest.mark.parametrize("level", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_plain_enhancements_are_pillows_from_a_tenth_to_almost_double(name, level):
    expected = getattr(ImageEnhance, name)(source("source")).enhance(0.1 + 1.8 * level)
    for negate in (False, True):
        assert crc(apply(name, source("source"), level, negate, FILL)) == crc(expected)


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_increasing_enhancements_keep_a_tenth_beyond_magnitude_ten(name):
    for negate, factor in ((True, 0.1), (False, 2.35)):
        expected = getattr(ImageEnhance, name)(source("source")).enhance(factor)
        assert crc(apply(f"{name}Increasing", source("source"), 1.5, negate, FILL)) == crc(expected)


@pytest.mark.parametrize("level, threshold", [(0.0, 0), (0.5, 128), (0.75, 192), (1.0, 256)])
def test_plain_solarize_is_pillows(level, threshold):
    expected = ImageOps.solarize(source("source"), threshold)
    assert crc(apply("Solarize", source("source"), level, False, FILL)) == crc(expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_posterize_is_pillows(bits):
    expected = crc(ImageOps.posterize(source("source"), bits))
    assert crc(apply("Posterize", source("source"), bits / 4, False, FILL)) == expected
    assert crc(apply("PosterizeIncreasing", source("source"), (4 - bits) / 4, False, FILL)) == expected


@pytest.mark.parametrize("name, level", [("PosterizeIncreasing", 1.0), ("Posterize", 0.0), ("Posterize", 0.2)])
def test_posterize_to_no_bits_is_black_whatever_pillow_thinks_of_it(name, level):
    assert apply(name, source("source"), level, False, FILL).getextrema() == ((0, 0),) * 3


def test_the_official_policy_is_parsed():
    policy = parse_policy(OFFICIAL)
    assert policy == Policy(magnitude=9, layers=2, prob=0.5, magnitude_std=0.5, magnitude_max=10, increasing=True)
    assert policy.operations() == INCREASING


@pytest.mark.parametrize(
    "text, expected",
    [
        ("rand", Policy()),
        ("rand-m9", Policy(magnitude=9)),
        ("rand-inc1-mstd0.5-m9", Policy(magnitude=9, magnitude_std=0.5, increasing=True)),
        ("rand-n3-p0.25", Policy(layers=3, prob=0.25)),
        ("rand-p1-inc0", Policy(prob=1)),
        ("rand-m0-p0", Policy(magnitude=0, prob=0)),
        ("rand-m15-mmax20", Policy(magnitude=15, magnitude_max=20)),
        ("rand-m7-mstd101", Policy(magnitude=7, magnitude_std=float("inf"))),
        ("rand-m7-mstdinf", Policy(magnitude=7, magnitude_std=float("inf"))),
    ],
)
def test_policies_are_parsed(text, expected):
    assert parse_policy(text) == expected
    assert parse_policy(text).operations() == (INCREASING if expected.increasing else PLAIN)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "must begin with 'rand'"),
        ("m9", "must begin with 'rand'"),
        ("augmix-m3", "must begin with 'rand'"),
        ("Rand-m9", "must begin with 'rand'"),
        ("rand-", "part '' is none of"),
        ("rand-m", "part 'm' is none of"),
        ("rand-m9-", "part '' is none of"),
        ("rand-x9", "part 'x9' is none of"),
        ("rand-m9,5", "part 'm9,5' is none of"),
        ("rand-mstd.5", "part 'mstd.5' is none of"),
        ("rand-m9 -inc1", "part 'm9 ' is none of"),
        ("rand-m-3", "part 'm' is none of"),
        ("rand-m9-m8", "'m' is given twice"),
        ("rand-m11", "m must be a whole number from 0 to 10, not 11"),
        ("rand-m8.5", "m must be a whole number from 0 to 10, not 8.5"),
        ("rand-minf", "m must be a whole number from 0 to 10, not inf"),
        ("rand-n0", "n must be a whole number from 1 to 15, not 0"),
        ("rand-p1.5", "p must be a number from 0 to 1, not 1.5"),
        ("rand-inc2", "inc must be a whole number from 0 to 1, not 2"),
        ("rand-mmax0", "mmax must be a whole number from 1 to 100, not 0"),
    ],
)
def test_a_malformed_policy_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError) as caught:
        parse_policy(text)
    assert reason in str(caught.value) and repr(text) in str(caught.value)


def test_what_is_applied_is_distributed_as_timms(monkeypatch):
    applied = record(monkeypatch, parse_policy(DRAWS["policy"]), DRAWS["images"])
    assert_same_counts(Counter(a.name for a in applied), DRAWS["applied"])

    per_picture = Counter(Counter(a.picture for a in applied).values())
    per_picture[0] = DRAWS["images"] - per_picture.total()
    assert_same_counts(per_picture, DRAWS["applied_per_image"])

    magnitudes = [10 * a.level for a in applied]
    count = sum(DRAWS["applied"].values())
    assert_same_distribution(magnitudes, DRAWS["magnitude_quantiles"], count)
    assert min(magnitudes) > 0 and max(magnitudes) == 10
    bound, theirs = sum(m == 10 for m in magnitudes), DRAWS["magnitude_at_bound"]
    assert_same_shares([([bound, len(applied) - bound], [theirs, count - theirs])])

    negated = Counter((a.name, a.negate) for a in applied)
    ours = {name: [negated[name, False], negated[name, True]] for name in DRAWS["signs"]}
    assert_same_shares([(ours[name], [sign["+"], sign["-"]]) for name, sign in DRAWS["signs"].items()])


def test_operations_are_chosen_as_often_and_with_repetition_as_timms(monkeypatch):
    pictures = DRAWS["images"]
    chosen = record(monkeypatch, replace(parse_policy(DRAWS["policy"]), prob=1.0), pictures)
    assert len(chosen) == 2 * pictures
    assert_same_counts(Counter(c.name for c in chosen), DRAWS["chosen"])
    twice = sum(a.name == b.name for a, b in zip(chosen[::2], chosen[1::2], strict=True))
    theirs = DRAWS["same_op_twice"]
    assert_same_shares([([twice, pictures - twice], [theirs, DRAWS["images"] - theirs])])


def test_an_infinite_deviation_draws_magnitudes_uniformly(monkeypatch):
    levels = [a.level for a in record(monkeypatch, parse_policy("rand-m8-mstdinf-p1"), 2000)]
    assert_same_distribution(levels, np.linspace(0, 0.8, 101).tolist(), 10**9)


def test_without_deviation_every_magnitude_is_the_given_one(monkeypatch):
    assert {a.level for a in record(monkeypatch, parse_policy("rand-m7-n3-p1"), 50)} == {0.7}


def test_layers_and_probability_are_obeyed(monkeypatch):
    assert len(record(monkeypatch, parse_policy("rand-n3-p1"), 50)) == 150
    monkeypatch.undo()
    assert record(monkeypatch, parse_policy("rand-n3-p0"), 50) == []
