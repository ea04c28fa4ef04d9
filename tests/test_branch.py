"""Scores of one branch's head alone: validate.py --branch."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from mindcv_crossvit.data.sources import open_data
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.evaluation import outcomes
from mindcv_crossvit.export.run import check_branch
from mindcv_crossvit.inference import CheckpointPredictor
from mindcv_crossvit.recipe_file import load_recipe
from mindcv_crossvit.training.checkpoint import Checkpoint, read_checkpoint


@pytest.mark.usefixtures("graph_mode")
def test_a_branchs_score_is_that_of_its_own_head(learned, monkeypatch, capsys):
    from mindspore import Tensor

    import validate

    predictor = CheckpointPredictor(read_checkpoint(learned / "last.safetensors"))
    model = predictor.model
    val = open_data(load_recipe(learned / "recipe.yaml").data).val
    transform = predictor.preprocessing.transform()
    pixels = np.stack([transform(val.read(k)) for k in range(len(val))])
    tokens, _ = model.features(Tensor(pixels))  # compared with timm's elsewhere
    found = {}
    for i, branch in enumerate(("small", "large")):
        weight, bias = model.head[i].weight.asnumpy(), model.head[i].bias.asnumpy()
        losses, positions = outcomes(tokens[i].asnumpy() @ weight.T + bias, np.asarray(val.labels))
        words = ["-c", str(learned / "recipe.yaml"), "--ckpt_path", str(learned), "--branch", branch]
        monkeypatch.setattr(sys, "argv", ["validate.py", *words])
        assert validate.main() == 0
        said = capsys.readouterr().out.splitlines()
        found[branch] = json.loads(said[-1])
        assert found[branch]["branch"] == branch and f"branch          {branch};" in "\n".join(said)
        assert found[branch]["top1"] == pytest.approx(100 * np.mean(positions == 0))
        assert found[branch]["loss"] == pytest.approx(losses.mean(), abs=1e-5)
        assert {"ema_top1", "ema_loss"} <= set(found[branch])
    assert found["small"]["loss"] != found["large"]["loss"]
    summary = json.loads((learned / "summary.json").read_text())
    assert summary["loss"] not in {found["small"]["loss"], found["large"]["loss"]}


@pytest.mark.parametrize(
    "change, branch, message",
    [
        ("model.name=crossvit_9", "smal", "--branch smal: expected small or large; did you mean small?"),
        ("model.name=mindcv/resnet18", "small", "--branch small: mindcv/resnet18 has one head"),
    ],
)
def test_branches_that_are_not_there_are_refused(change, branch, message, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\nmodel: {name: crossvit_9}\n")
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        check_branch(Checkpoint(tmp_path, {}, {}), load_recipe(recipe, [change]), branch)


def test_an_exported_file_has_no_branches(tmp_path):
    from mindcv_crossvit.export.facts import Exported

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\nmodel: {name: crossvit_9}\n")
    with pytest.raises(UserError, match=r"a.onnx gives the mean of the branches' logits"):
        check_branch(Exported(tmp_path / "a.onnx", {}), load_recipe(recipe), "small")
