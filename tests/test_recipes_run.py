"""Every shipped recipe and every row of an ablation table, loaded, planned and stepped twice through train.py.

With a small model and a few pictures; a row keeps its depth and its fusion.
"""

from __future__ import annotations

import math
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from running import metrics

from mindcv_crossvit.models.catalog import family_of
from mindcv_crossvit.models.shapes import parameter_shapes
from mindcv_crossvit.recipe import Recipe
from mindcv_crossvit.recipe_file import load_recipe
from mindcv_crossvit.weights.read import read_weights

sys.path.insert(0, str(ROOT / "scripts"))
from run_ablation import read_table

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
OTHERS = ("deit_", "crossformer", "cabvit_")
QUICK = ("deit_9_dagger_ascend", "crossformerpp_s_ascend", "cabvit_h_l1_ascend")
TABLES = sorted((ROOT / "configs" / "ablation").glob("*.yaml"))
QUICK_ROWS = ("fusion none",)
SMALL = ["embed_dim=[8,16]", "depth=[[1,1,0]]", "num_heads=[2,2]", "mlp_ratio=[1,1,1]"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    """By kind of source, a folder with pictures of it; 24 for training, 6 or more for validation."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for name in ("cat", "dog"):
            (root / "folder" / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (48, 56, 3), np.uint8)
                Image.fromarray(pixels).save(root / "folder" / split / name / f"{k}.png")
    ten, hundred = root / "cifar10", root / "cifar100"
    ten.mkdir()
    hundred.mkdir()
    (ten / "batches.meta.txt").write_text("\n".join(f"class{k}" for k in range(10)))
    (hundred / "fine_label_names.txt").write_text("\n".join(f"class{k}" for k in range(100)))
    for file in (*(ten / f"data_batch_{k}.bin" for k in range(1, 6)), ten / "test_batch.bin"):
        rng.integers(0, 10, (6, 3073), np.uint8).tofile(file)
    for file in (hundred / "train.bin", hundred / "test.bin"):
        rng.integers(0, 20, (24, 3074), np.uint8).tofile(file)
    return {"folder": root / "folder", "cifar10": ten, "cifar100": hundred}


def reduced(recipe: Recipe) -> list[str]:
    """Changes that make a recipe's model, batch and run small and leave the rest as it is."""
    return [*(f"model.{change}" for change in small_model(recipe)), *reduced_run()]


def reduced_run() -> list[str]:
    """Changes that make batch and run small."""
    changes = ["batch.global_batch=8", "batch.largest_per_device=8", "mix.group=4"]
    changes += ["run.ops=standard"]  # what a card runs; compiles faster
    return [*changes, "schedule.epochs=1", "schedule.warmup_epochs=0", "data.workers=0", "evaluate.batch=100"]


def small_model(recipe: Recipe) -> list[str]:
    """Settings of the recipe's model that make it small."""
    if family_of(recipe.model.name).name == "crossformer":
        sizes = ["img_size=32", "patch_size=[4,8]", "group_size=[4,2]", "crs_interval=[2,1]", "merge_size=[[2,4]]"]
        return [*sizes, "embed_dim=16", "depths=[1,1]", "num_heads=[2,2]", "mlp_ratio=[1,1]"]
    if family_of(recipe.model.name).name == "cabvit":
        return ["img_size=32", "embed_dims=[4,8,8,8]", "depths=[1,1,2,1]", "num_heads=[0,0,2,2]"]
    if family_of(recipe.model.name).name == "deit":
        return ["img_size=32", "embed_dim=16", "depth=1", "num_heads=2", "mlp_ratio=1"]
    model = ["patch_size=[12,16]", "img_size=[24,32]"] if recipe.model.name.find("dagger") > 0 else ["img_size=[12,16]"]
    if recipe.model.patch_size:
        model = [f"img_size=[{2 * recipe.model.patch_size[0]},{2 * recipe.model.patch_size[1]}]"]
    return [*model, *SMALL]


def recipes():
    """Of each family but CrossViT the smallest in every run of the tests, the others in the slow ones."""
    for path in CONFIGS:
        quick = path.stem in QUICK or not path.stem.startswith(OTHERS)
        yield pytest.param(path, id=path.stem, marks=() if quick else (pytest.mark.slow,))


def ablations():
    """(base recipe, changes) of every row; most of them in the slow tests: they are deep."""
    for path in TABLES:
        table, rows = read_table(path)
        for row in rows:
            name = f"{path.stem} {row.name}"
            marks = () if name in QUICK_ROWS else (pytest.mark.slow,)
            yield pytest.param(ROOT / table["base"], row.changes, id=name, marks=marks)


@pytest.mark.parametrize("base, row", ablations())
def test_each_row_of_an_ablation_is_stepped(base, row, pictures, tmp_path, monkeypatch, capsys, graph_mode):
    import train

    recipe = load_recipe(base, row)
    model, full = recipe.model, recipe.model.config()
    widths = [16, 16] if full.embed_dim[0] == full.embed_dim[1] else [8, 16]
    small = [f"model.img_size={[2 * patch for patch in full.patch_size]}", f"model.embed_dim={widths}"]
    small += ["model.num_heads=[2,2]", "model.mlp_ratio=[1,1,1]", *reduced_run()]
    words = [word for change in (*row, *small) for word in ("--set", change)]
    places = ["--data_dir", str(pictures["folder"]), "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(base), *places, *words])
    assert train.main() == 0, capsys.readouterr().out
    assert_stepped_twice(tmp_path / "run")
    run = load_recipe(tmp_path / "run" / "recipe.yaml").model
    for name in ("depth", "fusion", "cls_token", "identity_projs", "hybrid_backbone", "patch_size"):
        assert getattr(run, name) == getattr(model, name)


@pytest.mark.parametrize("path", recipes())
def test_each_recipe_is_planned_and_stepped(path, pictures, tmp_path, monkeypatch, capsys, graph_mode):
    import train

    recipe = load_recipe(path)
    changes = reduced(recipe)
    arguments = ["--config", path, "--output", tmp_path / "run", "--distribute", "False"]
    if recipe.data.source == "digits":
        changes += ['data.classes=["0","1"]', "batch.global_batch=128", "batch.largest_per_device=128"]
    else:
        arguments += ["--data_dir", pictures[recipe.data.source]]
    if "--init-from" in path.read_text():
        arguments += ["--init-from", weights_of_another_size(load_recipe(path, changes), tmp_path)]
    for change in changes:
        arguments += ["--set", change]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    assert train.main() == 0, capsys.readouterr().out

    assert_stepped_twice(tmp_path / "run")
    run = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert not run.auto
    kept = {f.name for f in fields(Recipe)} - {"auto", "model", "data", "batch", "schedule", "evaluate", "run"}
    for section in kept - {"mix", "optimizer", "ema"}:
        assert getattr(run, section) == getattr(recipe, section)
    assert run.optimizer.name == recipe.optimizer.name and (run.ema.decay is None) == (
        recipe.ema.decay is None and "ema.decay" not in recipe.auto
    )
    said = capsys.readouterr().out
    assert "resized" in said or "--init-from" not in path.read_text()


def assert_stepped_twice(folder: Path) -> None:
    """Two updates or more with finite losses, and a score."""
    losses = [line["loss"] for line in metrics(folder) if "loss" in line]
    assert len(losses) >= 2 and all(math.isfinite(loss) for loss in losses)
    assert any("val_top1" in line for line in metrics(folder))


def weights_of_another_size(recipe: Recipe, folder: Path) -> Path:
    """The recipe's model for 1,000 classes and pictures of twice the side, in a file with official names."""
    from safetensors.numpy import save_file

    small = recipe.model.config()
    assert small is not None
    large = small.with_overrides({"img_size": [2 * s for s in small.img_size]})
    rng = np.random.default_rng(1)
    path = folder / "weights.safetensors"
    shapes = parameter_shapes(large, 1000)
    save_file({n: rng.normal(0, 0.02, s).astype(np.float32) for n, s in shapes.items()}, path)
    assert read_weights(path).kind == "official"
    return path
