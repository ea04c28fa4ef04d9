"""CrossFormer and CrossFormer++ against the official PyTorch code: counts, groups, logits, gradients, dense maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import ROOT
from reference import reference

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.crossformer_config import VARIANTS, CrossFormerConfig
from mindcv_crossvit.models.crossformer_counts import backbone_macs, backbone_shapes, macs, parameter_shapes
from mindcv_crossvit.models.crossformer_groups import group_sides, group_tokens, groups_of, offset_index, offset_table
from mindcv_crossvit.recipe_file import load_recipe

REFERENCE = reference("crossformer.json")
ROWS, CASES = {row["model"]: row for row in REFERENCE["rows"]}, REFERENCE["cases"]
DROP_PATH = dict(zip(VARIANTS, (0.1, 0.2, 0.3, 0.5, 0.2, 0.3, 0.5, 0.5), strict=True))
pytestmark = pytest.mark.usefixtures("graph_mode")

# The official models' own, counted by hooks on the operators PyTorch ran; the backbone's parameters.
COUNTS = {
    "crossformer_t": (2_857_427_552, 448, 27_262_770),
    "crossformer_s": (4_906_063_692, 344, 29_886_858),
    "crossformer_b": (9_159_389_964, 656, 51_201_018),
    "crossformer_l": (16_107_451_680, 656, 90_944_136),
    "crossformerpp_s": (4_427_970_432, 676, 22_811_316),
    "crossformerpp_b": (9_591_549_804, 676, 51_224_058),
    "crossformerpp_l": (16_721_525_280, 676, 90_974_856),
    "crossformerpp_h": (22_000_137_056, 892, 94_935_896),
}


def built(case: str, implementation: str = "auto", **options):
    model = create_model("crossformer_t", 10, ops=implementation, **options, **CASES[case]["config"])
    rules.fill(model)
    return model


def images(case: str):
    from mindspore import Tensor

    side = CASES[case]["config"]["img_size"]
    return Tensor(rules.picture((3, 3, side, side)))


# Counts


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_macs_to_the_unit(name):
    work, tensors, backbone = COUNTS[name]
    shapes = parameter_shapes(VARIANTS[name])
    assert (sum(map(math.prod, shapes.values())), len(shapes)) == (ROWS[name]["parameters"], tensors)
    assert macs(VARIANTS[name]) == work
    assert sum(map(math.prod, backbone_shapes(VARIANTS[name]).values())) == backbone


@pytest.mark.parametrize(
    "patches, merges, parameters, work",
    [
        ([4], [2], 28_286_578, 4.494),
        ([4, 8], [2, 4], 30_615_922, 4.776),
        ([4, 8, 16], [2, 4], 30_629_746, 4.819),
        ([4, 8, 16, 32], [2], 28_334_962, 4.646),
        ([4, 8, 16, 32], [2, 4, 8], 35_302_258, 5.426),
    ],
)
def test_the_papers_ablations_of_the_embedding_are_counted(patches, merges, parameters, work):
    config = VARIANTS["crossformer_s"].with_overrides({"patch_size": patches, "merge_size": [merges] * 3})
    assert sum(map(math.prod, parameter_shapes(config).values())) == parameters
    assert macs(config) / 1e9 == pytest.approx(work, abs=6e-4)


@pytest.mark.parametrize(
    "group_type, work", [("linear", 11.324), ("linear_div", 9.568), ("alter", 9.591), ("7_14", 9.500)]
)
def test_the_policies_of_group_sizes_are_counted(group_type, work):
    config = VARIANTS["crossformerpp_b"].with_overrides({"group_type": group_type})
    assert macs(config) / 1e9 == pytest.approx(work, abs=6e-4)


def test_other_sizes_are_counted():
    small = VARIANTS["crossformer_s"]
    for side, work in ((256, 9.20), (320, 11.87), (384, 15.77)):
        assert macs(small.with_overrides({"img_size": side})) / 1e9 == pytest.approx(work, abs=6e-3)
    for height, width, work in ((800, 1280, 104.75), (1024, 1024, 107.86), (512, 512, 29.52)):
        assert backbone_macs(small, height, width) / 1e9 == pytest.approx(work, abs=6e-3)


# Groups


@pytest.mark.parametrize("row", REFERENCE["groups"], ids=lambda r: f"{r['group_type']} {r['depths']}")
def test_group_sizes_are_the_official_ones(row):
    config = VARIANTS["crossformerpp_b"].with_overrides({n: row[n] for n in ("depths", "group_type")})
    assert [list(sides) for sides in group_sides(config)] == row["sides"]


def test_short_groups_are_neighbours_and_long_ones_every_third():
    near, far = groups_of(6, 6, 2, 1, 0), groups_of(6, 6, 2, 3, 0)
    assert group_tokens(near)[1].tolist() == [2, 3, 8, 9]
    assert group_tokens(far)[1].tolist() == [1, 4, 19, 22]
    assert not near.padded and sorted(group_tokens(far).reshape(-1)) == list(range(36))


def test_padding_is_behind_or_on_both_sides():
    behind, both = groups_of(5, 7, 4, 1, 0), groups_of(5, 7, 4, 1, 1)
    assert (behind.top, behind.left, behind.rows, behind.columns) == (0, 0, 8, 8)
    assert (both.top, both.left, both.rows, both.columns) == (1, 0, 8, 8)
    assert (group_tokens(behind)[2] < 0).sum() == 12 and group_tokens(both)[0].tolist()[:5] == [-1] * 4 + [0]


def test_a_grid_no_larger_than_a_group_is_one_group():
    assert groups_of(7, 7, 7, 8, 0)[2:4] == groups_of(7, 7, 14, 8, 0)[2:4] == (7, 1)
    wide = groups_of(5, 9, 7, 2, 0)
    assert (wide.side, wide.interval, wide.groups, wide.tokens) == (9, 1, 1, 81)


def test_offsets_are_query_minus_key():
    table, pairs = offset_table(3), offset_index(3)
    assert table[0].tolist() == [-2, -2] and table[1].tolist() == [-2, -1]
    assert table[pairs[7, 3]].tolist() == [7 // 3 - 3 // 3, 7 % 3 - 3 % 3]


# Logits and gradients


@pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=() if n == "both sides" else pytest.mark.slow) for n in CASES if n != "padding"],
)
def test_logits_of_small_models_are_the_official_ones(case):
    model = built(case, "composed")
    model.set_train(False)
    assert {p.name: tuple(p.shape) for p in model.get_parameters()} == parameter_shapes(model.config, 10)
    np.testing.assert_allclose(model(images(case)).asnumpy(), CASES[case]["logits"], rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    "case, implementation",
    [
        ("padding", "composed"),
        pytest.param("padding", "standard", marks=pytest.mark.slow),
        pytest.param("no mask", "composed", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_pytorchs(case, implementation):
    from mindspore import Tensor, ops

    model = built(case, implementation)
    model.set_train()
    soft = np.exp(2 * rules.u("target", (3, 10)))
    targets = Tensor((soft / soft.sum(1, keepdims=True)).astype(np.float32))
    parameters = list(model.trainable_params())

    def loss_of(x, t):
        return -(t * ops.log_softmax(model(x), -1)).sum() / 3

    loss, gradients = ops.value_and_grad(loss_of, None, parameters)(images(case), targets)
    assert float(loss.asnumpy()) == pytest.approx(CASES[case]["loss"], abs=5e-6)
    assert {p.name for p in parameters} == set(CASES[case]["gradients"])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = CASES[case]["gradients"][parameter.name]
        values = gradient.asnumpy().astype(np.float64)
        mine = [values.sum(), np.sqrt((values**2).sum()), (values * rules.u(parameter.name, values.shape)).sum()]
        np.testing.assert_allclose(
            [*mine, *values.reshape(-1)[:4]],
            [expected["sum"], expected["norm"], expected["dot"], *expected["first"]],
            rtol=0,
            atol=5e-5 * max(expected["norm"], 1e-3),  # some gradients are zero but for rounding
            err_msg=parameter.name,
        )


def test_the_mask_is_finite_in_half_precision():
    from mindcv_crossvit.ops.standard import MASKED

    assert np.isfinite(np.float16(MASKED)) and np.exp(np.float32(MASKED)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["composed", "standard"])
def test_half_precision_gives_nearly_the_same_logits(implementation):
    model = built("padding", implementation, precision="O3")
    model.set_train(False)
    logits = model(images("padding")).asnumpy()
    assert logits.dtype == np.float32 and not np.array_equal(logits, np.float32(CASES["padding"]["logits"]))
    np.testing.assert_allclose(logits, CASES["padding"]["logits"], rtol=0, atol=2e-2)


# The recipe


def test_the_recipes_learning_rate_is_the_official_one_with_every_update():
    """The official code takes each rate one update later."""
    from dataclasses import replace

    from mindcv_crossvit.plan import Plan, lr_scale, scaled_lr
    from mindcv_crossvit.training.schedule import lr_at

    recipe = load_recipe(ROOT / "configs" / "crossformer_t_ascend.yaml")
    assert (scaled_lr(recipe), lr_scale(recipe)) == (1e-3, 2)
    plan = Plan(8, 1024, 128, 1, 128, 128, 1e-3, 10240, 10, 5, 10, 3000, "", (), 2)
    official = REFERENCE["schedule"]
    rates = [lr_at(recipe.schedule, plan, k) for k in official["updates"]]
    np.testing.assert_allclose(rates, official["rates"], rtol=1e-7)
    assert lr_at(recipe.schedule, replace(plan, ends_scale=1.0), 0) == 5e-7


@pytest.mark.parametrize("name, rate", DROP_PATH.items())
def test_every_recipe_has_the_official_settings(name, rate):
    recipe = load_recipe(ROOT / "configs" / f"{name}_ascend.yaml")
    assert (recipe.model.name, recipe.model.drop_path_rate, recipe.model.overrides()) == (name, rate, {})
    assert recipe.batch.global_batch == 1024 and recipe.optimizer.clip_norm == 5.0 and recipe.augment.repeats == 1
    assert recipe.schedule.scaled_ends and recipe.schedule.stepping == "update" and recipe.schedule.warmup_epochs == 20


# The dense backbone


@pytest.mark.parametrize("name", ["two stages", pytest.param("four stages", marks=pytest.mark.slow)])
def test_dense_maps_of_pictures_of_any_size_one_after_the_other(name):
    """Also after small pictures, from which on the official backbone attends over short distances only."""
    from mindspore import Tensor

    from mindcv_crossvit.models.crossformer import CrossFormerBackbone
    from mindcv_crossvit.ops import choose

    rows = REFERENCE["backbones"][name]
    config = CrossFormerConfig().with_overrides(rows["config"])
    model = CrossFormerBackbone(config, choose("composed"))
    model.set_train(False)
    rules.fill(model)
    assert {p.name: tuple(p.shape) for p in model.get_parameters()} == backbone_shapes(config)
    first = ()
    for row in rows["sizes"]:
        maps = model(Tensor(rules.picture((2, 3, *row["size"]))))
        compare_maps(maps, row["maps"])
        first = first or maps
    again = model(Tensor(rules.picture((2, 3, *rows["sizes"][0]["size"]))))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.asnumpy(), two.asnumpy())
    with pytest.raises(ValueError, match=f"divisible by {config.stride}"):
        model(Tensor(rules.picture((1, 3, 20, 64))))


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE["features"])
def test_dense_maps_are_the_official_ones(name):
    """Two records of the official code's maps: one with a product that notices values in the wrong place."""
    from mindspore import Tensor

    from mindcv_crossvit.models.crossformer import CrossFormerBackbone
    from mindcv_crossvit.ops import choose

    model = CrossFormerBackbone(VARIANTS[name], choose("composed"))
    model.set_train(False)
    rules.fill(model)
    model(Tensor(rules.picture((1, 3, 96, 96))))
    row = REFERENCE["features"][name]
    maps = model(Tensor(rules.picture((2, 3, *row["size"]))))
    compare_maps(maps, row["maps"])
    for row in (r for r in REFERENCE["maps"] if r["model"] == name):
        values = maps[row["map"]].asnumpy().astype(np.float64)
        assert list(values.shape) == row["shape"] and row["input"] == REFERENCE["features"][name]["size"]
        found = [*values[0, :4, 0, 0], values[1, 0, 0, 0]]
        np.testing.assert_allclose(found, [*row["first"], row["second"]], rtol=0, atol=5e-5)
        assert values.sum() == pytest.approx(row["sum"], rel=0, abs=5e-3)
        # some hundred thousand values of one sign: what one rounding of each adds up to
        assert np.abs(values).sum() == pytest.approx(row["abs_sum"], rel=0, abs=max(5e-3, 2**-24 * row["abs_sum"]))


