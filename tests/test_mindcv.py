"""MindCV beside us: its registry has our models, a recipe may name its models."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_a_model_of_mindcvs_zoo_takes_the_same_step():
    from test_step import step_of

    from mindcv_crossvit.training.step import Micro

    step, _ = step_of(create_model("mindcv/squeezenet1_0", 4))
    micro = Micro(rules.picture((2, 3, 64, 64)), np.eye(4, dtype=np.float32)[:2], np.zeros((0, 2)))
    before = [p.asnumpy().copy() for p in step.optimizer.parameters]
    assert np.isfinite(step.apply(micro, step.optimizer.scalars(1e-3, 1)).loss)
    moves = [np.abs(p.asnumpy() - b).max() for p, b in zip(step.optimizer.parameters, before, strict=True)]
    assert np.mean(np.array(moves) > 9e-4) > 0.9 and max(moves) < 1.2e-3  # AdamW's first update is lr, or decay alone


def test_fresh_weights_of_mindcvs_models_follow_the_seed():
    values = []
    for seed in (1, 1, 2):
        model = create_model("mindcv/squeezenet1_0", 4, seed=seed)
        values.append(np.concatenate([p.asnumpy().reshape(-1) for p in model.trainable_params()]))
    np.testing.assert_array_equal(values[0], values[1])
    assert np.abs(values[0] - values[2]).max() > 1e-3


def test_mindcv_builds_our_models_under_names_that_do_not_clash():
    import mindcv

    import mindcv_crossvit  # noqa: F401  (the import registers the models)

    theirs, ours = mindcv.create_model("crossvit_9"), mindcv.create_model("crossvit_9_240", num_classes=10)
    assert type(ours).__module__.startswith("mindcv_crossvit") and type(theirs).__module__.startswith("mindcv.")
    assert ours.num_classes == 10


@pytest.mark.parametrize("order", ["mindcv, mindcv_crossvit", "mindcv_crossvit, mindcv"])
def test_the_registry_has_our_models_whichever_is_imported_first(order):
    code = f"import {order}; names = mindcv.list_models('crossvit_*'); print(*names)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    names = set(done.stdout.split())
    assert {"crossvit_9", "crossvit_15", "crossvit_18"} <= names, done.stderr
    assert {"crossvit_15_240", "crossvit_15_dagger_408", "crossvit_tiny_240"} <= names and len(names) == 14


def test_an_unknown_model_of_mindcv_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean mindcv/resnet50"):
        create_model("mindcv/resnet5o")
