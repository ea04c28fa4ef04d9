"""The single-branch baselines against timm's: counts to the unit, logits to 5e-5, gradients of small ones."""

from __future__ import annotations

import numpy as np
import pytest
from reference import assert_summary, reference

from mindcv_crossvit.models import golden as rules
from mindcv_crossvit.models.deit_config import VARIANTS, DeiTConfig, macs, parameter_shapes

COUNTS = {  # built by PyTorch; the supplement's table rounds the same numbers
    "deit_tiny": (5_717_416, 1_253_683_200),
    "deit_small": (22_050_664, 4_598_882_304),
    "deit_base": (86_567_656, 17_563_828_224),
    "deit_9": (6_430_952, 1_379_576_320),
    "deit_15": (22_944_616, 4_862_591_232),
    "deit_18": (37_106_600, 7_810_759_936),
    "deit_9_dagger": (6_612_584, 1_486_150_144),
    "deit_15_dagger": (23_493_544, 5_109_156_096),
    "deit_18_dagger": (37_908_296, 8_148_996_352),
    "cabvit_p_l0": (5_717_416, 1_253_683_200),
}
CASES = reference("deit.json")["cases"]


def small(case: str) -> DeiTConfig:
    return DeiTConfig(**{name: value for name, value in CASES[case]["config"].items() if name != "num_classes"})


def make(config: DeiTConfig, classes: int, ops: str = "auto", **options):
    from mindcv_crossvit.models.deit import create
    from mindcv_crossvit.ops import choose

    return create(config, choose(ops), classes, **options)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_macs_to_the_unit(name):
    config = VARIANTS[name]
    assert sum(int(np.prod(shape)) for shape in parameter_shapes(config).values()) == COUNTS[name][0]
    assert macs(config) == COUNTS[name][1]
    assert set(VARIANTS) == set(COUNTS)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("case", CASES)
def test_parameters_have_the_announced_names_and_timms(case):
    model = make(small(case), 10)
    assert {p.name: p.shape for p in model.get_parameters()} == parameter_shapes(model.config, 10)
    assert {n: tuple(g["shape"]) for n, g in CASES[case]["gradients"].items()} == parameter_shapes(model.config, 10)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("implementation", ["composed", "standard"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_timms(case, implementation):
    from mindspore import Tensor, ops

    model, expected = make(small(case), 10, implementation), CASES[case]
    rules.fill(model)
    model.set_train()
    side = model.input_size
    soft = np.exp(2 * rules.u("target", (3, 10)))
    targets = Tensor((soft / soft.sum(1, keepdims=True)).astype(np.float32))
    parameters = list(model.trainable_params())

    def loss_of(x, t):
        logits = model(x)
        return -(t * ops.log_softmax(logits, -1)).sum() / 3, logits

    images = Tensor(rules.picture((3, 3, side, side)))
    (loss, logits), gradients = ops.value_and_grad(loss_of, None, parameters, has_aux=True)(images, targets)
    assert float(loss.asnumpy()) == pytest.approx(expected["loss"], abs=2e-6)
    np.testing.assert_allclose(logits.asnumpy(), expected["logits"], rtol=0, atol=2e-5)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert_summary(parameter.name, gradient.asnumpy(), expected["gradients"][parameter.name])


@pytest.mark.usefixtures("graph_mode")
def test_drop_path_grows_over_the_blocks_and_follows_the_given_scale():
    from mindspore import Tensor

    config = small("linear").with_overrides({"depth": 3})
    model = make(config, 5, drop_path_rate=0.2)
    np.testing.assert_allclose(model.drop_rates, [0.1, 0.1, 0.2, 0.2])
    images = Tensor(rules.picture((2, 3, 32, 32)))
    model.set_train(False)
    plain = model(images).asnumpy()
    model.set_train()
    ones = np.ones((4, 2), np.float32)
    np.testing.assert_allclose(model(images, Tensor(ones)).asnumpy(), plain, atol=1e-6)
    assert np.abs(model(images, Tensor(ones * 0)).asnumpy() - plain).max() > 1e-3


def test_impossible_sizes_are_refused_all_at_once_with_the_nearest_possible():
    with pytest.raises(ValueError, match=r"img_size 220 .* 16 .nearest: 208, 224.*embed_dim 190 .*189, 192"):
        DeiTConfig(img_size=220, embed_dim=190)
    with pytest.raises(ValueError, match="patches of 12 and 16 pixels, not 8"):
        DeiTConfig(patch_size=8, multi_conv=True)
    with pytest.raises(ValueError, match=r"depth must be a positive whole number, not 0; mlp_ratio .* not 'x'"):
        VARIANTS["deit_9"].with_overrides({"depth": 0, "mlp_ratio": "x"})


@pytest.mark.usefixtures("graph_mode")
def test_an_input_of_another_size_is_refused():
    from mindspore import Tensor

    with pytest.raises(ValueError, match="images of 32 pixels"):
        make(small("linear"), 2)(Tensor(np.zeros((1, 3, 36, 36), np.float32)))


@pytest.mark.parametrize("case", CASES)
def test_the_onnx_graph_gives_timms_logits(case):
    import onnxruntime

    from mindcv_crossvit.export.deit_onnx import onnx_model

    config = small(case)
    tensors = {name: rules.weight(name, shape) for name, shape in parameter_shapes(config, 10).items()}
    model = onnx_model(config, tensors, 3).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"images": rules.picture((3, 3, config.img_size, config.img_size))})[0]
    np.testing.assert_allclose(logits, CASES[case]["logits"], rtol=0, atol=2e-5)
