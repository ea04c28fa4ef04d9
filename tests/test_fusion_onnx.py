"""ONNX graphs of every fusion and embedding against the functional PyTorch program's logits."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import CASES

from mindcv_crossvit.export.crossvit_onnx import onnx_model
from mindcv_crossvit.models import golden
from mindcv_crossvit.models.catalog import parameter_shapes
from mindcv_crossvit.models.crossvit_config import VARIANTS


@pytest.mark.parametrize("case", CASES)
def test_the_onnx_graph_gives_pytorchs_logits(case):
    import onnxruntime

    expected = CASES[case]
    config = VARIANTS["crossvit_9"].with_overrides(expected["config"])
    tensors = {name: golden.weight(name, shape) for name, shape in parameter_shapes(config, 10).items()}
    images = golden.picture((3, 3, config.img_size[0], config.img_size[0]))
    graph = onnx_model(config, tensors, 3).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"images": images})[0]
    np.testing.assert_allclose(logits[1, :4], expected["logits"], rtol=0, atol=1e-5)
    halves = [expected[branch] for branch in ("small", "large")]
    np.testing.assert_allclose(logits[0, :4], np.mean(halves, 0), rtol=0, atol=1e-5)
