"""ONNX and MindIR files of every fusion and embedding against the functional PyTorch program's logits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from small_models import CASES, built

from mindcv_crossvit.export.crossvit_onnx import onnx_model
from mindcv_crossvit.export.make import writer
from mindcv_crossvit.models import golden
from mindcv_crossvit.models.catalog import parameter_shapes
from mindcv_crossvit.models.crossvit_config import VARIANTS

QUICK = ("pairwise",)


def assert_pytorchs(logits: np.ndarray, case: str) -> None:
    halves = [CASES[case][branch] for branch in ("small", "large")]
    np.testing.assert_allclose(logits[1, :4], CASES[case]["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits[0, :4], np.mean(halves, 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_onnx_graph_gives_pytorchs_logits(case):
    import onnxruntime

    config = VARIANTS["crossvit_9"].with_overrides(CASES[case]["config"])
    tensors = {name: golden.weight(name, shape) for name, shape in parameter_shapes(config, 10).items()}
    graph = onnx_model(config, tensors, 3).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    images = golden.picture((3, 3, config.img_size[0], config.img_size[0]))
    assert_pytorchs(session.run(None, {"images": images})[0], case)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in CASES])
def test_the_mindir_file_gives_pytorchs_logits(case, tmp_path):
    """For any batch."""
    from mindspore import Tensor, load, nn

    model = built(CASES[case]["config"], "auto")
    model.set_train(False)
    predictor = SimpleNamespace(model=model, preprocessing=SimpleNamespace(image_size=model.input_size))
    path = tmp_path / "a.mindir"
    writer(path)(path, SimpleNamespace(predictor=predictor))
    images = golden.picture((3, 3, model.input_size, model.input_size))
    graph = nn.GraphCell(load(str(path)))
    logits = graph(Tensor(images)).asnumpy()
    assert_pytorchs(logits, case)
    np.testing.assert_allclose(graph(Tensor(images[:2])).asnumpy(), logits[:2], rtol=0, atol=1e-6)
