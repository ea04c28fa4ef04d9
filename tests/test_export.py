"""Exported files against the official PyTorch logits, and the scripts that make and take them, run as a user does."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from running import call, last_json

from mindcv_crossvit.data.sources import open_data
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.export.crossvit_onnx import onnx_model
from mindcv_crossvit.export.facts import beside, check_target, describe, need, read_exported, write_facts
from mindcv_crossvit.export.make import Differs, Request, compare, export
from mindcv_crossvit.export.run import ExportedModel, choose_runtime, open_exported, read_trained
from mindcv_crossvit.inference import CheckpointPredictor
from mindcv_crossvit.models import golden
from mindcv_crossvit.models.catalog import resolve
from mindcv_crossvit.models.crossvit_config import VARIANTS
from mindcv_crossvit.models.shapes import parameter_shapes
from mindcv_crossvit.recipe import Data
from mindcv_crossvit.training.checkpoint import read_checkpoint, write_checkpoint

GOLDEN = json.loads((ROOT / "tests" / "data" / "golden.json").read_text())["rows"]
QUICK = ("crossvit_9_224", "crossvit_9_dagger_224", "crossvit_15_dagger_384")
BROKEN = [("a.onnx", "onnxruntime"), ("a.onnx", "openvino"), ("a.mindir", "MindSpore")]


def cases():
    for row in GOLDEN:
        quick = row["model"] in QUICK or "[1, 4, 2]" in str(row["overrides"])
        yield pytest.param(row, id=f"{row['model']}{row['overrides'] or ''}", marks=[] if quick else [pytest.mark.slow])


def run_onnx(model, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize("row", cases())
def test_the_onnx_graph_gives_the_official_logits(row):
    config = VARIANTS[resolve(row["model"])].with_overrides(row["overrides"])
    tensors = {name: golden.weight(name, shape) for name, shape in parameter_shapes(config).items()}
    logits = run_onnx(onnx_model(config, tensors, 2), golden.picture((2, 3, *row["input"])))
    np.testing.assert_allclose(logits[0, :4], row["first"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(logits[1, 0], row["second"], rtol=0, atol=5e-5)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize(
    "overrides",
    [
        {"numerics": "mindcv", "multi_conv": True, "patch_size": (12, 16), "qkv_bias": False},
        pytest.param({"numerics": "mindcv"}, marks=pytest.mark.slow),
        pytest.param({"qkv_bias": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_onnx_graph_follows_numerics_and_biases(overrides):
    from mindspore import Tensor

    from mindcv_crossvit import create_model

    sizes = {"img_size": (48, 32), "patch_size": (8, 16), "embed_dim": (16, 32), "num_heads": (2, 4)}
    model = create_model("crossvit_9", 5, **{**sizes, "depth": ((1, 2, 2), (1, 1, 0)), **overrides})
    model.set_train(False)
    golden.fill(model)
    images = golden.picture((2, 3, 48, 48))
    tensors = {p.name: p.asnumpy() for p in model.get_parameters()}
    expected = model(Tensor(images)).asnumpy()
    np.testing.assert_allclose(run_onnx(onnx_model(model.config, tensors, 2), images), expected, rtol=0, atol=2e-5)
    other = onnx_model(replace(model.config, numerics="official"), tensors, 2)
    if "numerics" in overrides:
        assert np.abs(run_onnx(other, images) - expected).max() > 1e-4


@pytest.fixture(scope="module")
def place(tmp_path_factory, learned) -> Path:
    """A folder with a trained run `run`, pictures `digits` and the files exported from it."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(learned, folder / "run")
    val = open_data(Data(source="digits")).val
    (folder / "digits").mkdir()
    for index in range(20):
        val.read(index).save(folder / "digits" / f"{index:02d}.png")
    for name, options in {
        "digits.onnx": ("--batch", 7, "--pictures", "digits"),
        "average.onnx": ("--weights", "ema"),
        "digits.mindir": ("--pictures", "digits"),
    }.items():
        done = call("scripts/export.py", "--ckpt_path", "run", "--output", name, *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert f"written  {name}" in done.stdout and "random input" in done.stdout
        assert ("on 20 pictures" in done.stdout) == ("--pictures" in options)
    return folder


def test_checkpoint_onnx_and_mindir_give_the_same_score(place):
    score = ("validate.py", "-c", place / "run" / "recipe.yaml", "--ckpt_path")
    whole = last_json(call(*score, "run", cwd=place))
    assert whole["ema_loss"] != whole["loss"] and 15 < whole["top1"] < 100
    runs = {
        "digits.onnx": ("--runtime", "onnxruntime"),
        "digits.mindir": ("--set", "evaluate.batch=50"),
        "average.onnx": ("--runtime", "openvino"),
    }
    for name, options in runs.items():
        found = last_json(call(*score, name, *options, cwd=place))
        prefix = "ema_" if name == "average.onnx" else ""
        assert [found["top1"], found["top5"]] == [whole[f"{prefix}top1"], whole[f"{prefix}top5"]], name
        assert found["loss"] == pytest.approx(whole[f"{prefix}loss"], abs=1e-6), name
        assert (found["images"], found["checkpoint"], found["model"]) == (360, name, "crossvit_9")


def test_predict_answers_alike_and_needs_no_mindspore_for_onnx(place):
    answers = {}
    env = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    for name in ("run", "digits.onnx", "digits.mindir"):
        done = call("predict.py", "--ckpt_path", name, "digits", "--json", "--top", 3, cwd=place, env=env)
        assert done.returncode == 0, done.stderr
        answers[name] = [json.loads(line) for line in done.stdout.splitlines()]
        assert ("| mindspore" in done.stderr) == (name != "digits.onnx")
    for name in ("digits.onnx", "digits.mindir"):
        for one, two in zip(answers["run"], answers[name], strict=True):
            assert [c["class"] for c in one["classes"]] == [c["class"] for c in two["classes"]]
            expected = [c["probability"] for c in one["classes"]]
            assert [c["probability"] for c in two["classes"]] == pytest.approx(expected, abs=1e-6)


def test_the_facts_beside_a_file(place):
    meta, checkpoint = read_exported(place / "digits.onnx").meta, read_checkpoint(place / "run" / "last.safetensors")
    assert meta["class_names"] == [str(d) for d in range(10)] and meta["model"] == checkpoint.meta["model"]
    assert meta["checkpoint"]["checksum"] == checkpoint.checksum and meta["update"] == checkpoint.meta["update"]
    assert meta["preprocessing"]["image_size"] == 24 and meta["preprocessing"]["resized_shorter_side"] == 30
    assert meta["preprocessing"]["mean"] == [0.3, 0.3, 0.3] and meta["batch"] == 7
    assert 0 < meta["check"]["pictures"] < 1e-4 and meta["check"]["count"] == 20
    assert read_exported(place / "average.onnx").meta["weights"] == "ema"
    assert read_exported(place / "digits.mindir").meta["batch"] is None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_batch_goes_through_a_fixed_one(place, runtime):
    model = open_exported(place / "digits.onnx", runtime)
    images = golden.picture((9, 3, 24, 24))
    logits = model.logits(images)
    assert logits.shape == (9, 10)
    for k in range(9):
        np.testing.assert_allclose(model.logits(images[k : k + 1]), logits[k : k + 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["new.onnx", "new.mindir"])
def test_a_failed_check_leaves_no_file(place, tmp_path, name):
    options = ("--output", tmp_path / name, "--check", "1e-12", "--pictures", place / "digits")
    done = call("scripts/export.py", "--ckpt_path", place / "run", *options)
    assert done.returncode == 6 and "is allowed (--check)" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def request_for(place: Path, target: Path) -> Request:
    checkpoint = read_checkpoint(place / "run" / "last.safetensors")
    pictures = sorted((place / "digits").iterdir())
    return Request(CheckpointPredictor(checkpoint), describe(checkpoint, "model", 1), target, 1e-4, pictures)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("change, said", [(0.001, "5.0e-04"), (np.nan, "inf")])
def test_a_writer_that_changes_the_logits_is_caught_and_leaves_no_file(place, tmp_path, change, said):
    import onnx

    def write(path, request):
        model = request.predictor.model
        tensors = {p.name: p.asnumpy() for p in model.get_parameters()}
        tensors["head.1.bias"] = tensors["head.1.bias"] + np.float32(change)
        onnx.save(onnx_model(model.config, tensors, 1), str(path))
        return "onnxruntime"

    with pytest.raises(Differs, match=f"differ from the checkpoint's by up to {said} on random input"):
        export(request_for(place, tmp_path / "new.onnx"), write)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("graph_mode")
def test_pictures_tell_what_noise_does_not(place, tmp_path):
    request = request_for(place, tmp_path / "new.onnx")

    class WrongOnPictures(ExportedModel):
        def __init__(self):
            self.runtime, self.preprocessing = "onnxruntime", request.predictor.preprocessing

        def logits(self, images):
            return request.predictor.logits(images) + 0.01 * (images.min((1, 2, 3)) > -2)[:, None]  # noise goes lower

    assert compare(replace(request, pictures=()), WrongOnPictures())["random"] < 1e-6
    with pytest.raises(Differs, match=r"1\.0e-02 on real pictures"):
        compare(request, WrongOnPictures())


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda file, facts: facts.unlink(), "digits.onnx.json: missing"),
        (lambda file, facts: facts.write_text("{"), "not readable as JSON"),
        (lambda file, facts: facts.write_text('{"format": "other"}'), "not the facts of an exported file"),
        (lambda file, facts: facts.write_text('{"format": "mindcv_crossvit export 1"}'), "without model, class_names"),
        (lambda file, facts: file.write_bytes(file.read_bytes()[:-1]), "the facts of another file"),
        (lambda file, facts: file.unlink(), "no such file"),
    ],
)
def test_missing_and_foreign_facts_are_refused(place, tmp_path, damage, expected):
    file = tmp_path / "digits.onnx"
    for name in (file, beside(file)):
        shutil.copy(place / name.name, name)
    read_exported(file)
    damage(file, beside(file))
    with pytest.raises(UserError, match=expected):
        open_exported(file)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("name, runtime", BROKEN)
