"""All models' logits against the official PyTorch ones to 5e-5; CrossViT's counts to the unit and small gradients."""

from __future__ import annotations

import re

import numpy as np
import pytest
from reference import official_rows, reference

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.catalog import VARIANTS as ALL
from mindcv_crossvit.models.catalog import macs, parameter_shapes, resolve
from mindcv_crossvit.models.crossvit_config import VARIANTS, CrossViTConfig

COUNTS, GRADIENTS = reference("counts.json"), reference("gradients.json")
SMALL = ("crossvit_tiny_224", "crossvit_9_224", "crossvit_9_dagger_224", "crossformer_t", "cabvit_h_l1", "cabvit_p_l0")
ONLY_COUNTED = {"deit_base", *(f"deit_{k}{dagger}" for k in (9, 15, 18) for dagger in ("", "_dagger"))}
pytestmark = pytest.mark.usefixtures("graph_mode")


def golden_cases():
    for row in official_rows():
        marks = () if row["model"] in SMALL and not row["overrides"] else (pytest.mark.slow,)
        yield pytest.param(row, id=row["model"] + str(row["overrides"] or ""), marks=marks)


@pytest.mark.parametrize("row", golden_cases())
def test_logits_are_the_official_ones(row):
    from mindspore import Tensor

    model = create_model(row["model"], **row["overrides"])
    model.set_train(False)
    assert {p.name: tuple(p.shape) for p in model.get_parameters()} == parameter_shapes(model.config)
    rules.fill(model)
    logits = model(Tensor(rules.picture((2, 3, *row["input"])))).asnumpy()
    np.testing.assert_allclose([*logits[0, :4], logits[1, 0]], [*row["first"], row["second"]], rtol=0, atol=5e-5)
    np.testing.assert_allclose([logits.sum(), np.abs(logits).sum()], [row["sum"], row["abs_sum"]], rtol=0, atol=5e-3)


def test_every_variant_has_official_logits_but_those_that_nobody_released():
    assert {resolve(r["model"]) for r in official_rows() if not r["overrides"]} == set(ALL) - ONLY_COUNTED


@pytest.mark.parametrize("row", COUNTS["variants"], ids=lambda r: r["official"])
def test_parameters_and_macs_to_the_unit(row):
    model = create_model(row["official"])
    parameters = list(model.get_parameters())
    assert sum(p.size for p in parameters) == row["parameters"]
    assert len(parameters) == row["tensors"]
    assert macs(model.config) == row["macs"]


@pytest.mark.parametrize("row", COUNTS["ablations"], ids=lambda r: f"row {r['row']}")
def test_the_constructor_builds_the_papers_ablations(row):
    model = create_model("crossvit_small", **row["overrides"])
    assert sum(p.size for p in model.get_parameters()) == row["parameters"]
    assert macs(model.config) / 1e9 == pytest.approx(row["gmacs"], abs=6e-5)


@pytest.mark.parametrize("row", COUNTS["variants"], ids=lambda r: r["official"])
def test_official_and_timm_spellings_name_the_same_model(row):
    assert resolve(row["official"]) == resolve(row["timm"]) == resolve(row["official"]).lower()
    assert resolve(row["timm"]) in VARIANTS


@pytest.mark.parametrize("implementation", ["composed", pytest.param("standard", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", sorted(GRADIENTS["cases"]))
def test_gradients_are_pytorchs(case, implementation):
    from mindspore import Tensor, ops

    reference = GRADIENTS["cases"][case]
    config = reference["config"]
    model = create_model("crossvit_9", 10, ops=implementation, **overrides_of(config))
    rules.fill(model)
    model.set_train()
    images = Tensor(rules.picture((3, 3, config["img_size"], config["img_size"])))
    soft = np.exp(2 * rules.u("target", (3, 10)))
    targets = Tensor((soft / soft.sum(1, keepdims=True)).astype(np.float32))
    parameters = list(model.trainable_params())

    def loss_of(x, t):
        return -(t * ops.log_softmax(model(x), -1)).sum() / 3

    loss, gradients = ops.value_and_grad(loss_of, None, parameters)(images, targets)
    assert float(loss.asnumpy()) == pytest.approx(reference["loss"], abs=2e-6)
    assert len(gradients) == len(reference["gradients"])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = reference["gradients"][parameter.name]
        values = gradient.asnumpy().astype(np.float64)
        scale = max(expected["norm"], 1e-3)  # some gradients are zero but for rounding
        mine = [values.sum(), np.sqrt((values**2).sum()), (values * rules.u(parameter.name, values.shape)).sum()]
        np.testing.assert_allclose(
            [*mine, *values.reshape(-1)[:4]],
            [expected["sum"], expected["norm"], expected["dot"], *expected["first"]],
            rtol=0,
            atol=3e-5 * scale,
            err_msg=parameter.name,
        )


def overrides_of(config: dict) -> dict:
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "multi_conv")
    return {**{name: config[name] for name in names}, "img_size": [sizes[0] for sizes in config["branch_sizes"]]}


def test_parameter_names_are_the_official_ones():
    names = {p.name for p in create_model("crossvit_9").get_parameters()}
    assert {
        "blocks.0.blocks.1.2.attn.qkv.weight",
        "pos_embed.0",
        "cls_token.1",
        "blocks.2.fusion.1.attn.wq.bias",
    } <= names
    assert {"blocks.0.projs.0.0.weight", "blocks.0.projs.0.2.bias", "blocks.1.revert_projs.1.2.weight"} <= names
    assert {"norm.0.weight", "norm.1.bias", "head.0.weight", "patch_embed.0.proj.weight"} <= names
    dagger = {p.name for p in create_model("crossvit_9_dagger").get_parameters()}
    assert {f"patch_embed.{i}.proj.{k}.{n}" for i in (0, 1) for k in (0, 2, 4) for n in ("weight", "bias")} <= dagger


def test_one_stacked_cross_attention_is_the_bare_one_under_another_name():
    from mindspore import Tensor

    models = [create_model("crossvit_9", 5, **{**TINY, "depth": ((1, 1, count),)}) for count in (0, 1, 2)]
    bare, one, two = ({p.name: p for p in model.get_parameters()} for model in models)
    rules.fill(models[0])
    rules.fill(models[2])
    for name, parameter in bare.items():
        stacked = re.sub(r"fusion\.(\d)\.", r"fusion.\1.0.", name)
        one[stacked].set_data(parameter)
        two[stacked].set_data(parameter)
    logits = []
    for model in models:
        model.set_train(False)
        logits.append(model(Tensor(rules.picture((2, 3, 16, 16)))).asnumpy())
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-6)
    assert np.abs(logits[2] - logits[0]).max() > 1e-3
    assert "blocks.0.fusion.1.1.attn.wv.weight" in two


def test_an_unknown_name_or_argument_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean crossvit_15_dagger"):
        create_model("crossvit_15_daggr")
    with pytest.raises(ValueError, match="did you mean embed_dim"):
        create_model("crossvit_9", embed_dims=[8, 16])


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"img_size": (240, 225)}, "img_size 225 of the large branch .* 16 .nearest: 224, 240"),
        ({"embed_dim": (130, 256)}, "embed_dim 130 of the small branch .* num_heads 4 .nearest: 128, 132"),
        ({"depth": [[1, 3]]}, "triples"),
        ({"patch_size": (8, 16), "multi_conv": True}, "patches of 12 and 16 pixels, not 8"),
        ({"img_size": 240}, "two positive whole numbers"),
    ],
)
def test_impossible_sizes_are_refused_with_the_nearest_possible(overrides, message):
    with pytest.raises(ValueError, match=message):
        CrossViTConfig(num_heads=(4, 4), embed_dim=(128, 256)).with_overrides(overrides)


