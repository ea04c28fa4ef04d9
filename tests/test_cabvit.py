"""CabViT-H against PyTorch: counts to the unit, logits, gradients, and batch norms that follow their batches."""

from __future__ import annotations

import numpy as np
import pytest
from reference import assert_summary, reference

from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.cabvit_config import VARIANTS, CabViTConfig, macs, parameter_shapes, saved_activations

COUNTS = {  # parameters, multiply-accumulates and tensors of the authors' code, PyTorch's counters of batches left out
    "cabvit_h_l1": (6_187_560, 1_374_297_280, 320 - 19),
    "cabvit_h_l2": (16_275_870, 3_602_233_760, 348 - 20),
    "cabvit_h_l3": (27_894_484, 6_650_569_984, 561 - 26),
}
CASE = reference("cabvit.json")
SMALL = CASE["config"]
RUNNING = ("running_mean", "running_var")


def small(ops: str = "auto", classes: int = 10, **options):
    from mindcv_crossvit import create_model

    model = create_model("cabvit_h_l1", classes, ops=ops, **{**SMALL, **options})
    rules.fill(model)
    return model


def images(name: str = "input", rows: slice = slice(None)) -> np.ndarray:
    return (1.5 * rules.u(name, (4, 3, 96, 96))).astype(np.float32)[rows]


def targets(rows: slice = slice(None)) -> np.ndarray:
    soft = np.exp(2 * rules.u("target", (4, 10)))
    return (soft / soft.sum(1, keepdims=True)).astype(np.float32)[rows]


def running(model) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy() for p in model.get_parameters() if p.name.endswith(RUNNING)}


def logits_of(model) -> np.ndarray:
    from mindspore import Tensor

    model.set_train(False)
    return model(Tensor(images())).asnumpy()


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_macs_and_tensors_to_the_unit(name):
    config = VARIANTS[name]
    shapes = parameter_shapes(config)
    trained = sum(int(np.prod(shape)) for n, shape in shapes.items() if not n.endswith(RUNNING))
    assert (trained, macs(config), len(shapes)) == COUNTS[name]
    assert set(VARIANTS) == set(COUNTS)


@pytest.mark.parametrize("name, kept", [("cabvit_h_l1", 34.8e6), ("cabvit_h_l2", 67.7e6)])
def test_the_plan_counts_what_training_keeps_of_a_picture(name, kept):
    """By the peak memory of a training step on the CPU at two batch sizes, scripts/bench_model.py."""
    assert saved_activations(VARIANTS[name]) == pytest.approx(kept, rel=0.2)


@pytest.mark.usefixtures("graph_mode")
def test_tensors_have_the_announced_names_and_pytorchs():
    model = small()
    assert {p.name: p.shape for p in model.get_parameters()} == parameter_shapes(model.config, 10)
    assert {p.name for p in model.trainable_params()} == set(CASE["gradients"])
    assert set(running(model)) == set(CASE["running"])


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("implementation", ["composed", "standard"])
def test_logits_gradients_and_running_statistics_are_pytorchs(implementation):
    from mindspore import Tensor, ops

    model = small(implementation)
    np.testing.assert_allclose(logits_of(model), np.reshape(CASE["logits"], (4, 10)), rtol=0, atol=2e-5)
    model.set_train()
    parameters = list(model.trainable_params())

    def loss_of(x, t):
        return -(t * ops.log_softmax(model(x), -1)).sum() / 4

    loss, gradients = ops.value_and_grad(loss_of, None, parameters)(Tensor(images()), Tensor(targets()))
    assert float(loss.asnumpy()) == pytest.approx(CASE["loss"], abs=2e-6)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert_summary(parameter.name, gradient.asnumpy(), CASE["gradients"][parameter.name], 1e-4, 1e-2)
    for name, value in running(model).items():
        assert_summary(name, value, CASE["running"][name], 1e-5)


def trainer(model, average: bool = False, **options):
    """(step, its moving average) with AdamW as in the reference."""
    from mindspore import ParameterTuple

    from mindcv_crossvit.training.groups import make_groups
    from mindcv_crossvit.training.optimizer import AdamW
    from mindcv_crossvit.training.state import new_average
    from mindcv_crossvit.training.step import Options, TrainStep

    optimizer = AdamW(make_groups(list(model.trainable_params()), "official"), eps=1e-3)
    ema = new_average(model, optimizer) if average else ParameterTuple([])
    return TrainStep(model, optimizer, Options(**options), ema), ema


