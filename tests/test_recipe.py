"""Recipes: types, ranges, unknown keys, contradictions; every problem at once, and none of it needs MindSpore."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.recipe_file import load_recipe, to_yaml

MINIMAL = "name: test\nmodel: {name: crossvit_9}\n"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def problems_of(folder: Path, text: str, *changes: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(write(folder, text), changes)
    return caught.value.problems


def test_a_minimal_recipe_has_the_papers_values(tmp_path):
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert (recipe.batch.global_batch, recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (4096, 300, 30)
    assert recipe.optimizer.eps == 1e-8 and recipe.optimizer.weight_decay == 0.05


@pytest.mark.parametrize(
    "text, expected",
    [
        ("optimizer: {weight_dcay: 0.1}", "unknown key optimizer.weight_dcay; did you mean weight_decay?"),
        ("optimzer: {lr: 0.1}", "unknown key optimzer; did you mean optimizer?"),
        ("schedule: {epochs: ten}", "schedule.epochs: expected a whole number from 1 to 1,000,000 or auto, got 'ten'"),
        ("schedule: {epochs: 1.5}", "schedule.epochs: expected a whole number from 1 to 1,000,000 or auto, got 1.5"),
        ("schedule: {epochs: true}", "schedule.epochs: expected a whole number from 1 to 1,000,000 or auto, got True"),
        ("schedule: {epochs: 0}", "schedule.epochs: expected a whole number from 1 to 1,000,000 or auto, got 0"),
        ("optimizer: {lr: -1}", "optimizer.lr: expected a number above 0 to 1e+30 or auto, got -1"),
        ("optimizer: {lr: .nan}", "optimizer.lr: expected a number above 0 to 1e+30 or auto, got nan"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas: expected a list of 2, each a number from 0 below 1, got [0.9]"),
        ("schedule: {min_lr: 8e307}", "schedule.min_lr: expected a number from 0 to 1e+30, got 8e+307"),
        ("loss: {label_smoothing: 1}", "loss.label_smoothing: expected a number from 0 below 1, got 1"),
        (
            "data: {source: imagenet}",
            "data.source: expected one of folder, cifar10, cifar100, digits, got 'imagenet'",
        ),
        ("data: {source: cifar}", "did you mean cifar10?"),
        ("data: 3", "data: expected a section with keys, got 3"),
        ("augment: {rand_augment: rand-m9-x3}", "augment.rand_augment: 'rand-m9-x3': part 'x3' is none of"),
        ("augment: {affine: {scale: [1.2, 0.8]}}", "augment.affine.scale: expected the smaller value first"),
        ("schedule: {epochs: 5}", "schedule.warmup_epochs: expected at most schedule.epochs (5), got 30"),
    ],
)
def test_a_wrong_value_is_answered_with_key_value_and_expectation(tmp_path, text, expected):
    problems = problems_of(tmp_path, MINIMAL + text)
    assert len(problems) == 1
    assert expected in problems[0] and str(tmp_path / "recipe.yaml") in problems[0]


def test_all_problems_are_reported_at_once(tmp_path):
    problems = problems_of(tmp_path, "nam: x\nmodel: {nme: y}\nbatch: {global_batch: 0}", "schedule.epochs=none")
    said = "\n".join(problems)
    assert len(problems) == 6
    for part in (
        "unknown key nam;",
        "name is missing",
        "unknown key model.nme",
        "model.name is missing",
        "global_batch",
        "epochs",
    ):
        assert part in said


def test_an_unknown_model_suggests_the_nearest(tmp_path):
    assert "did you mean crossvit_18?" in problems_of(tmp_path, "name: x\nmodel: {name: crossvt_18}")[0]


def test_impossible_sizes_are_refused(tmp_path):
    text = "name: x\nmodel: {name: crossvit_9, img_size: [230, 224]}"
    assert "img_size 230 of the small branch is not divisible" in problems_of(tmp_path, text)[0]


def test_arguments_of_the_suites_models_do_not_reach_mindcvs(tmp_path):
    text = "name: x\nmodel: {name: mindcv/resnet18, img_size: [32, 32]}"
    assert "unknown key model.img_size; did you mean input_size?" in problems_of(tmp_path, text)[0]
    assert "unknown key model.input_size" in problems_of(tmp_path, MINIMAL, "model.input_size=64")[0]


def test_set_reaches_any_key_and_reads_yaml(tmp_path):
    changes = ["optimizer.lr=1e-3", "model.depth=[[1, 2, 0]]", "data.val_fraction=0.25", "augment.affine.degrees=5"]
    recipe = load_recipe(write(tmp_path, MINIMAL), changes)
    assert recipe.optimizer.lr == 1e-3 and recipe.model.depth == ((1, 2, 0),)
    assert recipe.data.val_fraction == 0.25 and recipe.augment.affine is not None and recipe.augment.affine.degrees == 5


@pytest.mark.parametrize(
    "change, part", [("lr", "expected key=value"), ("name.x=1", "name is not a section"), ("a.b=[", "YAML")]
)
def test_a_malformed_set_is_refused(tmp_path, change, part):
    assert part in "\n".join(problems_of(tmp_path, MINIMAL, change))


@pytest.mark.parametrize("text", ["", "- 1", "name: [", "name: x\nname: y", "\x00", "a: &a [*a]", "? [1]: 2", "3: 4"])
def test_unreadable_yaml_is_one_message(tmp_path, text):
    assert all("recipe.yaml" in p for p in problems_of(tmp_path, text))


def test_yaml_is_loaded_safely(tmp_path):
    marker = tmp_path / "executed"
    problems_of(tmp_path, f"name: !!python/object/apply:os.system ['touch {marker}']\nmodel: {{name: crossvit_9}}")
    assert not marker.exists()


def test_a_missing_recipe_suggests_a_neighbour(tmp_path):
    write(tmp_path, MINIMAL)
    with pytest.raises(UserError, match=r"no such recipe; did you mean .*recipe\.yaml"):
        load_recipe(tmp_path / "recipes.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_survive_a_round_trip(path, tmp_path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert load_recipe(write(tmp_path, to_yaml(recipe))) == recipe


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_key_of_a_shipped_recipe_is_commented_and_the_header_says_how_to_run(path):
    lines = path.read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert any("python train.py" in line for line in header)
    for line in lines:
        bare = line.strip()
        if bare and not bare.startswith("#") and not bare.endswith(":") and bare != f"name: {path.stem}":
            assert "  # " in line, f"{path.name}: {bare}"


def test_the_reference_page_lists_every_key():
    page = (ROOT / "docs" / "RECIPES.md").read_text(encoding="utf-8")
    code = "import sys; sys.path.insert(0, 'scripts'); import recipe_reference; print(recipe_reference.page(), end='')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert page == done.stdout, "run python scripts/recipe_reference.py"
    assert (
        "| `optimizer.weight_decay` | adamw: decoupled, times lr; sgd: added to the gradient | a number from 0 | 0.05 |"
        in page
    )


def test_neither_recipes_nor_data_import_mindspore():
    code = (
        "import sys, mindcv_crossvit, mindcv_crossvit.recipe, mindcv_crossvit.data.loader, mindcv_crossvit.plan,"
        " mindcv_crossvit.cli, mindcv_crossvit.training.start; sys.exit('mindspore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
