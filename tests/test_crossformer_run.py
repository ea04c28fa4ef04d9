"""A small CrossFormer++ through the real scripts: train, stop, resume, validate, export, predict; official weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from reference import reference
from running import call, last_json, metrics, same_run, wait_for

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.training.checkpoint import read_checkpoint
from mindcv_crossvit.weights.fit import fit
from mindcv_crossvit.weights.read import read_weights

TINY = ROOT / "tests" / "tiny_crossformer.yaml"
OFFICIAL = ROOT / "tests" / "data" / "weights_crossformer.pth"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cached):
    """The run folder of a finished tiny run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = call("train.py", "-c", TINY, "--output", folder, env=cached)
    assert done.returncode == 0, done.stderr
    assert "0.001; 1 epochs warm-up from 1e-06, cosine to 1e-05" in done.stdout
    return folder


def test_a_stopped_run_resumes_bitwise(trained, cached, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), "-c", str(TINY), "--output", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cached)
    wait_for((folder / "log.txt").exists, process)
    wait_for(lambda: "compiling" in (folder / "log.txt").read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120) and process.returncode == 4
    assert max(m["update"] for m in metrics(folder)) < max(m["update"] for m in metrics(trained))
    done = call("train.py", "-c", TINY, "--output", folder, "--resume", "auto", env=cached)
    assert done.returncode == 0, done.stderr
    same_run(trained, folder)


def test_a_run_is_validated(trained, cached):
    scores = last_json(call("validate.py", "-c", TINY, "--ckpt_path", trained, env=cached))
    assert scores["model"] == "crossformerpp_s"
    assert (scores["top1"], scores["ema_top1"]) == tuple(metrics(trained)[-1][k] for k in ("val_top1", "ema_top1"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.mindir"])
def test_a_run_is_exported_and_predicts(trained, tmp_path, name):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(picture)
    done = call("scripts/export.py", "--ckpt_path", trained, "--output", tmp_path / name, "--pictures", picture)
    assert done.returncode == 0, done.stderr
    answers = []
    for place in (trained, tmp_path / name):
        done = call("predict.py", "--ckpt_path", place, picture, "--json")
        assert done.returncode == 0, done.stderr
        answers.append([c["probability"] for c in json.loads(done.stdout)["classes"]])
    assert answers[0] == pytest.approx(answers[1], abs=1e-6) and len(answers[0]) == 2


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
    assert any("6 tables left out" in note for note in report.notes)
    model.set_train(False)
    logits = model(Tensor(rules.picture((2, 3, 32, 32)))).asnumpy()
    np.testing.assert_allclose(logits, reference("crossformer.json")["checkpoint"]["logits"], rtol=0, atol=5e-6)
    backbone = CrossFormerBackbone(model.config, choose("composed"))
    report = load_weights(backbone, OFFICIAL, partial=True)
    assert not report.missing and sorted(report.left_over) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]


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
