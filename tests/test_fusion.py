"""The paper's fusions against figures of re-builds and a functional PyTorch program; see tests/data/fusions.json."""

from __future__ import annotations

import math

import pytest
from small_models import CASES, assert_is_pytorchs

from mindcv_crossvit.models.catalog import macs
from mindcv_crossvit.models.crossvit_config import FUSIONS, VARIANTS, CrossViTConfig
from mindcv_crossvit.models.shapes import parameter_shapes

SMALL = VARIANTS["crossvit_small"]
FUSION_CASES = [name for name in CASES if "hybrid_backbone" not in CASES[name]["config"]]
COUNTED = {
    "none": (23_738_960, 5_349_663_360),
    "all_attention": (26_854_544, 7_583_409_792),
    "class_token": (24_186_512, 5_350_105_728),
    "pairwise": (24_186_512, 5_527_052_928),
    "cross_attention": (26_856_272, 5_615_557_632),
}


def count(config: CrossViTConfig) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_parameters_and_macs_are_the_published_ones_to_the_unit(fusion):
    config = SMALL.with_overrides({"fusion": fusion})
    assert (count(config), macs(config)) == COUNTED[fusion]


def test_identities_between_equal_widths_give_the_papers_row_b():
    row_b = SMALL.with_overrides({"embed_dim": [384, 384]})
    shapes = parameter_shapes(row_b.with_overrides({"identity_projs": True}))
    positions = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("pos_embed"))
    assert sum(map(math.prod, shapes.values())) - positions == 31_403_600
    assert count(row_b) == 33_416_528 and macs(row_b) == pytest.approx(7.6988e9, rel=1e-5)
    assert macs(row_b) - macs(row_b.with_overrides({"identity_projs": True})) == 12 * 384 * 384


def test_without_class_tokens_two_tokens_and_their_positions_are_missing():
    assert count(SMALL) - count(SMALL.with_overrides({"cls_token": False})) == 2 * (192 + 384)


QUICK = {"composed": set(FUSION_CASES) - {"cross_attention"}, "standard": {"all_attention", "pairwise"}}


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize(
    "case, ops",
    [
        pytest.param(case, ops, marks=[] if case in quick else [pytest.mark.slow])
        for ops, quick in QUICK.items()
        for case in FUSION_CASES
    ],
)
def test_logits_and_gradients_are_pytorchs(case, ops):
    assert_is_pytorchs(case, ops)


@pytest.mark.parametrize("stacked, names", [(0, {""}), (1, {"0."}), (2, {"0.", "1."})])
def test_the_depth_triples_last_number_names_the_keys(stacked, names):
    config = SMALL.with_overrides({"depth": [[1, 1, stacked]]})
    keys = [key.removeprefix("blocks.0.fusion.0.") for key in parameter_shapes(config) if ".fusion.0." in key]
    assert {key[: key.index("attn.wq")] for key in keys if key.endswith("attn.wq.weight")} == names
    assert len(keys) == 10 * max(stacked, 1)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"fusion": "pairwize"}, "did you mean pairwise"),
        ({"fusion": "none", "depth": [[1, 1, 1]]}, "fusion none has none; give 0"),
        ({"fusion": "pairwise", "cls_token": False}, "cls_token false is defined for fusion cross_attention"),
        ({"identity_projs": True}, "branches of equal width"),
        ({"cls_token": 0}, "cls_token must be true or false"),
    ],
    ids=str,
)
def test_impossible_choices_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        SMALL.with_overrides(overrides)
