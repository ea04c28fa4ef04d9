"""Files that others may have written: nothing in them is run, no path in them is written to, and all are answered."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from running import TINY, call

from mindcv_crossvit.adapt import adapt
from mindcv_crossvit.data.packed import CONTENTS, open_packed
from mindcv_crossvit.data.sources import open_data
from mindcv_crossvit.errors import UserError, printable
from mindcv_crossvit.inference import recipe_of
from mindcv_crossvit.journal import choose_folder
from mindcv_crossvit.recipe import Data
from mindcv_crossvit.recipe_file import load_recipe
from mindcv_crossvit.training.checkpoint import read_checkpoint, write_checkpoint
from mindcv_crossvit.weights.read import read_weights

OUTSIDE = "../../escaped"
RECIPE = {"name": "x", "model": {"name": "crossvit_9"}}
META = {"model": {"name": "crossvit_9"}, "class_names": ["a", "b"], "update": 3, "recipe": RECIPE}
WHOLE = {**META, "world": 1, "applied": 3, "best_top1": 1.0, "best_update": 3, "skipped": 0}
WHOLE |= {"global_batch": 256, "train_images": 1437, "steps_per_epoch": 5}
WHOLE |= {"loss_scale": {"dynamic": False, "scale": 1.0, "good": 0}}


def checkpoint(folder: Path, **changes: object) -> Path:
    """A checkpoint with a good checksum, and anything in it."""
    path = folder / "given.safetensors"
    write_checkpoint(path, {f"model.{OUTSIDE}": np.zeros(2, np.float32)}, {**WHOLE, **changes})
    return path


@pytest.mark.parametrize("script", ["train.py", "init", "validate.py", "predict.py", "export", "convert"])
def test_paths_in_a_checkpoint_are_not_written_to(script, tmp_path):
    """Hostile names for the run, its folder, its classes and its tensors, offered to every script that reads one."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    recipe = {**RECIPE, "name": OUTSIDE, "run": {"output": str(tmp_path / "escaped")}, "data": {"dir": "/etc"}}
    path = checkpoint(inside, recipe=recipe, class_names=[OUTSIDE, "/escaped"], model={"name": "crossvit_9"})
    before = sorted(tmp_path.rglob("*"))
    arguments: dict[str, list[object]] = {
        "train.py": ["train.py", "-c", TINY, "--resume", path],
        "init": ["train.py", "-c", TINY, "--init-from", path],
        "validate.py": ["validate.py", "-c", TINY, "--ckpt_path", path],
        "predict.py": ["predict.py", ROOT / "docs" / "digits.png", "--ckpt_path", path, "--attention", "drawn"],
        "export": ["scripts/export.py", "--ckpt_path", path, "--output", "out.onnx"],
        "convert": ["scripts/convert_weights.py", path, "out.safetensors", "--to", "suite"],
    }
    done = call(*arguments[script], cwd=inside)  # type: ignore[arg-type]
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr and sorted(tmp_path.rglob("*")) == before


ODD_META: list[dict[str, object]] = [
    {"class_names": None},
    {"class_names": [1, 2]},
    {"class_names": {"a": 1}},
    {"model": "crossvit_9"},
    {"model": {}},
    {"model": {"name": ["x"]}},
    {"update": "7"},
    {"update": -1},
    {"update": True},
    {"update": 10**30},
    {"recipe": [1]},
    {"world": 0},
    {"steps_per_epoch": 0},
    {"train_images": "many"},
    {"best_update": -1},
    {"best_top1": "high"},
    {"best_top1": float("nan")},
    {"loss_scale": {"dynamic": True}},
    {"loss_scale": {"dynamic": True, "scale": -1, "good": 0}},
    {"loss_scale": {"dynamic": True, "scale": 1, "good": 0, "more": 1}},
]


@pytest.mark.parametrize("changes", ODD_META, ids=str)
def test_a_checkpoint_that_says_odd_things_is_refused_by_name(changes, tmp_path):
    path = checkpoint(tmp_path, **changes)
    with pytest.raises(UserError, match=rf"given\.safetensors: no checkpoint of this suite: its {next(iter(changes))}"):
        read_checkpoint(path)


def test_a_checkpoint_whose_description_is_no_description_is_refused(tmp_path):
    from safetensors.numpy import save_file

    from mindcv_crossvit.training.checkpoint import HEADER_KEY, _checksum

    tensors = {"model.a": np.zeros(2, np.float32)}
    for text in ("[1]", "3", "{", '{"a":' * 5000, "[" * 100_000, '"x"'):
        save_file(tensors, tmp_path / "x.safetensors", {HEADER_KEY: text, "checksum": _checksum(tensors, text)})
        with pytest.raises(UserError, match=r"x\.safetensors: what it says of itself cannot be read"):
            read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", [OUTSIDE, "..", "a/b", "/etc/x", "a\\b", "x\0y", "x\ny", "a" * 300, ""])
def test_a_run_is_not_called_so_that_it_leaves_its_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(json.dumps({**RECIPE, "name": name}))
    with pytest.raises(UserError, match="name: "):
        choose_folder(load_recipe("r.yaml"))


