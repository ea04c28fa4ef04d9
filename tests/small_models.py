"""Small models by rule against the numbers of tests/data/fusions.json."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from reference import reference
from running import TINY

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.crossvit_config import VARIANTS
from mindcv_crossvit.models.shapes import parameter_shapes

CASES = reference("fusions.json")["cases"]


def built(config: dict, ops: str, **more):
    model = create_model("crossvit_9", 10, ops=ops, **config, **more)
    rules.fill(model)
    return model


def summary(name: str, gradient) -> list[float]:
    values = gradient.asnumpy().astype(np.float64)
    return [np.sqrt((values**2).sum()), (values * rules.u(name, values.shape)).sum()]


def assert_is_pytorchs(case: str, ops_name: str, training: bool = True) -> None:
    """Loss, logits of both heads and their mean, and every gradient; and that the shapes were known before."""
    from mindspore import Tensor, ops

    expected = CASES[case]
    config = expected["config"]
    model = built(config, ops_name)
    shapes = parameter_shapes(VARIANTS["crossvit_9"].with_overrides(config), 10)
    assert {p.name: tuple(p.shape) for p in model.get_parameters()} == shapes
    model.set_train(training)
    size = config["img_size"][0]
    images = Tensor(rules.picture((3, 3, size, size)))
    soft = np.exp(2 * rules.u("target", (3, 10)))
    targets = Tensor((soft / soft.sum(1, keepdims=True)).astype(np.float32))
    parameters = list(model.trainable_params())

    def loss_of(x, t):
        tokens0, tokens1 = model.encode(x)
        small, large = model.branch_logits(tokens0, 0), model.branch_logits(tokens1, 1)
        logits = model.classify(tokens0, tokens1)
        return -(t * ops.log_softmax(logits, -1)).sum() / 3, small, large, logits

    gradient_of = ops.value_and_grad(loss_of, None, parameters, has_aux=True)
    (loss, small, large, logits), gradients = gradient_of(images, targets)
    np.testing.assert_allclose(float(loss.asnumpy()), expected["loss"], rtol=0, atol=3e-6)
    found = [small.asnumpy()[0, :4], large.asnumpy()[0, :4], logits.asnumpy()[1, :4]]
    wanted = [expected[part] for part in ("small", "large", "logits")]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    assert {p.name for p in parameters} == set(expected["gradients"])
    for parameter, values in zip(parameters, gradients, strict=True):
        wanted = expected["gradients"][parameter.name]
        found = summary(parameter.name, values)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5 * max(wanted[0], 5e-3), err_msg=parameter.name)


def trained(folder: Path, changes: list[str], monkeypatch) -> Path:
    """The folder of a run of two updates of tests/tiny.yaml, changed, through train.py in this process."""
    import train

    short = ["schedule.epochs=1", "schedule.warmup_epochs=0", "batch.global_batch=128", 'data.classes=["0","1"]']
    words = [word for change in (*short, "data.workers=0", "run.ops=standard", *changes) for word in ("--set", change)]
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(TINY), "--output", str(folder), *words])
    assert train.main() == 0
    return folder