def compare_maps(maps, expected):
    assert len(maps) == len(expected)
    for i, (ours, theirs) in enumerate(zip(maps, expected, strict=True)):
        values = ours.asnumpy().astype(np.float64)
        assert list(values.shape) == theirs["shape"]
        dot = (values * rules.u(f"map.{i}", values.shape)).sum()
        np.testing.assert_allclose(values.reshape(-1)[:4], theirs["first"], rtol=0, atol=5e-5)
        np.testing.assert_allclose([values.sum(), dot], [theirs["sum"], theirs["dot"]], rtol=0, atol=5e-3)


# ONNX


@pytest.mark.parametrize("case", CASES)
def test_the_onnx_graph_gives_the_official_logits(case):
    config = CrossFormerConfig().with_overrides(CASES[case]["config"])
    logits = run_onnx(config, 10, rules.picture((3, 3, config.img_size, config.img_size)))
    np.testing.assert_allclose(logits, CASES[case]["logits"], rtol=0, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_onnx_graphs_of_all_variants_give_the_official_logits(name):
    logits, row = run_onnx(VARIANTS[name], 1000, rules.picture((2, 3, 224, 224))), ROWS[name]
    np.testing.assert_allclose([*logits[0, :4], logits[1, 0]], [*row["first"], row["second"]], rtol=0, atol=5e-5)


def run_onnx(config, classes: int, pictures: np.ndarray) -> np.ndarray:
    import onnxruntime

    from mindcv_crossvit.export.crossformer_onnx import onnx_model

    tensors = {name: rules.weight(name, shape) for name, shape in parameter_shapes(config, classes).items()}
    model = onnx_model(config, tensors, len(pictures)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pictures})[0]


