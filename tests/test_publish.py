"""A published folder: its card's numbers against recomputation, its weights loaded again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from running import TINY, call
from safetensors.numpy import load_file

from mindcv_crossvit.recipe_file import load_recipe
from mindcv_crossvit.training.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def published(finished, tmp_path_factory) -> Path:
    """Its last checkpoint, published."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    done = call("scripts/publish.py", finished, folder, "--licence", "cc-by-4.0")
    assert done.returncode == 0, done.stderr
    return folder


def card_of(folder: Path) -> tuple[dict, dict[str, str]]:
    """(metadata, rows of the table) of a card."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", body, re.M))


def macs_by_shape(tensors: dict[str, np.ndarray], tokens: tuple[int, int]) -> int:
    """Each weight times the tokens it is applied to, and the attention products; from names and shapes alone."""
    total = 0
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or name.startswith(("cls_token", "pos_embed")):
            continue
        pattern = r"(patch_embed|projs|revert_projs|fusion|head|blocks\.\d+\.blocks)\.(\d)\."
        match = re.search(pattern, name)
        assert match, name
        part, own, other = match[1], tokens[int(match[2])], tokens[1 - int(match[2])]
        times = 1  # class tokens only
        if part == "patch_embed":
            times = own - 1
        elif part.endswith("blocks"):
            times = own
        elif name.endswith(("wk.weight", "wv.weight")):
            times = other
        total += tensor.size * times
        if name.endswith("qkv.weight"):
            total += 2 * own * own * tensor.shape[1]
        if name.endswith("wq.weight"):
            total += 2 * other * tensor.shape[1]
    return total


def test_the_folder_has_what_an_upload_needs_and_no_path_of_this_machine(finished, published):
    assert {p.name for p in published.iterdir()} == {"model.safetensors", "README.md", "recipe.yaml", "classes.txt"}
    assert (published / "classes.txt").read_text().split() == [str(d) for d in range(10)]
    for name in ("README.md", "recipe.yaml"):
        assert str(finished.parent) not in (published / name).read_text()
    assert load_recipe(published / "recipe.yaml") == load_recipe(TINY)
    recipe = re.search(r"```yaml\n(.*?)```", (published / "README.md").read_text(), re.S)
    assert recipe and recipe[1] == (published / "recipe.yaml").read_text()


def test_the_cards_numbers_are_right(finished, published):
    header, rows = card_of(published)
    checkpoint = read_checkpoint(finished / "last.safetensors")
    tensors = checkpoint.part("model")
    assert header["license"] == rows["licence"] == "cc-by-4.0" and header["pipeline_tag"] == "image-classification"
    assert rows["parameters"] == f"{sum(t.size for t in tensors.values()):,}"
    assert rows["multiply-accumulates"] == f"{macs_by_shape(tensors, (17, 5)):,} for one picture"
    assert rows["data"] == "digits: 1,437 training and 360 validation pictures, 10 classes (`classes.txt`)"
    weights = (published / "model.safetensors").read_bytes()
    assert rows["SHA-256"] == f"`{hashlib.sha256(weights).hexdigest()}`" and f"{len(weights):,} bytes" in rows["file"]
    assert rows["weights"] == "weights as trained, after update 10, epoch 2"
    assert checkpoint.meta["versions"]["mindspore"] in rows["trained on"] and "1 x CPU" in rows["trained on"]


@pytest.mark.usefixtures("graph_mode")
def test_the_cards_score_is_what_the_published_weights_score(published):
    from mindcv_crossvit import build, load_weights, runtime
    from mindcv_crossvit.data.sources import open_data
    from mindcv_crossvit.evaluation import evaluate, scoring

    recipe = load_recipe(published / "recipe.yaml", ["data.workers=0"])
    data = open_data(recipe.data)
    model = build.build_model(recipe, 10)
    load_weights(model, published / "model.safetensors")
    loader = build.build_loader(recipe, {"val": build.eval_view(recipe, data)})
    with scoring(model) as logits:
        score = evaluate(logits, loader, data.val.labels, recipe.evaluate.batch, runtime.Runtime("CPU"))
    assert card_of(published)[1]["score"] == (
        f"top-1 {score.top1:.3f} %, top-5 {score.top5:.3f} %, cross-entropy {score.loss:.4f} on 360 validation pictures"
    )


@pytest.mark.usefixtures("graph_mode")
def test_the_lines_of_the_card_load_the_weights(finished, published, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (published / "README.md").read_text(), re.S)
    assert code
    monkeypatch.chdir(published)
    names: dict = {}
    exec(code[1], names)
    expected = read_checkpoint(finished / "last.safetensors").part("model")
    loaded = {p.name: p.asnumpy() for p in names["model"].get_parameters()}
    assert loaded.keys() == expected.keys() and "blocks.0.fusion.1.attn.wq.bias" in loaded
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


def test_the_moving_average_and_the_best_checkpoint(finished, tmp_path):
    done = call(
        "scripts/publish.py", finished / "best.safetensors", tmp_path / "ema", "--licence", "mit", "--part", "ema"
    )
    assert done.returncode == 0, done.stderr
    best = read_checkpoint(finished / "best.safetensors")
    tensors, rows = load_file(tmp_path / "ema" / "model.safetensors"), card_of(tmp_path / "ema")[1]
    for name, value in best.part("ema").items():
        np.testing.assert_array_equal(tensors[name], value)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    line = next(m for m in lines if m["update"] == best.meta["update"] and "ema_top1" in m)
    assert rows["score"].startswith(f"top-1 {line['ema_top1']:.3f} %, top-5 {line['ema_top5']:.3f} %")
    assert "chosen by this score" in rows["score"] and rows["weights"].startswith("moving average")


def test_what_cannot_be_published_is_one_message_and_code_2(finished, published, tmp_path):
    def said(*arguments: object) -> str:
        done = call("scripts/publish.py", *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr

    new = tmp_path / "new"
    assert "--licence" in said(finished, new)
    assert "already there" in said(finished, published, "--licence", "mit")
    assert "no such checkpoint" in said(tmp_path / "none.safetensors", new, "--licence", "mit")
    shutil.copy(finished / "last.safetensors", tmp_path / "alone.safetensors")
    assert "not in a run folder" in said(tmp_path / "alone.safetensors", new, "--licence", "mit")
    copy = shutil.copytree(finished, tmp_path / "run")
    lines = [m for m in (finished / "metrics.jsonl").read_text().splitlines() if '"update": 10' not in m]
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "no score after update 10; there are scores after: 5" in said(copy, new, "--licence", "mit")
    assert not new.exists()
