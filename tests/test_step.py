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


def sgd_step(model, momentum: float = 0.0, **options):
    """A step whose update with a learning rate of 1 is the gradient, unless there is momentum."""
    from mindspore import ParameterTuple

    from mindcv_crossvit.training.groups import make_groups
    from mindcv_crossvit.training.optimizer import SGD
    from mindcv_crossvit.training.step import Options, TrainStep

    optimizer = SGD(make_groups(list(model.trainable_params()), "official"), momentum, weight_decay=0.0)
    return TrainStep(model, optimizer, Options(**options), ParameterTuple([]))


def in_parts(step, scalars) -> float:
    """The update of `micro()` in four micro-batches; the mean loss."""
    losses = [step.add(micro(slice(k, k + 2))) for k in (0, 2, 4)]
    return float(np.mean([*losses, step.apply(micro(slice(6, 8)), scalars).loss]))


def test_accumulated_gradients_are_those_of_the_large_batch():
    models = [create_model("crossvit_9", 5, **TINY) for _ in range(2)]
    whole, parts = sgd_step(models[0]), sgd_step(models[1], accumulation=4)
    before, scalars = weights(models[0]), whole.optimizer.scalars(1.0, 1)
    assert in_parts(parts, scalars) == pytest.approx(whole.apply(micro(), scalars).loss, abs=1e-6)
    ours, theirs = weights(models[1]), weights(models[0])
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-6, err_msg=name)
    assert sum(np.abs(theirs[name] - before[name]).max() > 1e-3 for name in before) > len(before) / 2