def micro(k: int, rows: slice = slice(None)):
    from mindcv_crossvit.training.step import Micro

    return Micro(images(f"input{k}", rows), targets(rows), np.zeros((0, 4), np.float32)[:, rows])


@pytest.mark.usefixtures("graph_mode")
def test_six_updates_follow_pytorchs_losses_and_running_statistics():
    model = small()
    step, ema = trainer(model, average=True)
    expected = {p.name: p.asnumpy().copy() for p in model.get_parameters()}
    losses = []
    for k in range(6):
        losses.append(step.apply(micro(k), step.optimizer.scalars(1e-3, k + 1), ema_keep=0.75).loss)
        now = {p.name: p.asnumpy() for p in model.get_parameters()}
        expected = {n: 0.75 * v + 0.25 * now[n] for n, v in expected.items()}
    np.testing.assert_allclose(losses, CASE["losses"], rtol=0, atol=2e-5)
    for name, value in running(model).items():
        assert_summary(name, value, CASE["trained_running"][name], 1e-4)
    np.testing.assert_allclose(logits_of(model), np.reshape(CASE["trained_logits"], (4, 10)), rtol=0, atol=2e-4)
    assert {p.name for p in ema} == {f"ema.{name}" for name in expected}  # running statistics, too, as in timm
    for parameter in ema:
        name = parameter.name.removeprefix("ema.")
        np.testing.assert_allclose(parameter.asnumpy(), expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.usefixtures("graph_mode")
def test_accumulated_micro_batches_each_move_the_running_statistics():
    model = small()
    step, _ = trainer(model, accumulation=2)
    losses = []
    for k in range(3):
        losses.append(step.add(micro(k, slice(0, 2))))
        losses.append(step.apply(micro(k, slice(2, 4)), step.optimizer.scalars(1e-3, k + 1)).loss)
    np.testing.assert_allclose(losses, CASE["accumulated"]["losses"], rtol=0, atol=2e-5)
    for name, value in running(model).items():
        assert_summary(name, value, CASE["accumulated"]["running"][name], 1e-4)


@pytest.mark.usefixtures("graph_mode")
def test_running_statistics_are_state_and_are_neither_trained_nor_decayed_nor_frozen(graph_mode):
    from mindcv_crossvit.training.groups import decayed, make_groups, running_statistics
    from mindcv_crossvit.training.loss_scale import LossScale
    from mindcv_crossvit.training.optimizer import AdamW
    from mindcv_crossvit.training.state import State, new_average

    model = small()
    optimizer = AdamW(make_groups(list(model.trainable_params()), "official"))
    assert not {p.name for p in optimizer.parameters} & set(running(model))
    trained = list(model.trainable_params())
    decays = {p.name.rpartition(".")[2] for p, yes in zip(trained, decayed(trained, "official"), strict=True) if yes}
    assert decays == {"weight", "attention_biases", "s_token_bias", "s_scale_factors"}  # as the recipe says
    assert {p.name for p in running_statistics(model)} == set(running(model))
    state = State(model, optimizer, new_average(model, optimizer), LossScale.for_precision("O0"))
    name = "layer_2.blocks.1.local_conv.bn.running_var"
    assert {f"model.{name}", f"ema.{name}"} <= set(state.named())
    before = running(model)[name]
    with state.averaged():
        model.layer_2.blocks[1].local_conv.bn.running_var.set_data(model.layer_2.blocks[0].local_conv.bn.running_var)
    np.testing.assert_array_equal(running(model)[name], before)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"img_size": 100}, "img_size 100 is not divisible by its stride 32 .nearest: 96, 128"),
        (
            {"num_heads": (0, 0, 5, 10)},
            "embed_dims 192 of stage 3 is .* num_heads 5 .nearest: 190, 195",
        ),
        ({"num_heads": (2, 0, 6, 10)}, "num_heads of stages 1 and 2 must be 0"),
        ({"num_heads": (0, 0, 6, 0)}, "num_heads of stage 4 must be at least 1"),
        ({"depths": (2, 2, 6), "embed_dims": 64}, "embed_dims must be four .* not 64; depths must be four"),
    ],
)
def test_impossible_sizes_are_refused_with_the_nearest_possible(overrides, message):
    with pytest.raises(ValueError, match=message):
        VARIANTS["cabvit_h_l1"].with_overrides(overrides)
    assert CabViTConfig().with_overrides({"depths": [1, 1, 1, 1]}).depths == (1, 1, 1, 1)


