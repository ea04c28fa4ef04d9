"""scripts/convert_weights.py: there and back, and into the hands of timm and validate.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import weight_files as wf
from conftest import ROOT
from reference import DATA, reference
from test_weights_files import TINY_SHAPES, assert_same, rule_state

sys.path.insert(0, str(ROOT / "scripts"))
import convert_weights

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.mindcv_bridge import timm_name
from mindcv_crossvit.models import golden
from mindcv_crossvit.models.catalog import VARIANTS, parameter_shapes
from mindcv_crossvit.training.checkpoint import read_checkpoint, write_checkpoint
from mindcv_crossvit.weights.read import read_weights


def convert(*arguments: object) -> None:
    assert convert_weights.main([str(a) for a in arguments]) == 0


def names_in(path) -> set[str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        return set(file.keys())


@pytest.mark.parametrize("part, factor", [("model", 1), ("ema", 0.5)])
def test_a_training_checkpoint_to_official_and_timm_names(tmp_path, capsys, part, factor):
    expected = {n: v * np.float32(factor) for n, v in rule_state(TINY_SHAPES).items()}
    for to in ("official", "timm"):
        target = tmp_path / f"{to}.safetensors"
        convert(DATA / "weights_training.pth", target, "--to", to, "--part", part)
        assert read_weights(target).kind == to
        assert_same(read_weights(target).tensors, expected)
    assert "pos_embed_0" in names_in(tmp_path / "timm.safetensors")
    assert "pos_embed.0" in names_in(tmp_path / "official.safetensors")
    said = capsys.readouterr().out
    assert "note      under 'model" in said and "76 tensors, timm" in said
    convert(DATA / "weights_training.pth", tmp_path / "default.safetensors")
    assert "pos_embed.0" in names_in(tmp_path / "default.safetensors")


OTHERS = {  # what a file of each further family's authors looks like, and its picture size, where weights tell one
    "crossformer_t": (lambda path, state: wf.write_legacy(path, state | TABLES), None),
    "cabvit_h_l1": (lambda path, state: wf.write_zip(path, state | counters(state)), 64),
    "deit_tiny": (wf.write_legacy, 64),
}
TABLES = {"layers.0.blocks.0.attn.biases": np.zeros((169, 2), np.float32)}


def counters(state) -> dict[str, np.ndarray]:
    """PyTorch's, of the batches that each batch norm saw."""
    return {n.replace("running_mean", "num_batches_tracked"): np.array(7) for n in state if "running_mean" in n}


