"""Token-to-token embeddings against the official logits and a functional PyTorch program."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference import assert_summary, reference
from running import TINY
from small_models import assert_is_pytorchs, trained

from mindcv_crossvit import create_model, load_weights
from mindcv_crossvit.data.draws import drop_path_scale
from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.catalog import macs, parameter_shapes
from mindcv_crossvit.models.crossvit_config import VARIANTS
from mindcv_crossvit.recipe_file import load_recipe
from mindcv_crossvit.weights.read import read_weights


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("row", reference("counts.json")["embeddings"], ids=lambda r: f"{r['model']} {r['kind']}")
def test_built_models_have_the_official_parameters_and_macs_to_the_unit(row):
    model = create_model(row["model"], hybrid_backbone=row["kind"])
    shapes = {p.name: tuple(p.shape) for p in model.get_parameters()}
    assert shapes == parameter_shapes(model.config) and len(shapes) == row["tensors"]
    assert sum(map(math.prod, shapes.values())) == row["parameters"]
    assert sum(p.size for p in model.trainable_params()) == row["trained"]
    assert macs(model.config) == row["macs"]


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("case, ops", [("t2t", "composed"), ("performer", "standard")])
def test_logits_and_gradients_are_pytorchs(case, ops):
    assert_is_pytorchs(case, ops, training=False)  # the performer's dropout is on in training


PERFORMER = ["hybrid_backbone=performer", "patch_size=[12,16]", "img_size=[24,16]", "depth=[[1,1,0]]"]
FEATURES = {f"patch_embed.{i}.attention{k}.w" for i in (0, 1) for k in (1, 2)}


@pytest.mark.usefixtures("graph_mode")
def test_random_features_are_in_weights_and_checkpoints_and_not_trained():
    from mindcv_crossvit import build, model_plan
    from mindcv_crossvit.data.sources import open_data
    from mindcv_crossvit.plan import make_plan

    recipe = load_recipe(TINY, [f"model.{change}" for change in PERFORMER])
    plan = make_plan(recipe, open_data(recipe.data), 1)
    state = build.new_state(recipe, plan)
    named = state.named()  # what a checkpoint holds: weights, two moments and an average each
    assert {name for name in named if name.endswith(".w")} == {f"model.{name}" for name in FEATURES}
    assert not FEATURES & {p.name for p in state.optimizer.parameters}
    for name in FEATURES:
        rows = named[f"model.{name}"].asnumpy()
        np.testing.assert_allclose(rows @ rows.T, 32 * np.eye(32), rtol=0, atol=1e-4)
    assert "parameters and 8,192 frozen ones" in dict(model_plan.model_lines(recipe, plan, state))["model"]


@pytest.mark.slow
@pytest.mark.usefixtures("graph_mode")
def test_a_run_keeps_the_random_features(tmp_path, monkeypatch):
    run = trained(tmp_path / "run", [f"model.{change}" for change in PERFORMER], monkeypatch)
    weights = read_weights(run / "last.safetensors")
    config = load_recipe(run / "recipe.yaml").model.overrides()
    model = create_model("crossvit_9", 2, **config)
    fresh = {p.name: p.asnumpy().copy() for p in model.get_parameters()}
    for name in FEATURES:
        np.testing.assert_array_equal(weights.tensors[name], fresh[name])
    moved = "patch_embed.0.attention1.kqv.weight"
    assert np.abs(weights.tensors[moved] - fresh[moved]).max() > 1e-4
    assert load_weights(model, run / "last.safetensors").missing == []


@pytest.mark.usefixtures("graph_mode")
def test_dropout_follows_its_coins():
    from mindspore import Tensor

    from mindcv_crossvit.models.blocks import DropPathSchedule
    from mindcv_crossvit.models.t2t import SeededDropout

    drops = DropPathSchedule()
    layers = [SeededDropout(0.1, 40, drops).set_train() for _ in range(2)]
    assert drops.rates == [0.5] * 48
    scale = drop_path_scale(0, 0, tuple(drops.rates), 50)
    ones = Tensor(np.ones((50 * 40, 64), np.float32))
    first, again, other = (layer(ones, Tensor(scale)).asnumpy() for layer in (layers[0], layers[0], layers[1]))
    np.testing.assert_array_equal(first, again)
    kept, kept2 = (x.reshape(50, -1) > 0 for x in (first, other))
    np.testing.assert_allclose(first[first > 0], 1 / 0.9, rtol=1e-6)
    assert abs(kept.mean() - 0.9) < 5 * math.sqrt(0.09 / kept.size)

    def correlation(a, b):
        return ((a - 0.9) * (b - 0.9)).mean() / 0.09

    pairs = [(kept, kept2), (kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), (kept[:, 64:], kept[:, :-64])]
    assert max(abs(correlation(*pair)) for pair in pairs) < 5 / math.sqrt(kept.size)
    assert len(np.unique(kept.sum(1))) > 10  # the samples' draws are their own
    layers[0].set_train(False)
    np.testing.assert_array_equal(layers[0](ones).asnumpy(), ones.asnumpy())


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("implementation", ["composed", "standard"])
def test_a_performer_in_training_drops_where_the_official_one_does(implementation):
    """With the same draws given to both: output and gradients of a layer."""
    from mindspore import Tensor, nn, ops

    from mindcv_crossvit.models.blocks import DropPathSchedule
    from mindcv_crossvit.models.t2t import PerformerLayer
    from mindcv_crossvit.ops import choose

    class Times(nn.Cell):
        def __init__(self, name: str):
            super().__init__()
            self.factors = Tensor(((rules.u(name, (count, 64)) >= -0.8) / 0.9).astype(np.float32))

        def construct(self, y_te, drop_scale=None):
            return y_te * self.factors

    expected = reference("performer.json")
    count, tokens = expected["batch"] * expected["tokens"], expected["tokens"]
    layer = PerformerLayer(expected["in_dim"], tokens, choose(implementation), DropPathSchedule())
    for p in layer.get_parameters():
        share = 0.25 if p.name.startswith("kqv.") else 1
        p.set_data(Tensor((share * rules.weight(p.name, p.shape)).astype(np.float32)))
    layer.drop_proj, layer.drop_mlp = Times("mask.proj"), Times("mask.mlp")
    layer.set_train()
    soft = np.exp(2 * rules.u("target", (count, 64)))
    targets = Tensor((soft / soft.sum(1, keepdims=True)).astype(np.float32))
    parameters = list(layer.trainable_params())

    def loss_of(x):
        y = layer(x)
        return -(targets * ops.log_softmax(y, -1)).sum() / count, y

    x = Tensor(rules.u("input", (count, expected["in_dim"])).astype(np.float32))
    (loss, y), gradients = ops.value_and_grad(loss_of, None, parameters, has_aux=True)(x)
    assert float(loss.asnumpy()) == pytest.approx(expected["loss"], abs=2e-6)
    assert_summary("output", y.asnumpy(), expected["output"])
    assert {p.name for p in parameters} == set(expected["gradients"])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert_summary(parameter.name, gradient.asnumpy(), expected["gradients"][parameter.name])


@pytest.mark.slow
@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize(
    "case, ops", [("t2t", "standard"), ("performer", "composed"), ("t2t", "native"), ("performer", "native")]
)
def test_the_other_implementations_too(case, ops):
    assert_is_pytorchs(case, ops, training=False)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"hybrid_backbone": "t2"}, "hybrid_backbone must be t2t or performer or null"),
        ({"hybrid_backbone": "t2t", "multi_conv": True}, "choose one"),
        ({"hybrid_backbone": "t2t", "patch_size": (8, 16)}, "patches of 12 and 16 pixels, not 8"),
    ],
    ids=str,
)
def test_impossible_choices_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        VARIANTS["crossvit_9"].with_overrides(overrides)
