"""`numerics: mindcv` against MindCV's own CrossViT with the same weights: logits, gradients, and what identifies it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mindcv_crossvit import create_model
from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.resize import Resize

pytestmark = pytest.mark.usefixtures("graph_mode")

LINEAR = {
    "img_size": [36, 32],
    "patch_size": [4, 8],
    "embed_dim": [24, 48],
    "depth": [[1, 2, 0], [1, 1, 0]],
    "num_heads": [3, 3],
    "mlp_ratio": [3, 3, 1],
    "multi_conv": False,
}
STEM = {**LINEAR, "img_size": [48, 32], "patch_size": [12, 16], "depth": [[1, 1, 0]], "multi_conv": True}


def named(model):
    """{our name: parameter}, from where it stands: MindCV's own names of its encoders' parameters are garbled.

    There a single cross-attention block is a list, and norms have MindSpore's names.
    """
    found = {}
    for path, parameter in model.parameters_and_names():
        name = re.sub(r"fusion\.(\d)\.0\.", r"fusion.\1.", path)
        found[name.replace(".gamma", ".weight").replace(".beta", ".bias")] = parameter
    return found


def same_weights(*models):
    """Gives all models the weights by rule; their tensors must be the same ones."""
    from mindspore import Tensor

    shapes = [{name: p.shape for name, p in named(model).items()} for model in models]
    assert all(s == shapes[0] for s in shapes)
    for model in models:
        for name, parameter in named(model).items():
            parameter.set_data(Tensor(rules.weight(name, parameter.shape)))


def loss_and_gradients(model, images, targets):
    """Mean soft cross-entropy, and {our name: gradient}."""
    from mindspore import ops

    parameters = named(model)

    def loss_of(x, t):
        return -(t * ops.log_softmax(model(x), -1)).sum() / x.shape[0]

    loss, gradients = ops.value_and_grad(loss_of, None, list(parameters.values()))(images, targets)
    return loss.asnumpy(), {n: g.asnumpy() for n, g in zip(parameters, gradients, strict=True)}


@pytest.mark.parametrize("implementation", ["composed", "standard"])
@pytest.mark.parametrize("config", [LINEAR, STEM], ids=["linear", "stem"])
def test_small_models_have_mindcvs_logits_and_gradients(config, implementation):
    from mindcv.models.crossvit import VisionTransformer
    from mindspore import Tensor

    theirs = VisionTransformer(**config, num_classes=10, qkv_bias=True)
    ours = create_model("crossvit_9", 10, ops=implementation, numerics="mindcv", **config)
    same_weights(theirs, ours)
    size = config["img_size"][0]
    images = Tensor(rules.picture((3, 3, size, size)))
    for model in (theirs, ours):
        model.set_train(False)
    np.testing.assert_allclose(ours(images).asnumpy(), theirs(images).asnumpy(), rtol=0, atol=5e-6)
    soft = np.exp(2 * rules.u("target", (3, 10)))
    targets = Tensor((soft / soft.sum(1, keepdims=True)).astype(np.float32))
    their_loss, their_gradients = loss_and_gradients(theirs, images, targets)
    our_loss, our_gradients = loss_and_gradients(ours, images, targets)
    np.testing.assert_allclose(our_loss, their_loss, rtol=0, atol=2e-6)
    for name, expected in their_gradients.items():
        scale = max(np.sqrt((expected.astype(np.float64) ** 2).sum()), 1e-3)  # some are zero but for rounding
        np.testing.assert_allclose(our_gradients[name], expected, rtol=0, atol=3e-5 * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["composed", "standard"])
@pytest.mark.parametrize("name", ["crossvit_9", "crossvit_15", "crossvit_18"])
def test_full_models_have_mindcvs_logits(name, implementation):
    import mindcv
    from mindspore import Tensor

    theirs, ours = mindcv.create_model(name), create_model(name, ops=implementation, numerics="mindcv")
    same_weights(theirs, ours)
    images = Tensor(rules.picture((2, 3, 240, 240)))
    for model in (theirs, ours):
        model.set_train(False)
    difference = np.abs(ours(images).asnumpy() - theirs(images).asnumpy()).max()
    print(f"{name} {implementation}: largest difference {difference:.1e}")
    assert difference < 1e-5