def write_official(name: str, path, classes: int = 3) -> dict[str, np.ndarray]:
    """Writes the weights by rule as the authors of a model would; the state without what is no weight."""
    write, size = OTHERS[name]
    config = VARIANTS[name].with_overrides({"img_size": size} if size else {})
    state = rule_state(parameter_shapes(config, classes))
    write(path, state)
    return state


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_keep_their_official_names(name, tmp_path, capsys):
    state = write_official(name, tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    convert(tmp_path / "w.pth", tmp_path / "own.safetensors", "--to", "suite", "--class-names", tmp_path / "names.txt")
    assert read_checkpoint(tmp_path / "own.safetensors").meta["model"]["name"] == name
    convert(tmp_path / "own.safetensors", tmp_path / "official.safetensors")
    assert names_in(tmp_path / "official.safetensors") == set(state)
    assert_same(read_weights(tmp_path / "official.safetensors").tensors, state)
    assert "official, official numerics" in capsys.readouterr().out
    timm = ("w.pth", "timm.safetensors", "--to", "timm")
    if name == "deit_tiny":  # timm's names are its authors'
        convert(*(tmp_path / p if "." in p else p for p in timm))
        assert names_in(tmp_path / "timm.safetensors") == set(state)
    else:
        with pytest.raises(UserError, match=r"timm has no .*; --to official keeps its authors' names"):
            convert(*(tmp_path / p if "." in p else p for p in timm))


@pytest.fixture(scope="module")
def crossvit_9(tmp_path_factory):
    """The weights by rule for 3 classes and 96 x 64 pixels, as timm would save them."""
    config = VARIANTS["crossvit_9"].with_overrides({"img_size": (96, 64)})
    state = rule_state(parameter_shapes(config, 3))
    path = tmp_path_factory.mktemp("convert") / "timm.pth"
    wf.write_zip(path, wf.timm(state))
    return path, state


def test_to_a_checkpoint_that_knows_model_and_classes_and_back(tmp_path, crossvit_9, capsys):
    source, state = crossvit_9
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n\nowl\n")
    convert(source, tmp_path / "own.safetensors", "--to", "suite", "--class-names", names)
    checkpoint = read_checkpoint(tmp_path / "own.safetensors")
    assert checkpoint.meta["model"] == {"name": "crossvit_9", "img_size": [96, 64]}
    assert checkpoint.meta["class_names"] == ["cat", "dog", "owl"]
    assert checkpoint.meta["converted_from"] == {"file": "timm.pth", "kind": "timm"}
    assert_same(checkpoint.part("model"), state)
    assert "model     crossvit_9, 3 classes, img_size=(96, 64)" in capsys.readouterr().out
    convert(tmp_path / "own.safetensors", tmp_path / "timm.safetensors", "--to", "timm")
    assert_same(read_weights(tmp_path / "timm.safetensors").tensors, state)
    convert(tmp_path / "own.safetensors", tmp_path / "again.safetensors", "--to", "suite")  # it knows its classes
    assert read_checkpoint(tmp_path / "again.safetensors").meta["class_names"] == ["cat", "dog", "owl"]


@pytest.mark.parametrize("name", ["crossvit_9", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_foreign_weights_and_the_checkpoint_made_of_them_are_scored_and_asked_alike(
    name, tmp_path, crossvit_9, run_script
):
    """And exported, the other families' besides: CrossViT's are in test_export.py."""
    from PIL import Image

    source = crossvit_9[0] if name == "crossvit_9" else tmp_path / "w.pth"
    size = (96, 64) if name == "crossvit_9" else OTHERS[name][1]
    if name != "crossvit_9":
        write_official(name, source)
    rng = np.random.default_rng(0)
    for animal in ("cat", "dog", "owl"):
        (tmp_path / "data" / animal).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(256, size=(96, 96, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / animal / f"{i}.png")
    convert(source, tmp_path / "own.safetensors", "--to", "suite", "--class-names", tmp_path / "data")
    recipe = ("-c", ROOT / f"configs/{name}_ascend.yaml", "--data_dir", tmp_path / "data", "--distribute", "False")
    changes = ("data.workers=0", "data.val_fraction=0.2", "evaluate.batch=3")
    changes += (f"model.img_size={json.dumps(size)}",) if size else ()
    model = [word for change in changes for word in ("--set", change)]
    scores, answers = [], []
    for path in (tmp_path / "own.safetensors", source):
        done = run_script("validate.py", *recipe, *model, "--ckpt_path", path)
        assert done.returncode == 0, done.stderr
        scores.append({**json.loads(done.stdout.splitlines()[-1]), "checkpoint": None})
        done = run_script("predict.py", "--ckpt_path", path, tmp_path / "data" / "cat" / "0.png", "--json")
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["classes"])
    assert scores[0] == scores[1]
    assert scores[0]["images"] == 3 and scores[0]["model"] == name and np.isfinite(scores[0]["loss"])
    assert [a["index"] for a in answers[0]] == [a["index"] for a in answers[1]]
    assert {a["class"] for a in answers[0]} == {"cat", "dog", "owl"} and answers[1][0]["class"] in "012"
    if size:
        done = run_script("validate.py", *recipe, "--set", "data.val_fraction=0.2", "--ckpt_path", source)
        assert done.returncode == 2 and f"model.img_size is {size} in the checkpoint, " in done.stderr
    if name != "crossvit_9":
        done = run_script("scripts/export.py", "--ckpt_path", source, "--output", tmp_path / "w.onnx")
        assert done.returncode == 0, done.stderr
        done = run_script("predict.py", "--ckpt_path", tmp_path / "w.onnx", tmp_path / "data/cat/0.png", "--json")
        exported = json.loads(done.stdout)["classes"]
        assert [a["index"] for a in exported] == [a["index"] for a in answers[1]]
        given, found = ([a["probability"] for a in each] for each in (answers[1], exported))
        assert found == pytest.approx(given, abs=1e-5)


def test_a_recipe_says_which_of_two_models_with_the_same_tensors(tmp_path):
    from mindcv_crossvit.export.run import read_trained

    wf.write_zip(tmp_path / "w.pth", rule_state(parameter_shapes(VARIANTS["cabvit_p_l0"], 3)))
    found = [read_trained(tmp_path / "w.pth", None, ("a", "b", "c"), name) for name in (None, "cabvit_p_l0_224")]
    assert [f.meta["model"] for f in found] == [{"name": "deit_tiny"}, {"name": "cabvit_p_l0"}]


def test_mindcvs_weights_go_into_a_checkpoint_only(tmp_path):
    state = rule_state(parameter_shapes(VARIANTS["crossvit_9"], 3))
    source, target = tmp_path / "own.safetensors", tmp_path / "new.safetensors"
    meta = {"model": {"name": "crossvit_9", "numerics": "mindcv"}, "class_names": ["a", "b", "c"], "update": 9}
    write_checkpoint(source, {f"model.{n}": v for n, v in state.items()}, meta)
    for to in ("official", "timm"):
        with pytest.raises(UserError, match="weights for MindCV's numerics would give other logits in PyTorch"):
            convert(source, target, "--to", to)
    convert(source, target, "--to", "suite")
    assert read_checkpoint(target).meta["model"] == meta["model"]


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("no model of this suite has these shapes; the nearest is", (DATA / "weights_timm.pth", "--to", "suite")),
        ("a checkpoint knows its classes and these weights do not", ("SOURCE", "--to", "suite")),
        ("--class-names: 2 classes, the weights are for 3", ("SOURCE", "--to", "suite", "--class-names", "two.txt")),
        ("--class-names: none.txt cannot be read", ("SOURCE", "--to", "suite", "--class-names", "none.txt")),
        ("not the weights of a CrossViT, CrossFormer, CabViT-H or DeiT", (DATA / "weights_odd.pth",)),
        (r"it needs posix\.mkdir", (DATA / "weights_hostile.pth",)),
        ("one set of weights and no ema part", ("SOURCE", "--part", "ema")),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_written(message, arguments, tmp_path, monkeypatch, crossvit_9):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.txt").write_text("a\nb\n")
    source, *rest = (crossvit_9[0] if a == "SOURCE" else a for a in arguments)
    with pytest.raises(UserError, match=message):
        convert(source, "new.safetensors", *rest)
    assert [p.name for p in tmp_path.iterdir()] == ["two.txt"]


def test_the_new_file_has_its_name_and_replaces_nothing(tmp_path):
    with pytest.raises(UserError, match=r"name it .*a\.safetensors"):
        convert(DATA / "weights_timm.pth", tmp_path / "a.pth")
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(UserError, match="exists; name a new file"):
        convert(DATA / "weights_timm.pth", tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="could not be written"):
        convert(DATA / "weights_timm.pth", tmp_path / "missing" / "a.safetensors")


def test_the_script_ends_with_code_2_and_a_plain_line(run_script, tmp_path):
    done = run_script("scripts/convert_weights.py", DATA / "weights_hostile.pth", tmp_path / "a.safetensors")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


PEER = os.environ.get("CROSSVIT_PEER_PYTHON")
TIMM = f"""
import sys
sys.path.insert(0, {str(DATA)!r})
import make_references
kept = make_references.allow_bare_torchvision()
import numpy as np, timm, torch
from safetensors.torch import load_file
model = timm.create_model(sys.argv[1]).eval()
model.load_state_dict(load_file(sys.argv[2]), strict=True)
with torch.no_grad():
    np.save(sys.argv[4], model(torch.from_numpy(np.load(sys.argv[3]))).numpy())
"""


@pytest.mark.skipif(not PEER, reason="CROSSVIT_PEER_PYTHON names no Python with timm and PyTorch")
@pytest.mark.parametrize(
    "name, peer", [("crossvit_9", "crossvit_9_240"), ("crossvit_9_dagger", "crossvit_9_dagger_240")]
)
def test_timm_takes_our_weights_and_gives_the_same_logits(name, peer, tmp_path):
    wf.write_suite(tmp_path / "own.safetensors", rule_state(parameter_shapes(VARIANTS[name])))
    convert(tmp_path / "own.safetensors", tmp_path / "timm.safetensors", "--to", "timm")
    np.save(tmp_path / "picture.npy", golden.picture((2, 3, 240, 240)))
    files = [str(tmp_path / f) for f in ("timm.safetensors", "picture.npy", "logits.npy")]
    subprocess.run([str(PEER), "-c", TIMM, timm_name(name), *files], check=True)
    found = np.load(tmp_path / "logits.npy")
    row = next(r for r in reference("golden.json")["rows"] if r["model"] == f"{name}_224" and not r["overrides"])
    np.testing.assert_allclose([*found[0, :4], found[1, 0]], [*row["first"], row["second"]], rtol=0, atol=5e-5)