@pytest.mark.parametrize("output", ["/tmp/escaped", "../escaped", "link/../escaped", "~/escaped", "~root", ".."])
def test_a_recipe_file_names_no_run_folder_elsewhere_the_command_line_may(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(json.dumps({**RECIPE, "run": {"output": output}}))
    with pytest.raises(UserError, match=r"^r\.yaml: run\.output: expected a folder below the working folder, got "):
        load_recipe("r.yaml")
    for recipe in (
        load_recipe("r.yaml", [f"run.output={output}"]),
        load_recipe("r.yaml", ["run={output: inside}"]),
        load_recipe("r.yaml", [], {"run.output": output}),
    ):
        assert recipe.run.output in (output, "inside")
    (tmp_path / "r.yaml").write_text(json.dumps({**RECIPE, "run": {"output": "./runs/mine"}}))
    assert choose_folder(load_recipe("r.yaml")) == Path("runs/mine")


def test_the_recipe_in_a_checkpoint_is_checked_like_any_other(tmp_path):
    for recipe in ({**RECIPE, "name": OUTSIDE}, {**RECIPE, "data": {"workers": 10**9}}, {"model": {"name": "rm -rf"}}):
        with pytest.raises(UserError, match="the recipe in it: "):
            recipe_of(read_checkpoint(checkpoint(tmp_path, recipe=recipe)))


@pytest.mark.parametrize(
    "key, value",
    [("batch.global_batch", "many"), ("batch.global_batch", -8), ("schedule.epochs", 1e99), ("ema.decay", [])],
)
def test_what_a_run_decided_is_not_believed_when_it_cannot_be(key, value):
    section, name = key.split(".")
    recipe = load_recipe(TINY, [f"{key}=auto"])
    with pytest.raises(UserError, match=rf"the recipe that the run began with: {key}: expected"):
        adapt(recipe, open_data(Data(source="digits")), False, {section: {name: value}})


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "x.pth", "x.onnx", "x.mindir", "x"])
def test_no_pickle_is_executed(name, tmp_path):
    path, mark = tmp_path / name, tmp_path / "executed"
    path.write_bytes(pickle.dumps({"model": {"head.0.weight": Payload(mark)}}, protocol=2))
    for read in (read_checkpoint, read_weights):
        with pytest.raises(UserError, match=re.escape(name)):
            read(path)
    for option in ("--resume", "--init-from") if name == "x.pth" else ():
        done = call("train.py", "-c", TINY, option, path, cwd=tmp_path)
        assert done.returncode == 2 and f"{path}: " in done.stderr and "Traceback" not in done.stderr
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # it would have


def test_no_code_reads_a_pickle_or_runs_a_text():
    forbidden = (
        r"pickle\.loads?\(|torch\.load|np\.load\(|joblib|\beval\(|\bexec\(|os\.system|shell=True|yaml\.(unsafe_)?load\("
    )
    forbidden += r"|\bload_checkpoint\(|import pickle\b|from pickle\b|import marshal|import dill|import shelve"
    for path in [*(ROOT / "mindcv_crossvit").rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        assert not re.search(forbidden, path.read_text(encoding="utf-8")), path


LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}, *a{k - 1}]\n" for k in range(1, 40))


@pytest.mark.parametrize(
    "text", [LAUGHS, "a: &a [*a]", "a: &a {b: *a}", "&a {*a : 1}", "[" * 3000, "a: " + "x: " * 200]
)
def test_yaml_that_grows_or_contains_itself_is_one_message(text, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml: not a readable YAML file: "):
        load_recipe(tmp_path / "r.yaml")


def test_yaml_runs_nothing_and_reads_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    mark = tmp_path / "executed"
    tagged = f"!!python/object/apply:os.mkdir ['{mark}']"
    with pytest.raises(UserError, match="not readable as YAML"):
        load_recipe(TINY, [f"name={tagged}"])
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE).replace('"x"', tagged))
    with pytest.raises(UserError, match="not a readable YAML file"):
        load_recipe(tmp_path / "r.yaml")
    assert not mark.exists()
    (tmp_path / "r.yaml").write_text(json.dumps({**RECIPE, "data": {"dir": "${oc.env:SECRET}"}}))
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.data.dir == "${oc.env:SECRET}"
    with pytest.raises(UserError) as caught:
        open_data(recipe.data)
    assert "hunter2" not in str(caught.value)


def test_a_pack_reads_no_file_outside_its_folder(tmp_path):
    entry = {"file": "../outside", "pictures": 1, "bytes": 1, "index_sha256": "", "source_sha256": ""}
    (tmp_path / CONTENTS).write_text(json.dumps({"pictures": 1, "files": [entry]}))
    with pytest.raises(UserError, match="which is not in its folder"):
        open_packed(tmp_path)


def test_what_is_said_of_strange_names_is_one_line_that_a_terminal_takes():
    assert printable("a\x1b[2J\n\udcff猫 b") == r"a\x1b[2J\n\udcff猫 b"
    code = "from mindcv_crossvit.errors import UserError, run_main\ndef main():\n    print('猫')\n"
    code += "    raise UserError('猫\\x1b[2J\\nb')\n"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code + "run_main(main)"], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 2 and done.stdout == b"\\u732b\n", done
    assert done.stderr == b"error: \\u732b\\x1b[2J\\nb\n"
