"""Optimizer, schedule, step: against PyTorch's AdamW and against the same update done another way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules

DATA = Path(__file__).parent / "data"
OFFICIAL = json.loads((DATA / "schedule.json").read_text())["lrs"]
pytestmark = pytest.mark.usefixtures("graph_mode")


def compiled(optimizer):
    """The optimizer as a function of two gradients; a tuple handed in from outside would be compiled anew each time."""
    from mindspore import nn

    class Apply(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.optimizer = optimizer

        def construct(self, gradient0, gradient1, scalars):
            return self.optimizer((gradient0, gradient1), scalars)

    return Apply()


def test_adamw_is_pytorchs():
    from mindspore import Parameter, Tensor

    from mindcv_crossvit.training.groups import Group
    from mindcv_crossvit.training.optimizer import AdamW

    reference = json.loads((DATA / "adamw.json").read_text())
    shapes = [(4, 5), (7,)]
    parameters = [Parameter(Tensor(rules.u(f"p{i}", s).astype(np.float32)), name=f"p{i}") for i, s in enumerate(shapes)]
    groups = [Group(True, 1.0, tuple(parameters[:1])), Group(False, 1.0, tuple(parameters[1:]))]
    optimizer = AdamW(groups, weight_decay=0.05)
    apply = compiled(optimizer)
    for k in range(50):
        gradients = (
            Tensor((rules.u(f"g{k}.0", (4, 5)) * 10.0 ** -(k % 4)).astype(np.float32)),
            Tensor(rules.u(f"g{k}.1", (7,)).astype(np.float32)),
        )
        apply(*gradients, Tensor(optimizer.scalars(reference["lrs"][k], k + 1)))
        for name, expected in reference["after"].get(str(k + 1), {}).items():
            value = parameters[int(name[1])].asnumpy().reshape(-1)
            np.testing.assert_allclose(value, np.ravel(expected), rtol=0, atol=2e-6)


def test_frozen_parameters_are_not_trained_and_unknown_patterns_are_refused():
    from mindcv_crossvit.errors import UserError
    from mindcv_crossvit.training.groups import freeze

    model = create_model("crossvit_9", 3, img_size=(12, 16), embed_dim=(8, 16), depth=[[1, 1, 0]], num_heads=(2, 2))
    parameters = list(model.trainable_params())
    freeze(parameters, ["patch_embed.*", "blocks.0.blocks.1.*"])
    frozen = {p.name for p in parameters} - {p.name for p in model.trainable_params()}
    assert frozen == {n for n in (p.name for p in parameters) if n.startswith(("patch_embed.", "blocks.0.blocks.1."))}
    with pytest.raises(
        UserError, match=r"optimizer.freeze: 'pach_embed.\*' matches no parameter; did you mean patch_embed\?"
    ):
        freeze(parameters, ["pach_embed.*", "head.*"])
    with pytest.raises(UserError, match="nothing to train"):
        freeze(parameters, ["*"])


@pytest.mark.parametrize("rule, counts", [("official", (92, 176)), ("timm", (88, 180))])
def test_decay_groups_have_the_known_sizes(rule, counts):
    from mindcv_crossvit.training.groups import decayed

    decays = decayed(create_model("crossvit_9").trainable_params(), rule)
    assert (sum(decays), len(decays) - sum(decays)) == counts


def test_the_schedule_warms_up_and_follows_one_cosine():
    from mindcv_crossvit.plan import Plan
    from mindcv_crossvit.recipe import Schedule
    from mindcv_crossvit.training.schedule import lr_at

    plan = Plan(1, 10, 10, 1, 10, 10, 0.004, 100, 10, 5, 10, 3000, "", ())
    schedule = Schedule(epochs=300, warmup_epochs=30)
    rates = np.array([lr_at(schedule, plan, k) for k in range(3000)])
    assert rates[0] == 1e-6
    np.testing.assert_allclose(np.diff(rates[:300]), (0.004 - 1e-6) / 300)
    np.testing.assert_allclose(rates[1500], (0.004 + 1e-5) / 2)
    assert rates[300] == pytest.approx(1e-5 + (0.004 - 1e-5) * (1 + math.cos(math.pi * 0.1)) / 2)
    assert np.all(np.diff(rates[300:]) < 0) and rates[-1] == pytest.approx(1e-5, rel=1e-3)


def test_the_official_schedule_is_timms_in_every_epoch():
    np.testing.assert_allclose(official_rates(), OFFICIAL, rtol=1e-9)
    assert max(OFFICIAL) == pytest.approx(3.90e-3, abs=5e-6)


def official_rates() -> list[float]:
    from mindcv_crossvit.plan import Plan
    from mindcv_crossvit.recipe import Schedule
    from mindcv_crossvit.training.schedule import lr_at

    plan = Plan(1, 10, 10, 1, 10, 10, 0.004, 100, 10, 5, 10, 3000, "", ())
    schedule = Schedule(epochs=300, warmup_epochs=30, stepping="epoch")
    rates = np.array([lr_at(schedule, plan, k) for k in range(3000)]).reshape(300, 10)
    assert np.all(rates == rates[:, :1])
    return list(rates[:, 0])


def test_sgd_is_pytorchs():
    from mindspore import Parameter, Tensor

    from mindcv_crossvit.training.groups import Group
    from mindcv_crossvit.training.optimizer import SGD

    reference = json.loads((DATA / "sgd.json").read_text())
    shapes = [(4, 5), (7,)]
    parameters = [Parameter(Tensor(rules.u(f"p{i}", s).astype(np.float32)), name=f"p{i}") for i, s in enumerate(shapes)]
    groups = [Group(True, 1.0, tuple(parameters[:1])), Group(False, 1.0, tuple(parameters[1:]))]
    optimizer = SGD(groups, momentum=0.9, weight_decay=1e-4)
    apply = compiled(optimizer)
    for k in range(50):
        gradients = [
            Tensor((rules.u(f"g{k}.{i}", s) * (10.0 ** -(k % 4) if i == 0 else 1)).astype(np.float32))
            for i, s in enumerate(shapes)
        ]
        apply(*gradients, Tensor(optimizer.scalars(reference["lrs"][k], k + 1)))
        for name, expected in reference["after"].get(str(k + 1), {}).items():
            value = parameters[int(name[1])].asnumpy().reshape(-1)
            np.testing.assert_allclose(value, np.ravel(expected), rtol=0, atol=2e-6)


def test_layer_decay_slows_the_early_layers():
    from mindcv_crossvit.training.groups import make_groups

    groups = make_groups(list(create_model("crossvit_9", 10).trainable_params()), "official", 0.5, encoders=3)
    scales = {p.name: g.lr_scale for g in groups for p in g.parameters}
    assert scales["head.0.weight"] == scales["norm.1.bias"] == 1
    assert [scales[f"blocks.{k}.projs.0.0.weight"] for k in (0, 1, 2)] == [0.125, 0.25, 0.5]
    assert scales["patch_embed.0.proj.weight"] == scales["pos_embed.1"] == scales["cls_token.0"] == 0.0625
    assert sum(len(g.parameters) for g in groups) == 268


def test_the_loss_scale_halves_and_grows():
    from mindcv_crossvit.training.loss_scale import GROWTH_AFTER, LossScale

    scale = LossScale.for_precision("O2")
    assert scale.scale == 65536
    scale.after(False)
    assert scale.scale == 32768
    for _ in range(GROWTH_AFTER):
        scale.after(True)
    assert scale.scale == 65536 and scale.good == 0
    fixed = LossScale.for_precision("O0")
    fixed.after(False)
    assert fixed.scale == 1 and not fixed.exhausted