@pytest.mark.usefixtures("graph_mode")
def test_drop_path_grows_over_the_blocks_and_follows_the_given_scale():
    from mindspore import Tensor

    from mindcv_crossvit import create_model

    model = create_model("cabvit_h_l1", 5, 0.6, **{**SMALL, "depths": (1, 1, 1, 1), "img_size": 32})
    np.testing.assert_allclose(model.drop_rates, [0.2, 0.4, 0.4, 0.6, 0.6])
    rules.fill(model)
    model.set_train()
    x = Tensor(rules.picture((2, 3, 32, 32)))
    kept, dropped = (model(x, Tensor(np.full((5, 2), scale, np.float32))).asnumpy() for scale in (1, 0))
    assert np.abs(kept - dropped).max() > 1e-3


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize(
    "precision", [pytest.param("O1", marks=pytest.mark.slow), "O2", pytest.param("O3", marks=pytest.mark.slow)]
)
def test_half_precision_is_near_and_keeps_batch_norms_in_float32(precision):
    near = logits_of(small(precision=precision))
    assert near.dtype == np.float32
    assert 1e-3 < np.abs(near - np.reshape(CASE["logits"], (4, 10))).max() < 5e-2


@pytest.mark.usefixtures("graph_mode")
def test_fresh_weights_are_the_authors_and_the_seeds():
    from mindcv_crossvit import create_model

    first, again, other = (create_model("cabvit_h_l1", 10, seed=seed, **SMALL) for seed in (0, 0, 1))
    values = {p.name: p.asnumpy() for p in first.get_parameters()}
    for parameter in again.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), values[parameter.name])
    assert any((p.asnumpy() != values[p.name]).any() for p in other.get_parameters())
    assert values["layer_0.downsample.conv1.c.weight"].std() == pytest.approx(0.02, rel=0.3)
    for name, value in values.items():
        last = name.rpartition(".")[2]
        if last in ("gamma", "gamma_1", "gamma_2"):
            assert (value == np.float32(1e-6)).all()
        elif last in ("s_scale_factors", "running_var") or (value.ndim == 1 and last == "weight"):
            assert (value == 1).all(), name
        elif last in ("attention_biases", "s_token_bias", "running_mean", "bias"):
            assert not value.any(), name


def onnx_logits(name: str, overrides: dict, pictures: np.ndarray) -> np.ndarray:
    import onnxruntime

    from mindcv_crossvit.export.cabvit_onnx import onnx_model

    config = VARIANTS[name].with_overrides(overrides)
    classes = 10 if overrides else 1000
    tensors = {n: rules.weight(n, shape) for n, shape in parameter_shapes(config, classes).items()}
    model = onnx_model(config, tensors, len(pictures)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pictures})[0]


@pytest.mark.parametrize("row", [r for r in CASE["rows"] if r["model"] in VARIANTS], ids=lambda row: row["model"])
def test_the_onnx_graph_gives_the_official_logits(row):
    logits = onnx_logits(row["model"], {}, rules.picture((2, 3, 224, 224)))
    np.testing.assert_allclose([*logits[0, :4], logits[1, 0]], [*row["first"], row["second"]], rtol=0, atol=5e-5)
    np.testing.assert_allclose([logits.sum(), np.abs(logits).sum()], [row["sum"], row["abs_sum"]], rtol=0, atol=5e-3)


def test_the_onnx_graph_of_a_small_model_gives_pytorchs_logits():
    expected = np.reshape(CASE["logits"], (4, 10))
    np.testing.assert_allclose(onnx_logits("cabvit_h_l1", SMALL, images()), expected, rtol=0, atol=2e-5)
