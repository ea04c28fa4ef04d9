"""The ablation tables, and the script that runs them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from decimal import Decimal

import pytest
from conftest import ROOT
from running import TINY, same_run

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.models.catalog import macs
from mindcv_crossvit.recipe_file import load_recipe

sys.path.insert(0, str(ROOT / "scripts"))
import claims
import run_ablation

TABLES = sorted((ROOT / "configs" / "ablation").glob("*.yaml"))


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_every_row_of_every_table_is_another_model_that_train_py_takes(path, capsys):
    assert run_ablation.main([str(path), "--print"]) == 0
    commands = capsys.readouterr().out.splitlines()
    table, rows = run_ablation.read_table(path)
    assert len(commands) == len(rows) > 1
    models = {str(load_recipe(ROOT / table["base"], row.changes).model.config()) for row in rows}
    assert len(models) == len(rows)
    assert all(row.paper.get("top1") for row in rows)
    assert all(command.startswith(f"python train.py --config {table['base']} --set ") for command in commands)


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_every_rows_multiply_accumulates_are_the_papers_to_its_digits(path):
    table, rows = run_ablation.read_table(path)
    for row in rows:
        config = load_recipe(ROOT / table["base"], row.changes).model.config()
        if "macs" in row.paper:
            assert claims.rounds_to(Decimal(macs(config)) / 10**9, row.paper["macs"]), row.name


def write_table(folder, rows: str):
    path = folder / "table.yaml"
    path.write_text(f"base: {TINY}\nrows:\n{rows}")
    return path


ROWS = "  one: {published: fusion_none, set: {}}\n  two: {published: [row_a], set: {model.cls_token: false}}\n"


def test_finished_runs_are_kept_and_an_interrupted_one_goes_on(finished, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    for name in ("one-0", "two-0"):
        shutil.copytree(finished, runs / name)
        (runs / name / run_ablation.BRANCH_SCORES).write_text(json.dumps({"large": 20.0, "small": 10.0}))
    interrupted = runs / "one-0"
    (interrupted / "summary.json").unlink()
    max((interrupted / "checkpoints").iterdir()).unlink()
    table = write_table(tmp_path, ROWS.replace("model.cls_token: false", ""))
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (runs / "two-0").iterdir()}
    assert run_ablation.main([str(table), "--runs", "runs", "--page", "page.md"]) == 0
    said = capsys.readouterr().out
    assert said.count("python train.py") == 1 and "--output runs/one-0" in said
    assert "resumed" in (interrupted / "log.txt").read_text()
    same_run(finished, interrupted)
    assert {path: path.stat().st_mtime_ns for path in (runs / "two-0").iterdir()} == before
    page = (tmp_path / "page.md").read_text()
    top1 = json.loads((finished / "summary.json").read_text())["top1"]
    assert f"| one | {top1:.2f} | 20.00 | 10.00 | 80.2 | 80.2 | 0.1 |" in page
    with pytest.raises(UserError, match=r"runs.one-0: is of another .*schedule.epochs is 3 instead"):
        run_ablation.main([str(table), "--runs", "runs", "--epochs", "3"])


@pytest.mark.parametrize(
    "rows, message",
    [
        ("  one: {published: fusion_non, set: {}}\n", "docs/published.json has no fusion_non"),
        ("  one: {set: {}}\n", "rows.one: expected"),
        ("  []\n", "expected base"),
    ],
)
def test_mistakes_in_a_table_are_named(rows, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run_ablation.read_table(write_table(tmp_path, rows))


def test_a_mistake_in_a_row_is_found_before_anything_is_trained(tmp_path):
    rows = ROWS.replace("model.cls_token", "model.cls_tokens")
    with pytest.raises(UserError, match=r"model\.cls_tokens; did you mean cls_token"):
        run_ablation.main([str(write_table(tmp_path, rows)), "--runs", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_seeds_are_summed_up():
    assert run_ablation.spread([98.0, 99.0, 99.5]) == "98.83 (98.00 to 99.50)"
    assert run_ablation.spread([98.0]) == "98.00"
    paper = {"a": "80.2", "b": "81.0", "c": "80.0"}
    rows = [run_ablation.Row(name, (), {"top1": top1}) for name, top1 in paper.items()]
    scores = {"a": (99.0, 98.0), "b": (97.0, 97.5), "c": (97.25, 98.5)}
    found = {name: [{"both": value} for value in values] for name, values in scores.items()}
    text = run_ablation.findings(found, rows)
    assert "a 98.50, c 97.88, b 97.25" in text and "In the paper: b 81.0, a 80.2, c 80.0" in text
    assert "above every seed of the second: a above b.\n" in text


def test_the_committed_page_is_of_the_committed_table():
    page = (ROOT / "docs" / "ABLATION.md").read_text()
    command = re.search(r"`python scripts/run_ablation.py (.*?)`", page)
    assert command and "configs/ablation/fusion.yaml" in command[1]
    table, rows = run_ablation.read_table(ROOT / "configs" / "ablation" / "fusion.yaml")
    assert run_ablation.counts_table(table["base"], rows) in page
    assert all(f"| {row.name} |" in page for row in rows)