def test_an_input_of_another_size_is_refused():
    from mindspore import Tensor

    model = create_model("crossvit_9", 2, **TINY)
    with pytest.raises(ValueError, match="images of 16 pixels"):
        model(Tensor(np.zeros((1, 3, 20, 20), np.float32)))


TINY = {
    "img_size": (16, 16),
    "patch_size": (4, 8),
    "embed_dim": (8, 16),
    "depth": ((1, 1, 0),),
    "num_heads": (2, 2),
    "mlp_ratio": (2, 2, 1),
}


def test_drop_path_follows_the_given_scale_and_otherwise_draws_by_itself():
    from mindspore import Tensor

    model = create_model("crossvit_9", 5, drop_path_rate=0.5, **{**TINY, "depth": ((1, 2, 0),)})
    images = Tensor(rules.picture((6, 3, 16, 16)))
    model.set_train(False)
    plain = model(images).asnumpy()
    model.set_train()
    ones = np.ones((len(model.drop_rates), 6), np.float32)
    np.testing.assert_allclose(model(images, Tensor(ones)).asnumpy(), plain, atol=1e-6)
    dropped = model(images, Tensor(ones * 0)).asnumpy()
    assert np.abs(dropped - plain).max() > 1e-3
    np.testing.assert_array_equal(dropped, model(images, Tensor(ones * 0)).asnumpy())
    own = [model(images).asnumpy() for _ in range(4)]
    assert any(np.abs(a - own[0]).max() > 1e-4 for a in own[1:])


def test_drop_path_rates_are_the_official_ones():
    from mindcv_crossvit.models.crossvit import drop_path_rates

    rates = drop_path_rates(VARIANTS["crossvit_15"], 0.1)
    flat = [r for encoder in rates for r in encoder]
    np.testing.assert_allclose(flat, np.linspace(0, 0.1, 15))
    np.testing.assert_allclose([e[0] for e in rates], [0, 0.0357, 0.0714], atol=5e-5)
    np.testing.assert_allclose([e[-1] for e in rates], [0.0286, 0.0643, 0.1], atol=5e-5)
    assert create_model("crossvit_15", drop_path_rate=0.1).drop_rates[0] > 0


def test_fresh_weights_depend_on_the_seed_only():
    first, again, other = (create_model("crossvit_9", 5, seed=s, **TINY) for s in (1, 1, 2))
    for a, b, c in zip(first.get_parameters(), again.get_parameters(), other.get_parameters(), strict=True):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())
        if a.ndim > 1:
            assert np.abs(a.asnumpy() - c.asnumpy()).max() > 0


def test_initial_weights_have_the_official_distribution():
    model = create_model("crossvit_9", 10)
    values = {p.name: p.asnumpy() for p in model.get_parameters()}
    assert values["blocks.0.blocks.1.0.attn.qkv.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert values["pos_embed.0"].std() == pytest.approx(0.02, rel=0.03)
    bound = 1 / np.sqrt(3 * 12 * 12)
    patch = values["patch_embed.0.proj.weight"]
    assert np.abs(patch).max() <= bound and patch.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert np.all(values["norm.0.weight"] == 1) and not values["norm.0.bias"].any()
    assert not values["head.0.bias"].any()
