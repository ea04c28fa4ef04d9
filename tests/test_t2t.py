"""Token-to-token embeddings against the official logits and a functional PyTorch program."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_models import assert_is_pytorchs

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.catalog import macs, parameter_shapes
from mindcv_crossvit.models.crossvit_config import VARIANTS

COUNTED = {  # the official code's: parameters, of them trained, multiply-accumulates, tensors
    ("crossvit_9", "t2t"): (8_853_532, 8_853_532, 5_273_765_376, 312),
    ("crossvit_15", "t2t"): (27_813_340, 27_813_340, 9_222_410_496, 384),
    ("crossvit_18", "t2t"): (43_548_604, 43_548_604, 12_462_432_000, 420),
    ("crossvit_9", "performer"): (8_862_492, 8_854_300, 2_322_048_000, 320),
    ("crossvit_15", "performer"): (27_822_300, 27_814_108, 6_270_693_120, 392),
    ("crossvit_18", "performer"): (43_557_564, 43_549_372, 9_510_714_624, 428),
}
OFFICIAL = {  # of crossvit_18, with the weights by rule: logits[0, :4], logits[1, 0], sum, sum of absolute values
    "t2t": ([-0.38865, -0.18257, 1.08568, 0.39533, -0.55837], [-28.3629, 1120.5411]),
    "performer": ([0.23899, -0.19788, 0.64616, 0.30927, 0.16703], [-36.8050, 1115.0332]),
}


@pytest.mark.parametrize("name, kind", COUNTED)
def test_parameters_and_macs_to_the_unit(name, kind):
    config = VARIANTS[name].with_overrides({"hybrid_backbone": kind})
    shapes = parameter_shapes(config)
    total = sum(map(math.prod, shapes.values()))
    frozen = sum(math.prod(shape) for key, shape in shapes.items() if key.endswith(".w"))
    assert (total, total - frozen, macs(config), len(shapes)) == COUNTED[name, kind]


@pytest.mark.slow
@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("kind", OFFICIAL)
def test_logits_are_the_official_ones(kind):
    from mindspore import Tensor

    model = create_model("crossvit_18", hybrid_backbone=kind)
    model.set_train(False)
    rules.fill(model)
    logits = model(Tensor(rules.picture((2, 3, 240, 240)))).asnumpy()
    values, sums = OFFICIAL[kind]
    np.testing.assert_allclose([*logits[0, :4], logits[1, 0]], values, rtol=0, atol=5e-5)
    np.testing.assert_allclose([logits.sum(), np.abs(logits).sum()], sums, rtol=0, atol=5e-3)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("case, ops", [("t2t", "composed"), ("performer", "standard")])
def test_logits_and_gradients_are_pytorchs(case, ops):
    assert_is_pytorchs(case, ops, training=False)  # the performer's dropout is on in training


@pytest.mark.slow
@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("case, ops", [("t2t", "standard"), ("performer", "composed")])
def test_the_other_implementations_too(case, ops):
    assert_is_pytorchs(case, ops, training=False)
