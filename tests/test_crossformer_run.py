"""Official weights of a small CrossFormer: read, fitted to other classes and sizes, trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import ROOT
from reference import reference
from running import call

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.training.checkpoint import read_checkpoint
from mindcv_crossvit.weights.fit import fit
from mindcv_crossvit.weights.read import read_weights

TINY = ROOT / "tests" / "tiny_crossformer.yaml"
OFFICIAL = ROOT / "tests" / "data" / "weights_crossformer.pth"


SETTINGS = reference("crossformer.json")["checkpoint"]["config"]


@pytest.mark.usefixtures("graph_mode")
def test_official_weights_give_the_official_logits_and_fit_the_dense_backbone():
    from mindspore import Tensor

    from mindcv_crossvit import create_model, load_weights
    from mindcv_crossvit.models import golden as rules
    from mindcv_crossvit.models.crossformer import CrossFormerBackbone
    from mindcv_crossvit.ops import choose

    model = create_model("crossformer_t", 5, **SETTINGS)
    report = load_weights(model, OFFICIAL)
    assert len(report.loaded) == len(list(model.get_parameters())) and not report.left_over
    assert any("6 tensors left out" in note for note in report.notes)
    model.set_train(False)
    logits = model(Tensor(rules.picture((2, 3, 32, 32)))).asnumpy()
    np.testing.assert_allclose(logits, reference("crossformer.json")["checkpoint"]["logits"], rtol=0, atol=5e-6)
    backbone = CrossFormerBackbone(model.config, choose("composed"))
    report = load_weights(backbone, OFFICIAL)
    assert not report.missing and sorted(report.left_over) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize(
    "less, more, message",
    [
        ("layers.0.blocks.0.norm1.bias", None, "missing are 1 tensors, first layers.0.blocks.0.norm1.bias"),
        ("patch_embed.norm.weight", "norms.weight", "left over are 1 tensors, first norms.weight"),
        (None, "layers.1.downsample.norm.weight", "left over are 1 tensors, first layers.1.downsample.norm.weight"),
    ],
)
def test_a_dense_backbone_lacks_the_classifiers_layers_and_nothing_else(less, more, message, tmp_path):
    from safetensors.numpy import save_file

    from mindcv_crossvit import load_weights
    from mindcv_crossvit.models.crossformer import CrossFormerBackbone
    from mindcv_crossvit.models.crossformer_config import CrossFormerConfig
    from mindcv_crossvit.ops import choose

    tensors = {n: np.array(t) for n, t in read_weights(OFFICIAL).tensors.items() if n != less}
    save_file(tensors | ({more: np.ones(4, np.float32)} if more else {}), tmp_path / "w.safetensors")
    backbone = CrossFormerBackbone(CrossFormerConfig().with_overrides(SETTINGS), choose("composed"))
    with pytest.raises(UserError, match=message):
        load_weights(backbone, tmp_path / "w.safetensors")


def test_official_weights_fit_a_model_of_another_number_of_classes_and_size():
    from mindcv_crossvit.models.crossformer_config import CrossFormerConfig
    from mindcv_crossvit.models.crossformer_counts import parameter_shapes

    config = CrossFormerConfig().with_overrides({**SETTINGS, "img_size": 64})
    fitted = fit(read_weights(OFFICIAL), parameter_shapes(config, 3), None, new_head=True)
    assert fitted.report.fresh == ["head.weight", "head.bias"] and len(fitted.tensors) == len(fitted.report.loaded)
    with pytest.raises(UserError, match="5 classes in the file, 3 in the model"):
        fit(read_weights(OFFICIAL), parameter_shapes(config, 3), None)


@pytest.mark.slow
def test_a_run_begins_from_official_weights_with_another_number_of_classes(tmp_path, cached):
    options = [word for name, value in SETTINGS.items() for word in ("--set", f"model.{name}={json.dumps(value)}")]
    options += ["--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0", "--set", "optimizer.lr=1e-9"]
    options += ["--set", "schedule.scaled_ends=false", "--set", "schedule.min_lr=0"]
    done = call("train.py", "-c", TINY, "--init-from", OFFICIAL, "--output", tmp_path / "run", *options, env=cached)
    assert done.returncode == 0, done.stderr
    assert "fresh" in done.stdout and "head.weight" in done.stdout
    tensors = read_checkpoint(tmp_path / "run" / "last.safetensors").part("model")
    given = read_weights(OFFICIAL).tensors
    name = "layers.1.blocks.1.attn.pos.pos3.2.weight"
    np.testing.assert_allclose(tensors[name], given[name], rtol=0, atol=1e-6)
    assert tensors["head.weight"].shape[0] == 2