def test_a_file_that_is_no_model_is_refused_by_name(place, tmp_path, name, runtime):
    (tmp_path / name).write_bytes(b"no model")
    write_facts(tmp_path / name, read_exported(place / "digits.onnx").meta)
    with pytest.raises(UserError, match=f"{name}: {runtime} cannot read it"):
        open_exported(tmp_path / name, runtime.lower())


def test_what_cannot_be_run_is_said(place, monkeypatch):
    with pytest.raises(UserError, match=r"--runtime openvin: .* did you mean openvino"):
        choose_runtime(place / "digits.onnx", "openvin")
    with pytest.raises(UserError, match="is run by mindspore"):
        choose_runtime(place / "digits.mindir", "openvino")
    with pytest.raises(UserError, match="is for ONNX files"):
        read_trained(place / "run", "openvino")
    with pytest.raises(UserError, match=r"no_such_package is needed .* pip install .\[onnx\]"):
        need("no_such_package")
    monkeypatch.setattr("mindcv_crossvit.export.run.find_spec", lambda name: name == "openvino")
    assert choose_runtime(place / "digits.onnx", None) == "openvino"


def test_what_cannot_be_exported_is_said_at_once(place, tmp_path):
    checkpoint = read_checkpoint(place / "run" / "last.safetensors")
    zoo = replace(checkpoint, meta={**checkpoint.meta, "model": {"name": "mindcv/resnet50"}})
    bare = replace(checkpoint, tensors={n: t for n, t in checkpoint.tensors.items() if not n.startswith("ema.")})
    for given, expected in [
        ((tmp_path / "a.onx", checkpoint, "model", None), ["ends in .onnx or .mindir"]),
        ((tmp_path / "no" / "a.onnx", checkpoint, "model", 0), ["no folder", "expected a whole number from 1"]),
        ((place / "digits.onnx", checkpoint, "model", None), ["digits.onnx: exists", "digits.onnx.json: exists"]),
        ((tmp_path / "a.mindir", checkpoint, "model", 2), ["takes any batch"]),
        ((tmp_path / "a.onnx", zoo, "model", None), ["not for mindcv/resnet50; use .mindir"]),
        ((tmp_path / "a.onnx", bare, "ema", None), ["has no moving average"]),
    ]:
        with pytest.raises(UserError) as error:
            check_target(*given)
        problems = error.value.problems
        assert len(problems) == len(expected) and all(e in p for e, p in zip(expected, problems, strict=True))
    done = call("scripts/export.py", "--ckpt_path", place / "run", "--output", place / "digits.onnx")
    assert done.returncode == 2 and "exists" in done.stderr