def test_accumulated_updates_of_adamw_equal_the_large_batch():
    """To 1e-6 with an eps that is not small beside the gradients. The recipe's divides a gradient that is nothing but
    rounding by its own size: the biases of attention's keys, which move no logit, then take steps of their own.
    """
    models = [create_model("crossvit_9", 5, **TINY) for _ in range(2)]
    whole, _ = step_of(models[0])
    parts, _ = step_of(models[1], accumulation=4)
    begin = [weights(model) for model in models]
    for eps, bound in ((1e-3, 1e-6), (1e-8, 1e-5)):
        for step, model, values in zip((whole, parts), models, begin, strict=True):
            restart(step, model, values)
            step.optimizer.eps = eps
        for update in (1, 2):
            scalars = whole.optimizer.scalars(1e-2, update)
            assert in_parts(parts, scalars) == pytest.approx(whole.apply(micro(), scalars).loss, abs=1e-6)
        ours, theirs = (weights(model) for model in (models[1], models[0]))
        for name, value in theirs.items():
            off = np.abs(ours[name] - value)
            if eps == 1e-8 and name.endswith("qkv.bias"):
                off = np.delete(off, slice(len(off) // 3, 2 * len(off) // 3))
            assert off.max() < bound or (eps == 1e-8 and name.endswith("wk.bias")), (eps, name)


def restart(step, model, values: dict[str, np.ndarray]) -> None:
    """The model with these weights, the optimizer without moments."""
    from mindspore import Tensor, ops

    for parameter in model.get_parameters():
        parameter.set_data(Tensor(values[parameter.name]))
    for moment in step.optimizer.state():
        moment.set_data(ops.zeros_like(moment))


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
    moves = {}
    for clip_norm in (None, 0.01, 1e6):
        model = create_model("crossvit_9", 5, **TINY)
        rules.fill(model)
        step = sgd_step(model, clip_norm=clip_norm)
        before = weights(model)
        assert step.apply(micro(), step.optimizer.scalars(1.0, 1)).finite
        after = weights(model)
        moves[clip_norm] = np.concatenate([(after[n] - before[n]).reshape(-1) for n in before]).astype(np.float64)
    norm = np.linalg.norm(moves[None])
    assert norm > 0.05
    np.testing.assert_allclose(moves[0.01], moves[None] * 0.01 / norm, rtol=0, atol=1e-6)
    np.testing.assert_allclose(moves[1e6], moves[None], rtol=0, atol=1e-6)


def test_the_moving_average_is_the_recurrence_for_every_tensor():
    """With and without the small shares of the beginning."""
    from mindcv_crossvit.recipe import Ema
    from mindcv_crossvit.training.state import ema_keep

    model = create_model("crossvit_9", 5, **TINY)
    step, ema = step_of(model, average=True)
    expected = {name: value.astype(np.float64) for name, value in weights(model).items()}
    for update, warmup in enumerate((True, True, True, False, False)):
        keep = ema_keep(Ema(decay=0.9, warmup=warmup), update)
        assert keep == ((1 + update) / (10 + update) if warmup else 0.9)
        step.apply(micro(), step.optimizer.scalars(1e-2, update + 1), ema_keep=keep)
        raw = weights(model)
        expected = {name: keep * value + (1 - keep) * raw[name] for name, value in expected.items()}
        found = {p.name.removeprefix("ema."): p.asnumpy() for p in ema}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)
            # composed attention knows that this gradient is zero
            assert np.abs(value - raw[name]).max() > 1e-7 or name.endswith("wk.bias"), name
    assert ema_keep(Ema(decay=0.99), 10**6) == ema_keep(Ema(decay=0.99, warmup=False), 0) == 0.99


@pytest.mark.parametrize("implementation", ["composed", "standard"])
def test_each_half_precision_is_near_float32_and_another_one(implementation):
    """Also with a residual stream near a thousand, whose variance float16 cannot hold: norms are float32."""
    from mindspore import Tensor

    plain, large = {}, {}
    for level in ("O0", "O1", "O2", "O3"):
        model = create_model("crossvit_9", 5, ops=implementation, precision=level, **TINY)
        rules.fill(model)
        model.set_train(False)
        plain[level] = model(Tensor(IMAGES)).asnumpy()
        for parameter in model.get_parameters():
            if parameter.name.startswith(("pos_embed", "cls_token")):
                parameter.set_data(Tensor(parameter.asnumpy() * 5e3))
        large[level] = model(Tensor(IMAGES)).asnumpy()
        assert plain[level].dtype == np.float32
        assert all(p.asnumpy().dtype == np.float32 for p in model.get_parameters())
    for logits in (plain, large):
        for level in ("O1", "O2", "O3"):
            assert 0 < np.abs(logits[level] - logits["O0"]).max() < 2e-2
        assert len({value.tobytes() for value in logits.values()}) == 4
    stream = max(np.abs(p.asnumpy()).max() for p in model.get_parameters() if p.name.startswith("pos_embed"))
    assert 500 < stream < 65504 < stream**2


@pytest.mark.parametrize("implementation", ["composed", "standard"])
@pytest.mark.parametrize("precision", ["O1", "O2", "O3"])
def test_norms_softmax_and_loss_see_float32_and_products_float16(precision, implementation, monkeypatch):
    """Seen eagerly, where the code is the same and every call can be watched."""
    import mindspore as ms
    from mindspore import Tensor, nn, ops

    from mindcv_crossvit.models import blocks
    from mindcv_crossvit.training.step import Loss

    seen: dict[str, set[str]] = {}

    def watched(place: str, function):
        def call(*inputs, **how):
            tensors = [x for x in inputs if isinstance(x, Tensor)]
            seen.setdefault(place, set()).update(str(x.dtype) for x in tensors)
            return function(*inputs, **how)

        return call

    class Watch(nn.Cell):
        def __init__(self, place: str, inner):
            super().__init__(auto_prefix=False)
            self.inner, self.called = inner, watched(place, inner)

        def construct(self, *inputs):
            return self.called(*inputs)

    for name in ("softmax", "log_softmax"):
        monkeypatch.setattr(ops, name, watched(name, getattr(ops, name)))
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        model = create_model("crossvit_9", 5, ops=implementation, precision=precision, **TINY)
        rules.fill(model)
        for _, cell in model.cells_and_names():
            if isinstance(cell, (blocks.LayerNorm, blocks.Linear)):
                cell.op = Watch(type(cell).__name__, cell.op)
            elif isinstance(getattr(cell, "softmax", None), ops.Softmax):
                cell.softmax = watched("softmax", cell.softmax)
        Loss(model)(Tensor(IMAGES), Tensor(TARGETS), Tensor(NONE), Tensor(np.float32(1)))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert seen.pop("Linear") == {"Float16"}
    assert seen.keys() == {"LayerNorm", "softmax", "log_softmax"} and set.union(*seen.values()) == {"Float32"}


def test_the_loss_is_float32_where_float16_overflows():
    """Logits of 1e5, and of 6e4 in float16, whose difference that cannot hold."""
    from mindspore import Tensor, nn, ops

    from mindcv_crossvit.training.step import Loss

    targets = np.array([[0.9, 0.1], [0.5, 0.5]], np.float32)
    for logits, dtype in (([[1e5, -1e5], [9e4, 1e5]], np.float32), ([[6e4, -6e4], [5e4, -6e4]], np.float16)):
        x = np.array(logits, dtype).astype(np.float64)
        log_prob = x - np.logaddexp(x[:, :1], x[:, 1:])
        grad = ops.value_and_grad(Loss(nn.Identity()), 0, has_aux=True)
        inputs = [Tensor(v) for v in (np.array(logits, dtype), targets, NONE, np.float32(8))]
        (_, loss), gradient = grad(*inputs)
        assert float(loss.asnumpy()) == pytest.approx(-(targets * log_prob).sum() / 2, rel=1e-6)
        np.testing.assert_allclose(gradient.asnumpy(), 8 * (np.exp(log_prob) - targets) / 2, atol=4e-3)


@pytest.mark.parametrize(
    "precision", [pytest.param("O1", marks=pytest.mark.slow), "O2", pytest.param("O3", marks=pytest.mark.slow)]
)
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