# Training


def test_drop_path_follows_the_given_scale_for_every_block():
    from mindspore import Tensor

    model, logits = built("no padding", drop_path_rate=0.5), CASES["no padding"]["logits"]
    assert model.drop_rates == pytest.approx([0.125, 0.125, 0.25, 0.25, 0.375, 0.375, 0.5, 0.5])
    model.set_train()
    ones = np.ones((8, 3), np.float32)
    np.testing.assert_allclose(model(images("no padding"), Tensor(ones)).asnumpy(), logits, rtol=0, atol=5e-6)
    ones[:, 1] = 0
    dropped = model(images("no padding"), Tensor(ones)).asnumpy() - logits
    assert np.abs(dropped[1]).max() > 1e-2 and np.abs(dropped[[0, 2]]).max() < 5e-6


def test_fresh_weights_have_the_official_distribution():
    model = create_model("crossformer_t", 10, seed=3, use_acl=True)
    values = {p.name: p.asnumpy() for p in model.get_parameters()}
    assert values["layers.3.blocks.0.attn.qkv.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert values["layers.3.blocks.0.attn.pos.pos1.2.weight"].std() == pytest.approx(0.02, rel=0.1)
    for name, fan_in in (("patch_embed.projs.3", 3 * 32 * 32), ("layers.2.blocks.2.ex_conv", 9)):
        weight = values[f"{name}.weight"]
        assert np.abs(weight).max() <= fan_in**-0.5 and weight.std() == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)
    assert np.all(values["layers.2.blocks.2.ex_ln.weight"] == 1) and not values["head.bias"].any()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"img_size": 225}, "img_size 225 is not divisible by 32 .nearest: 224, 256"),
        ({"img_size": (224, 224)}, "positive whole number"),
        ({"patch_size": [4, 7]}, "kernel of 7 is not centred on a patch of 4 .nearest: 8"),
        ({"num_heads": [3, 6, 12, 25]}, "num_heads 25 does not divide the width 768 of stage 4 .nearest: 24"),
        ({"depths": [2, 2, 6]}, "num_heads has 4 entries, depths 3"),
        ({"group_type": "lineardiv"}, "did you mean linear_div"),
        ({"pad_type": 2, "use_acl": 1}, "use_acl must be true or false, not 1; pad_type must be 0 or 1, not 2"),
        ({"embed_dim": 100}, "4 kernels do not divide a width of 100 .nearest: 96, 104"),
    ],
)
def test_impossible_numbers_are_refused_with_the_nearest_possible(overrides, message):
    with pytest.raises(ValueError, match=message):
        CrossFormerConfig().with_overrides(overrides)


def test_an_input_of_another_size_is_refused():
    from mindspore import Tensor

    with pytest.raises(ValueError, match="images of 48 pixels"):
        built("padding")(Tensor(rules.picture((1, 3, 56, 48))))
