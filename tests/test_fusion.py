"""The paper's fusions against figures of re-builds and a functional PyTorch program; see tests/data/fusions.json."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from running import metrics
from small_models import CASES, assert_is_pytorchs, built, trained

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.inference import check_request
from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.catalog import macs
from mindcv_crossvit.models.crossvit_config import FUSIONS, VARIANTS, CrossViTConfig
from mindcv_crossvit.models.shapes import parameter_shapes
from mindcv_crossvit.training.checkpoint import Checkpoint, read_checkpoint
from mindcv_crossvit.weights.fit import fit, resize_positions
from mindcv_crossvit.weights.read import Weights
from mindcv_crossvit.weights.variant import find_variant

SMALL = VARIANTS["crossvit_small"]
FUSION_CASES = [name for name in CASES if "hybrid_backbone" not in CASES[name]["config"]]
COUNTED = {
    "none": (23_738_960, 5_349_663_360),
    "all_attention": (26_854_544, 7_583_409_792),
    "class_token": (24_186_512, 5_350_105_728),
    "pairwise": (24_186_512, 5_527_052_928),
    "cross_attention": (26_856_272, 5_615_557_632),
}


def count(config: CrossViTConfig) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_parameters_and_macs_are_the_published_ones_to_the_unit(fusion):
    config = SMALL.with_overrides({"fusion": fusion})
    assert (count(config), macs(config)) == COUNTED[fusion]


def test_identities_between_equal_widths_give_the_papers_row_b():
    row_b = SMALL.with_overrides({"embed_dim": [384, 384]})
    shapes = parameter_shapes(row_b.with_overrides({"identity_projs": True}))
    positions = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("pos_embed"))
    assert sum(map(math.prod, shapes.values())) - positions == 31_403_600
    assert count(row_b) == 33_416_528 and macs(row_b) == pytest.approx(7.6988e9, rel=1e-5)
    assert macs(row_b) - macs(row_b.with_overrides({"identity_projs": True})) == 12 * 384 * 384


def test_without_class_tokens_two_tokens_and_their_positions_are_missing():
    assert count(SMALL) - count(SMALL.with_overrides({"cls_token": False})) == 2 * (192 + 384)


QUICK = {
    "composed": {"all_attention", "pairwise"},
    "standard": {"no class token"},
    "native": {"cross_attention"},
}


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize(
    "case, ops",
    [
        pytest.param(case, ops, marks=[] if case in quick else [pytest.mark.slow])
        for ops, quick in QUICK.items()
        for case in FUSION_CASES
    ],
)
def test_logits_and_gradients_are_pytorchs(case, ops):
    assert_is_pytorchs(case, ops)


@pytest.mark.parametrize("stacked, names", [(0, {""}), (1, {"0."}), (2, {"0.", "1."})])
def test_the_depth_triples_last_number_names_the_keys(stacked, names):
    config = SMALL.with_overrides({"depth": [[1, 1, stacked]]})
    keys = [key.removeprefix("blocks.0.fusion.0.") for key in parameter_shapes(config) if ".fusion.0." in key]
    assert {key[: key.index("attn.wq")] for key in keys if key.endswith("attn.wq.weight")} == names
    assert len(keys) == 10 * max(stacked, 1)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"fusion": "pairwize"}, "did you mean pairwise"),
        ({"fusion": "none", "depth": [[1, 1, 1]]}, "fusion none has none; give 0"),
        ({"fusion": "pairwise", "cls_token": False}, "cls_token false is defined for fusion cross_attention"),
        ({"identity_projs": True}, "branches of equal width"),
        ({"cls_token": 0}, "cls_token must be true or false"),
    ],
    ids=str,
)
def test_impossible_choices_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        SMALL.with_overrides(overrides)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize(
    "choice",
    [
        pytest.param("fusion=all_attention", marks=pytest.mark.slow),
        pytest.param("fusion=class_token", marks=pytest.mark.slow),
        pytest.param("fusion=none", marks=pytest.mark.slow),
        pytest.param("cls_token=false", marks=pytest.mark.slow),
        "fusion=pairwise",
    ],
)
def test_a_fusion_is_trained_by_the_recipe(choice, tmp_path, monkeypatch):
    run = trained(tmp_path / "run", [f"model.{choice}", "model.depth=[[1,1,0],[1,1,0]]"], monkeypatch)
    assert all(math.isfinite(line["loss"]) for line in metrics(run) if "loss" in line)
    key, _, value = choice.partition("=")
    assert str(read_checkpoint(run / "last.safetensors").meta["model"][key]).lower() == value


@pytest.mark.usefixtures("graph_mode")
def test_without_class_tokens_features_are_what_the_heads_read():
    from mindspore import Tensor

    model = built({**CASES["no class token"]["config"], "depth": ((1, 1, 0),)}, "standard")
    model.set_train(False)
    images = Tensor(rules.picture((2, 3, 36, 36)))
    (read0, read1), (grid0, grid1) = model.features(images)
    assert grid0.shape == (2, 24, 9, 9) and grid1.shape == (2, 48, 4, 4)
    np.testing.assert_allclose(grid1.asnumpy().mean((2, 3)), read1.asnumpy(), rtol=0, atol=1e-6)
    weight, bias = model.head[0].weight.asnumpy(), model.head[0].bias.asnumpy()
    expected = read0.asnumpy() @ weight.T + bias
    np.testing.assert_allclose(model.of_branch("small")(images).asnumpy(), expected, rtol=0, atol=1e-5)


def weights_of(config: CrossViTConfig) -> Weights:
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in parameter_shapes(config).items()}
    return Weights(Path("w.pth"), "official", "official", tensors)


@pytest.mark.parametrize(
    "overrides",
    [
        {"fusion": "none"},
        {"fusion": "all_attention"},
        {"cls_token": False},
        {"cls_token": False, "img_size": (96, 64)},
        {"hybrid_backbone": "t2t"},
        {"hybrid_backbone": "performer", "fusion": "none"},
    ],
    ids=str,
)
def test_weights_tell_their_fusion_and_embedding(overrides):
    found = find_variant(weights_of(VARIANTS["crossvit_9"].with_overrides(overrides)))
    assert (found.name, found.overrides) == ("crossvit_9", overrides)


@pytest.mark.parametrize("fusion", ["class_token", "pairwise"])
def test_weights_of_two_fusions_that_look_alike_are_refused(fusion):
    with pytest.raises(UserError, match="fusion class_token or pairwise, which look the same"):
        find_variant(weights_of(VARIANTS["crossvit_9"].with_overrides({"fusion": fusion})))


def test_positions_without_a_class_token_are_resized_in_the_same_way():
    with_token = rules.u("pos", (1, 26, 3)).astype(np.float32)
    resized = resize_positions(with_token[:, 1:], 16)
    np.testing.assert_array_equal(resized, resize_positions(with_token, 17)[:, 1:])
    weights = Weights(Path("w.pth"), "official", "official", {"pos_embed.0": with_token})
    with pytest.raises(UserError, match=r"nothing in it fits"):  # a grid with a class token for one without
        fit(weights, {"pos_embed.0": (1, 16, 3)})


def test_attention_is_refused_where_no_class_token_reads_the_other_branch():
    from mindcv_crossvit.models.attention_maps import AttentionReader

    for overrides in ({"fusion": "all_attention"}, {"cls_token": False}):
        meta = {"class_names": ["a", "b"], "model": {"name": "crossvit_9", **overrides}}
        with pytest.raises(UserError, match="--attention: this crossvit_9 has no class tokens that read"):
            check_request(Checkpoint(Path("x"), {}, meta), None, "model", attention=True)
    with pytest.raises(ValueError, match="fusion cross_attention"):
        AttentionReader(built(CASES["none"]["config"], "standard"))
