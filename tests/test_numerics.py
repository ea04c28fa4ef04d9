"""`numerics: mindcv` against MindCV's own CrossViT with the same weights: logits, gradients, and what identifies it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mindcv_crossvit import create_model
from mindcv_crossvit.build import build_model
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.blocks import LayerNorm
from mindcv_crossvit.models.resize import Resize
from mindcv_crossvit.recipe_file import load_recipe
from mindcv_crossvit.training.checkpoint import Checkpoint
from mindcv_crossvit.training.start import check_fits, model_of

TINY = Path(__file__).parent / "tiny.yaml"
pytestmark = pytest.mark.usefixtures("graph_mode")

SMALL = {"embed_dim": [24, 48], "depth": [[1, 1, 0]], "num_heads": [3, 3], "mlp_ratio": [3, 3, 1]}
CASES = {
    "linear": {**SMALL, "img_size": [36, 32], "patch_size": [4, 8], "multi_conv": False},
    "stem": {**SMALL, "img_size": [48, 32], "patch_size": [12, 16], "multi_conv": True},
}


def named(model):
    """{our name: parameter}, from where it stands: MindCV's own names of its encoders' parameters are garbled.

    There a single cross-attention block is a list, and norms have MindSpore's names.
    """
    found = {}
    for path, parameter in model.parameters_and_names():
        name = re.sub(r"fusion\.(\d)\.0\.", r"fusion.\1.", path)
        found[name.replace(".gamma", ".weight").replace(".beta", ".bias")] = parameter
    return found


def fill(model):
    """Gives a model of either kind the weights by rule."""
    from mindspore import Tensor

    for name, parameter in named(model).items():
        parameter.set_data(Tensor(rules.weight(name, parameter.shape)))


def run(model, size):
    """(logits [3, 10], {our name: gradient of a soft cross-entropy}) of the picture by rule."""
    from mindspore import Tensor, ops

    images = Tensor(rules.picture((3, 3, size, size)))
    soft = np.exp(2 * rules.u("target", (3, 10)))
    targets = Tensor((soft / soft.sum(1, keepdims=True)).astype(np.float32))
    parameters = named(model)

    def loss_of(x, t):
        logits = model(x)
        return -(t * ops.log_softmax(logits, -1)).sum() / 3, logits

    step = ops.value_and_grad(loss_of, None, list(parameters.values()), has_aux=True)
    (_, logits), gradients = step(images, targets)
    return logits.asnumpy(), {n: g.asnumpy() for n, g in zip(parameters, gradients, strict=True)}


@cache
def mindcvs(case):
    """MindCV's own logits and gradients, and its tensors' shapes."""
    from mindcv.models.crossvit import VisionTransformer

    model = VisionTransformer(**CASES[case], num_classes=10, qkv_bias=True)
    fill(model)
    model.set_train(False)
    return *run(model, CASES[case]["img_size"][0]), {name: p.shape for name, p in named(model).items()}


@pytest.mark.parametrize("implementation", ["composed", "standard"])
@pytest.mark.parametrize("case", CASES)
def test_small_models_have_mindcvs_logits_and_gradients(case, implementation):
    logits, gradients, shapes = mindcvs(case)
    model = create_model("crossvit_9", 10, ops=implementation, numerics="mindcv", **CASES[case])
    assert {p.name: p.shape for p in model.get_parameters()} == shapes
    fill(model)
    model.set_train(False)
    our_logits, our_gradients = run(model, CASES[case]["img_size"][0])
    np.testing.assert_allclose(our_logits, logits, rtol=0, atol=5e-6)
    for name, expected in gradients.items():
        scale = max(np.sqrt((expected.astype(np.float64) ** 2).sum()), 1e-3)  # some are zero but for rounding
        np.testing.assert_allclose(our_gradients[name], expected, rtol=0, atol=3e-5 * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["composed", "standard"])
@pytest.mark.parametrize("name", ["crossvit_9", "crossvit_15", "crossvit_18"])
def test_full_models_have_mindcvs_logits(name, implementation):
    import mindcv
    from mindspore import Tensor

    theirs, ours = mindcv.create_model(name), create_model(name, ops=implementation, numerics="mindcv")
    images = Tensor(rules.picture((2, 3, 240, 240)))
    for model in (theirs, ours):
        fill(model)
        model.set_train(False)
    difference = np.abs(ours(images).asnumpy() - theirs(images).asnumpy()).max()
    print(f"{name} {implementation}: largest difference {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("size, new_size", [(240, 224), (36, 32), (5, 9)])
def test_bilinear_resize_is_mindspores(size, new_size):
    from mindspore import Tensor, ops

    noise = Tensor(rules.u("noise", (2, 3, size, size)).astype(np.float32))
    expected = ops.interpolate(noise, size=(new_size, new_size), mode="bilinear", align_corners=True).asnumpy()
    resized = Resize("bilinear", size, new_size)(noise).asnumpy()
    np.testing.assert_allclose(resized, expected, rtol=0, atol=2e-6)


def test_each_norm_has_mindcvs_eps():
    """A wrong one would move the logits by less than the tolerance above."""
    from mindcv.models.crossvit import VisionTransformer
    from mindspore import nn

    theirs = VisionTransformer(**CASES["linear"], num_classes=10, qkv_bias=True)
    expected = {path: cell.epsilon for path, cell in theirs.cells_and_names() if isinstance(cell, nn.LayerNorm)}
    for numerics, block_eps in (("mindcv", 1e-7), ("official", 1e-6)):
        ours = create_model("crossvit_9", 10, numerics=numerics, **CASES["linear"])
        eps = {path: cell.eps for path, cell in ours.cells_and_names() if isinstance(cell, LayerNorm)}
        assert eps["blocks.0.fusion.0.norm1"] == block_eps
        if numerics == "mindcv":
            assert eps == {re.sub(r"(fusion\.\d)\.0", r"\1", path): value for path, value in expected.items()}
        else:
            assert set(eps.values()) == {1e-6}


def test_unknown_numerics_are_refused():
    with pytest.raises(ValueError, match="numerics must be official or mindcv, not 'timm'"):
        create_model("crossvit_9", numerics="timm")


def test_numerics_are_part_of_what_a_model_is():
    """A recipe's key, passed on to the model, and a checkpoint of the other kind is refused."""
    official, mindcv = (load_recipe(TINY, [f"model.numerics={value}"]) for value in ("official", "mindcv"))
    assert build_model(mindcv, 10).config.numerics == "mindcv"
    assert build_model(official, 10).config.numerics == "official"
    checkpoint = Checkpoint(Path("a.safetensors"), {}, {"model": model_of(mindcv), "class_names": ("a",)})
    check_fits(checkpoint, mindcv, ("a",))
    with pytest.raises(UserError, match=r"model\.numerics is mindcv in the checkpoint, official in the recipe"):
        check_fits(checkpoint, official, ("a",))