def test_an_exported_file_of_another_model_is_refused(place):
    recipe = place / "run" / "recipe.yaml"
    done = call("validate.py", "-c", recipe, "--ckpt_path", place / "digits.onnx", "--set", "model.img_size=[16,16]")
    assert done.returncode == 2 and "digits.onnx: model.img_size is" in done.stderr
    for options, expected in ((("--weights", "ema"), "was exported"), (("--attention", "x"), "gives logits only")):
        done = call("predict.py", "--ckpt_path", place / "digits.onnx", place / "digits", *options, cwd=place)
        assert done.returncode == 2 and expected.split()[-1] in done.stderr


def test_a_model_of_the_zoo_is_exported_as_mindir(tmp_path, place):
    from mindcv_crossvit import create_model

    name = "mindcv/squeezenet1_1"
    model = create_model(name, 10)
    checkpoint = read_checkpoint(place / "run" / "last.safetensors")
    recipe = {**checkpoint.meta["recipe"], "model": {"name": name, "input_size": 64}}
    meta = {**checkpoint.meta, "recipe": recipe, "model": {"name": name}}
    tensors = {f"model.{p.name}": p.asnumpy() for p in model.get_parameters()}
    write_checkpoint(tmp_path / "zoo.safetensors", tensors, meta)
    done = call("scripts/export.py", "--ckpt_path", "zoo.safetensors", "--output", "zoo.mindir", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_exported(tmp_path / "zoo.mindir").meta["preprocessing"]["image_size"] == 64


def test_half_precision_training_is_exported_in_float32(place, tmp_path):
    checkpoint = read_checkpoint(place / "run" / "last.safetensors")
    recipe = {**checkpoint.meta["recipe"], "run": {**checkpoint.meta["recipe"]["run"], "precision": "O2"}}
    write_checkpoint(tmp_path / "half.safetensors", checkpoint.tensors, {**checkpoint.meta, "recipe": recipe})
    done = call("scripts/export.py", "--ckpt_path", "half.safetensors", "--output", "a.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    images = golden.picture((2, 3, 24, 24))
    one, two = (open_exported(p) for p in (tmp_path / "a.onnx", place / "digits.onnx"))
    np.testing.assert_allclose(one.logits(images), two.logits(images), rtol=0, atol=1e-6)


def test_an_exported_file_is_not_exported_again(place, tmp_path):
    done = call("scripts/export.py", "--ckpt_path", place / "digits.onnx", "--output", tmp_path / "a.mindir")
    assert done.returncode == 2 and "give the checkpoint it came from" in done.stderr


@pytest.mark.slow
def test_official_weights_are_exported(tmp_path):
    import onnx
    from safetensors.numpy import save_file

    config, row = VARIANTS["crossvit_9"], next(r for r in GOLDEN if r["model"] == "crossvit_9_224")
    shapes = parameter_shapes(config)
    save_file({name: golden.weight(name, shape) for name, shape in shapes.items()}, tmp_path / "w.safetensors")
    done = call("scripts/export.py", "--ckpt_path", "w.safetensors", "--output", "w.onnx", "--batch", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_exported(tmp_path / "w.onnx").meta["checkpoint"]["converted_from"]["file"] == "w.safetensors"
    logits = run_onnx(onnx.load(str(tmp_path / "w.onnx")), golden.picture((2, 3, 240, 240)))
    np.testing.assert_allclose(logits[0, :4], row["first"], rtol=0, atol=5e-5)
