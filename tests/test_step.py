"""The update: accumulation, clipping, averages and half precision, each against the same done another way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_models import TINY

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules

DATA = Path(__file__).parent / "data"
pytestmark = pytest.mark.usefixtures("graph_mode")
IMAGES = rules.picture((8, 3, 16, 16))
TARGETS = np.eye(5, dtype=np.float32)[np.arange(8) % 5]
NONE = np.zeros((0, 8), np.float32)


def step_of(model, average: bool = False, layer_decay: float = 1.0, eps: float = 1e-8, **options):
    """(step, its moving average) for a model with AdamW."""
    from mindspore import ParameterTuple

    from mindcv_crossvit.training.groups import make_groups
    from mindcv_crossvit.training.optimizer import AdamW
    from mindcv_crossvit.training.state import new_average
    from mindcv_crossvit.training.step import Options, TrainStep

    optimizer = AdamW(make_groups(list(model.trainable_params()), "official", layer_decay, 1), eps=eps)
    ema = new_average(model, optimizer) if average else ParameterTuple([])
    return TrainStep(model, optimizer, Options(**options), ema), ema


def micro(rows: slice = slice(None), scale: np.ndarray = NONE):
    from mindcv_crossvit.training.step import Micro

    return Micro(IMAGES[rows], TARGETS[rows], scale[:, rows])


def weights(model) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in model.get_parameters()}


def test_accumulated_micro_batches_equal_the_large_batch():
    models = [create_model("crossvit_9", 5, **TINY) for _ in range(2)]
    whole, _ = step_of(models[0], eps=1e-3)
    parts, _ = step_of(models[1], eps=1e-3, accumulation=4)
    for update in (1, 2):
        scalars = whole.optimizer.scalars(1e-2, update)
        loss = whole.apply(micro(), scalars).loss
        losses = [parts.add(micro(slice(k, k + 2))) for k in (0, 2, 4)]
        losses.append(parts.apply(micro(slice(6, 8)), scalars).loss)
        assert np.mean(losses) == pytest.approx(loss, abs=1e-6)
    ours, theirs = weights(models[1]), weights(models[0])
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_the_drop_path_scale_reaches_the_step():
    model = create_model("crossvit_9", 5, 0.5, **{**TINY, "depth": ((1, 2, 0),)})
    step, _ = step_of(model)
    losses = []
    for scale in (0.0, 2.0):
        draws = np.full((len(model.drop_rates), 8), scale, np.float32)
        losses.append(step.apply(micro(scale=draws), step.optimizer.scalars(0.0, 1)).loss)
    assert abs(losses[0] - losses[1]) > 1e-4


def test_twenty_updates_follow_pytorchs_losses():
    from mindcv_crossvit.training.step import Micro

    reference = json.loads((DATA / "losses20.json").read_text())
    config = json.loads((DATA / "gradients.json").read_text())["cases"]["linear"]["config"]
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    model = create_model("crossvit_9", 10, img_size=(36, 32), **{n: config[n] for n in names})
    rules.fill(model)
    step, _ = step_of(model)
    losses = []
    for k in range(20):
        targets = np.full((4, 10), 0.01, np.float32)
        targets[np.arange(4), (k * 4 + np.arange(4)) * 7 % 10] += 0.9
        images = (1.5 * rules.u(f"input{k}", (4, 3, 36, 36))).astype(np.float32)
        losses.append(step.apply(Micro(images, targets, NONE[:, :4]), step.optimizer.scalars(1e-3, k + 1)).loss)
    np.testing.assert_allclose(losses, reference["losses"], rtol=0, atol=1e-5)


def test_clipping_bounds_the_norm_of_the_mean_gradient():
    """One update of SGD without momentum moves the parameters by lr times the clipped gradient."""
    from mindspore import ParameterTuple

    from mindcv_crossvit.training.groups import make_groups
    from mindcv_crossvit.training.optimizer import SGD
    from mindcv_crossvit.training.step import Options, TrainStep

    moves = {}
    for clip_norm in (None, 0.01, 1e6):
        model = create_model("crossvit_9", 5, **TINY)
        rules.fill(model)
        optimizer = SGD(make_groups(list(model.trainable_params()), "official"), momentum=0.0, weight_decay=0.0)
        step = TrainStep(model, optimizer, Options(clip_norm=clip_norm), ParameterTuple([]))
        before = weights(model)
        assert step.apply(micro(), optimizer.scalars(1.0, 1)).finite
        after = weights(model)
        moves[clip_norm] = np.concatenate([(after[n] - before[n]).reshape(-1) for n in before]).astype(np.float64)
    norm = np.linalg.norm(moves[None])
    assert norm > 0.05
    np.testing.assert_allclose(moves[0.01], moves[None] * 0.01 / norm, rtol=0, atol=1e-6)
    np.testing.assert_allclose(moves[1e6], moves[None], rtol=0, atol=1e-6)


def test_the_moving_average_is_the_recurrence_and_begins_small():
    from mindcv_crossvit.recipe import Ema
    from mindcv_crossvit.training.state import ema_keep

    model = create_model("crossvit_9", 5, **TINY)
    step, ema = step_of(model, average=True)
    expected = weights(model)["head.0.weight"]
    for update in range(3):
        keep = ema_keep(Ema(decay=0.999), update)
        assert keep == (1 + update) / (10 + update)
        step.apply(micro(), step.optimizer.scalars(1e-2, update + 1), ema_keep=keep)
        expected = keep * expected + (1 - keep) * weights(model)["head.0.weight"]
    found = {p.name: p.asnumpy() for p in ema}["ema.head.0.weight"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(found - weights(model)["head.0.weight"]).max() > 1e-4
    assert ema_keep(Ema(decay=0.99), 10**6) == ema_keep(Ema(decay=0.99, warmup=False), 0) == 0.99


@pytest.mark.parametrize("implementation", ["composed", "standard"])
@pytest.mark.parametrize("precision", ["O1", "O2", "O3"])
def test_half_precision_is_near_and_keeps_norms_softmax_and_loss_in_float32(precision, implementation):
    from mindspore import Tensor

    outputs = {}
    for level in ("O0", precision):
        model = create_model("crossvit_9", 5, ops=implementation, precision=level, **TINY)
        rules.fill(model)
        model.set_train(False)
        outputs[level] = model(Tensor(IMAGES)).asnumpy()
        assert outputs[level].dtype == np.float32
        assert all(p.asnumpy().dtype == np.float32 for p in model.get_parameters())
    difference = np.abs(outputs[precision] - outputs["O0"]).max()
    assert 0 < difference < 2e-2


@pytest.mark.parametrize("precision", ["O1", "O2", "O3"])
def test_half_precision_trains_with_a_loss_scale_and_leaves_out_overflows(precision):
    model = create_model("crossvit_9", 5, precision=precision, **TINY)
    step, _ = step_of(model, loss_scaled=True)
    before = weights(model)
    outcome = step.apply(micro(), step.optimizer.scalars(1e-2, 1), loss_scale=2.0**40)
    assert not outcome.finite and np.isfinite(outcome.loss)
    for name, value in weights(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert not any(p.asnumpy().any() for p in step.optimizer.state())
    losses = [step.apply(micro(), step.optimizer.scalars(1e-2, k + 1), loss_scale=1024.0) for k in range(8)]
    assert all(o.finite for o in losses) and losses[-1].loss < losses[0].loss - 0.1


def test_layer_decay_scales_the_first_move():
    moved = {}
    for layer_decay in (1.0, 0.5):
        model = create_model("crossvit_9", 5, **TINY)
        step, _ = step_of(model, layer_decay=layer_decay)
        before = weights(model)
        step.apply(micro(), step.optimizer.scalars(1e-3, 1))
        moved[layer_decay] = {n: v - before[n] for n, v in weights(model).items()}
    for name, scale in {
        "patch_embed.0.proj.weight": 0.25,
        "blocks.0.blocks.1.0.mlp.fc1.weight": 0.5,
        "norm.0.bias": 1,
    }.items():
        np.testing.assert_allclose(moved[0.5][name], moved[1.0][name] * scale, rtol=1e-3, atol=1e-7, err_msg=name)
