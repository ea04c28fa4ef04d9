"""Features and attention against timm's, and the attention maps as those the models really use."""

from __future__ import annotations

import numpy as np
import pytest
from reference import reference
from test_models import TINY, overrides_of

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.attention_maps import AttentionReader, patch_grid, rollout
from mindcv_crossvit.models.crossvit import CrossViT
from mindcv_crossvit.ops import choose

pytestmark = pytest.mark.usefixtures("graph_mode")


def filled(config: dict, **more):
    model = create_model("crossvit_9", config["num_classes"], **overrides_of(config), **more)
    rules.fill(model)
    return model.set_train(False)


def pictures(size: int, batch: int = 2) -> np.ndarray:
    return rules.picture((batch, 3, size, size))


def assert_is(values: np.ndarray, name: str, expected: dict) -> None:
    """Compares with a summary of tests/data/features.json."""
    assert list(values.shape) == expected["shape"], name
    wide = values.astype(np.float64)
    ours = [wide.sum(), np.sqrt((wide**2).sum()), (wide * rules.u(name, wide.shape)).sum()]
    theirs = [expected[key] for key in ("sum", "norm", "dot")]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * expected["norm"], err_msg=name)
    size = expected["norm"] / np.sqrt(wide.size)
    np.testing.assert_allclose(values.reshape(-1)[:4], expected["first"], rtol=0, atol=2e-5 * size, err_msg=name)


@pytest.mark.parametrize("case", ["small", pytest.param("crossvit_9", marks=pytest.mark.slow)])
def test_features_are_timms(case):
    from mindspore import Tensor

    expected = reference("features.json")["features"][case]
    config = expected["config"]
    if case == "crossvit_9":
        model = create_model("crossvit_9").set_train(False)
        rules.fill(model)
    else:
        model = filled(config)
    images = Tensor(pictures(config["img_size"]))
    for norm, key in ((True, "grid"), (False, "raw_grid")):
        cls_tokens, grids = model.features(images, norm=norm)
        for i in range(2):
            assert_is(grids[i].asnumpy(), f"{key}.{i}", expected[f"{key}.{i}"])
            if norm:
                assert_is(cls_tokens[i].asnumpy(), f"cls_token.{i}", expected[f"cls_token.{i}"])


def test_features_serve_another_models_graph():
    """A model of one's own on both class tokens, with gradients into the CrossViT."""
    from mindspore import Tensor, nn, ops

    class Probe(nn.Cell):
        def __init__(self):
            super().__init__()
            self.backbone = create_model("crossvit_9", 5, **TINY)
            self.head = nn.Dense(24, 1)

        def construct(self, x):
            return self.head(ops.concat(self.backbone.features(x)[0], 1)).sum()

    probe = Probe()
    parameters = list(probe.trainable_params())
    _, gradients = ops.value_and_grad(probe, None, parameters)(Tensor(pictures(16)))
    found = {p.name: np.abs(g.asnumpy()).max() for p, g in zip(parameters, gradients, strict=True)}
    assert found["backbone.blocks.0.blocks.1.0.attn.qkv.weight"] > 0 and found["backbone.pos_embed.0"] > 0
    assert found["backbone.head.0.weight"] == 0


def test_half_precision_features_are_float32():
    from mindspore import Tensor

    outputs = [create_model("crossvit_9", 5, precision=p, **TINY).features(Tensor(pictures(16))) for p in ("O0", "O3")]
    for exact, half in zip(outputs[0][1], outputs[1][1], strict=True):
        assert str(half.dtype) == "Float32"
        np.testing.assert_allclose(half.asnumpy(), exact.asnumpy(), rtol=0, atol=0.02)


def test_attention_is_timms():
    expected = reference("features.json")["attention"]
    maps = AttentionReader(filled(expected["config"]))(pictures(expected["config"]["img_size"]))
    depth, seen = expected["config"]["depth"], 0
    for i in range(2):
        names = [f"blocks.{k}.blocks.{i}.{b}.attn" for k, triple in enumerate(depth) for b in range(triple[i])]
        for name, attention in zip(names, maps.blocks[i], strict=True):
            assert_is(attention, name, expected["maps"][name])
        name = f"blocks.{len(depth) - 1}.fusion.{i}.attn"
        assert_is(maps.cross[i][:, :, None], name, expected["maps"][name])
        seen += len(names) + 1
    assert seen == len(expected["maps"]) - 2 * (len(depth) - 1)  # the cross-attention of the last encoder only


