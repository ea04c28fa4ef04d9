"""Optimizer, schedule, step: against PyTorch's AdamW and against the same update done another way."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_models import TINY

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules

DATA = Path(__file__).parent / "data"
pytestmark = pytest.mark.usefixtures("graph_mode")


def test_adamw_is_pytorchs():
    from mindspore import Parameter, Tensor, nn

    from mindcv_crossvit.training.optimizer import AdamW

    class Apply(nn.Cell):  # a tuple handed in from outside would be compiled anew each time
        def __init__(self, optimizer):
            super().__init__(auto_prefix=False)
            self.optimizer = optimizer

        def construct(self, gradient0, gradient1, scalars):
            return self.optimizer((gradient0, gradient1), scalars)

    reference = json.loads((DATA / "adamw.json").read_text())
    shapes = [(4, 5), (7,)]
    parameters = [Parameter(Tensor(rules.u(f"p{i}", s).astype(np.float32)), name=f"p{i}") for i, s in enumerate(shapes)]
    optimizer = AdamW(parameters, [True, False], weight_decay=0.05)
    apply = Apply(optimizer)
    for k in range(50):
        gradients = (
            Tensor((rules.u(f"g{k}.0", (4, 5)) * 10.0 ** -(k % 4)).astype(np.float32)),
            Tensor(rules.u(f"g{k}.1", (7,)).astype(np.float32)),
        )
        apply(*gradients, Tensor(optimizer.scalars(reference["lrs"][k], k + 1)))
        for name, expected in reference["after"].get(str(k + 1), {}).items():
            value = parameters[int(name[1])].asnumpy().reshape(-1)
            np.testing.assert_allclose(value, np.ravel(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rule, counts", [("official", (92, 176)), ("timm", (88, 180))])
def test_decay_groups_have_the_known_sizes(rule, counts):
    from mindcv_crossvit.training.optimizer import decayed

    decays = decayed(create_model("crossvit_9").trainable_params(), rule)
    assert (sum(decays), len(decays) - sum(decays)) == counts


def test_the_schedule_warms_up_and_follows_one_cosine():
    from mindcv_crossvit.plan import Plan
    from mindcv_crossvit.recipe import Schedule
    from mindcv_crossvit.training.schedule import lr_at

    plan = Plan(1, 10, 10, 1, 10, 0.004, 100, 10, 5, 10, 3000, ())
    schedule = Schedule(epochs=300, warmup_epochs=30)
    rates = np.array([lr_at(schedule, plan, k) for k in range(3000)])
    assert rates[0] == 1e-6
    np.testing.assert_allclose(np.diff(rates[:300]), (0.004 - 1e-6) / 300)
    np.testing.assert_allclose(rates[1500], (0.004 + 1e-5) / 2)
    assert rates[300] == pytest.approx(1e-5 + (0.004 - 1e-5) * (1 + math.cos(math.pi * 0.1)) / 2)
    assert np.all(np.diff(rates[300:]) < 0) and rates[-1] == pytest.approx(1e-5, rel=1e-3)


def small_step(accumulation: int, drop_path_rate: float = 0.0):
    from mindcv_crossvit.training.optimizer import AdamW, decayed
    from mindcv_crossvit.training.step import TrainStep

    model = create_model("crossvit_9", 5, drop_path_rate, **TINY)
    parameters = list(model.trainable_params())
    optimizer = AdamW(parameters, decayed(parameters, "official"), eps=1e-3)
    return model, TrainStep(model, optimizer, accumulation, world=1)


def test_accumulated_micro_batches_equal_the_large_batch():
    images, targets = rules.picture((8, 3, 16, 16)), np.eye(5, dtype=np.float32)[np.arange(8) % 5]
    none = np.zeros((0, 8), np.float32)
    whole_model, whole = small_step(1)
    parts_model, parts = small_step(4)
    for update in (1, 2):
        loss = whole.apply(images, targets, none, 1e-2, update)
        losses = [parts.add(images[k : k + 2], targets[k : k + 2], none[:, :2]) for k in (0, 2, 4)]
        losses.append(parts.apply(images[6:], targets[6:], none[:, :2], 1e-2, update))
        assert np.mean(losses) == pytest.approx(loss, abs=1e-6)
    for a, b in zip(whole_model.get_parameters(), parts_model.get_parameters(), strict=True):
        np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=0, atol=1e-6, err_msg=a.name)


def test_the_drop_path_scale_reaches_the_step():
    images, targets = rules.picture((8, 3, 16, 16)), np.eye(5, dtype=np.float32)[np.arange(8) % 5]
    losses = []
    for scale in (0.0, 2.0):
        model, step = small_step(1, drop_path_rate=0.5)
        losses.append(step.apply(images, targets, np.full((len(model.drop_rates), 8), scale, np.float32), 1e-3, 1))
    assert abs(losses[0] - losses[1]) > 1e-4


def test_a_model_of_mindcvs_zoo_takes_the_same_step():
    from mindcv_crossvit.training.optimizer import AdamW, decayed
    from mindcv_crossvit.training.step import TrainStep

    model = create_model("mindcv/squeezenet1_0", 4)
    parameters = list(model.trainable_params())
    step = TrainStep(model, AdamW(parameters, decayed(parameters, "official")), 1, 1)
    images, targets = rules.picture((2, 3, 64, 64)), np.eye(4, dtype=np.float32)[:2]
    losses = [step.apply(images, targets, np.zeros((0, 2), np.float32), 1e-3, k + 1) for k in range(3)]
    assert losses[-1] < losses[0]


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