@pytest.mark.parametrize("implementation", ["composed", "standard"])
def test_a_model_given_the_maps_has_the_same_logits(implementation):
    """In a copy of the model, the maps take the place of every softmax(q k^T): they are the weights really used."""
    from mindspore import Tensor, nn, ops

    config = {**TINY, "depth": ((2, 1, 0),)}
    model = create_model("crossvit_9", 5, ops=implementation, numerics="mindcv", **config)
    rules.fill(model)
    reader = AttentionReader(model.set_train(False))
    maps = reader(pictures(16))
    np.testing.assert_allclose(maps.logits, model(Tensor(pictures(16))).asnumpy(), rtol=0, atol=1e-6)
    assert not model.training and {p.name for p in model.get_parameters()} >= {"head.0.bias", "pos_embed.1"}
    for attention in (*maps.blocks[0], *maps.blocks[1], *maps.cross):
        np.testing.assert_allclose(attention.sum(-1), 1, rtol=0, atol=1e-5)

    class Given(nn.Cell):
        def __init__(self, tokens, attention):
            super().__init__()
            self.tokens, self.attention = tokens, Tensor(attention)

        def construct(self, *inputs):
            values = inputs[-1]
            width = self.attention.shape[1] * (values.shape[1] // self.attention.shape[1])
            if len(inputs) == 1:
                width = width // 3
            heads = self.attention.shape[1]
            v_bhnd = values[:, -width:].reshape(-1, self.tokens, heads, width // heads).transpose(0, 2, 1, 3)
            return ops.matmul(self.attention, v_bhnd).transpose(0, 2, 1, 3).reshape(-1, width)

    copy = CrossViT(model.config, choose(implementation), 5).set_train(False)
    encoder, tokens = copy.blocks[0], model.config.tokens
    for i in range(2):
        for block, attention in zip(encoder.blocks[i], maps.blocks[i], strict=True):
            block.attn.attend = Given(tokens[i], attention)
        encoder.fusion[i].half = True  # norm, products and attention one by one
        encoder.fusion[i].attn.attend = Given(tokens[1 - i], maps.cross[i][:, :, None])
    rules.fill(copy)
    np.testing.assert_allclose(copy(Tensor(pictures(16))).asnumpy(), maps.logits, rtol=0, atol=1e-5)


def test_a_model_in_training_is_read_in_evaluation_mode_and_left_as_it_was():
    model = create_model("crossvit_9", 5, drop_path_rate=0.9, **{**TINY, "depth": ((1, 2, 0),)})
    expected = AttentionReader(model.set_train(False))(pictures(16)).logits
    np.testing.assert_array_equal(AttentionReader(model.set_train())(pictures(16)).logits, expected)
    assert model.training and model.blocks[0].training


def test_stacked_cross_attention_gives_the_one_that_reads_patches():
    config = {**TINY, "depth": ((1, 1, 2),)}
    maps = AttentionReader(create_model("crossvit_9", 5, **config))(pictures(16))
    assert [cross.shape for cross in maps.cross] == [(2, 2, 5), (2, 2, 17)]


def test_rollout_is_the_product_of_half_attention_half_identity():
    # Two tokens, two blocks, by hand: A1 = [[.5, .5], [.25, .75]], A2 = [[0, 1], [1, 0]] (mean of two heads).
    first = np.array([[[0.75, 0.25], [0.5, 0.5]], [[0.25, 0.75], [0.0, 1.0]]], np.float32)[None]
    second = np.tile(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), (1, 2, 1, 1))
    expected = np.array([[0.5, 0.5], [0.5, 0.5]]) @ np.array([[0.75, 0.25], [0.125, 0.875]])
    np.testing.assert_allclose(rollout([first, second])[0], expected, atol=1e-6)
    other_way = rollout([second, first])[0]
    assert np.abs(other_way - expected).max() > 0.01
    with pytest.raises(ValueError, match="one block at least"):
        rollout([])


def test_patch_grid_drops_the_class_token_and_keeps_rows():
    weights = np.arange(10.0)[None]
    np.testing.assert_array_equal(patch_grid(weights)[0], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])


def test_attention_is_not_read_from_other_models():
    from mindspore import nn

    with pytest.raises(ValueError, match="not Dense"):
        AttentionReader(nn.Dense(2, 2))
