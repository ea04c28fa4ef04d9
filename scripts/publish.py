"""Makes a folder that is ready for upload from a checkpoint of a run: weights, model card, recipe, class names.

    python scripts/publish.py runs/digits published/digits --licence apache-2.0

The first argument is a run folder (its last checkpoint) or a checkpoint in it, the second a new folder. What the card
says is read from the checkpoint and its run folder or counted, nothing is typed; only the licence must be given. How to
upload the folder: docs/PUBLISH.md.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from mindcv_crossvit.errors import UserError, run_main
from mindcv_crossvit.models.catalog import macs
from mindcv_crossvit.recipe import Recipe
from mindcv_crossvit.recipe_file import parse_recipe, to_yaml
from mindcv_crossvit.report import read_metrics
from mindcv_crossvit.training.checkpoint import Checkpoint, read_checkpoint
from mindcv_crossvit.training.start import resolve

WEIGHTS, CARD, RECIPE, CLASSES = "model.safetensors", "README.md", "recipe.yaml", "classes.txt"
PARTS = {
    "model": ("weights as trained", "val_top1", "val_top5", "val_loss"),
    "ema": ("moving average of the weights", "ema_top1", "ema_top5", "ema_loss"),
}


@dataclass(frozen=True)
class Facts:
    """What the card says.

    score: top1, top5 (percent), loss (nats), images, epoch. data: the manifest's counts. sha256, size (bytes): of the
    weights file. macs: of one picture; None for a model of MindCV.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    part: str
    manifest: dict[str, Any]
    score: dict[str, float]
    parameters: int
    macs: int | None
    sha256: str
    size: int
    licence: str


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a folder with weights and model card.", allow_abbrev=False)
    parser.add_argument("checkpoint", metavar="CKPT", help="a run folder, or a checkpoint in it")
    parser.add_argument("folder", metavar="DIR", help="a new folder")
    parser.add_argument("--licence", required=True, metavar="ID", help="of the weights, e.g. apache-2.0")
    parser.add_argument("--part", choices=tuple(PARTS), default="model", help="ema: the moving average instead")
    arguments = parser.parse_args(argv)
    if not arguments.licence.strip():
        parser.error("--licence: expected an identifier, such as apache-2.0")
    return arguments


def run_folder(checkpoint: Path) -> Path:
    """The run folder of a checkpoint. Raises UserError outside one: the score and the data's counts lie there."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / "metrics.jsonl").is_file() and (folder / "manifest.json").is_file():
            return folder
    raise UserError(f"{checkpoint}: not in a run folder; metrics.jsonl and manifest.json beside it hold the score")


def score_of(folder: Path, update: int, part: str) -> dict[str, float]:
    """The score recorded right after an update. Raises UserError when there is none."""
    top1, top5, loss = PARTS[part][1:]
    lines = [line for line in read_metrics(folder) if top1 in line]
    for line in lines:
        if line["update"] == update:
            return {
                "top1": line[top1],
                "top5": line[top5],
                "loss": line[loss],
                "images": line["val_images"],
                "epoch": line["epoch"],
            }
    known = ", ".join(str(line["update"]) for line in lines) or "none"
    raise UserError(f"{folder / 'metrics.jsonl'}: no score after update {update}; there are scores after: {known}")


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """The recipe of a checkpoint without the folders of the machine it ran on. Raises UserError."""
    problems: list[str] = []
    recipe = parse_recipe(checkpoint.meta["recipe"], problems)
    if recipe is None or problems:
        raise UserError(f"{checkpoint.path}: its recipe: {problem}" for problem in problems)
    return replace(recipe, data=replace(recipe.data, dir=None), run=replace(recipe.run, output=None))


def weights_of(checkpoint: Checkpoint, part: str) -> dict[str, np.ndarray]:
    """Tensors by the model's own names, the official ones for a CrossViT. Raises UserError without a moving average."""
    if not checkpoint.part(part):
        raise UserError(f"{checkpoint.path}: has no moving average; leave out --part ema")
    return {**checkpoint.part("model"), **checkpoint.part(part)}


def write_weights(path: Path, tensors: dict[str, np.ndarray]) -> str:
    """Writes a plain safetensors file; its SHA-256."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path, {"format": "np"})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def card(f: Facts) -> str:
    """The model card, README.md of the published folder."""
    header = {"license": f.licence, "library_name": "mindspore", "pipeline_tag": "image-classification"}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items())]
    lines += ["tags: [mindspore, image-classification]", "---", "", f"# {f.recipe.name}", ""]
    lines += ["| | |", "|---|---|", *(f"| {topic} | {text} |" for topic, text in _rows(f)), ""]
    lines += ["The score is the one the run recorded; it was not measured again for this card.", ""]
    lines += ["## Use", "", "```python", *_use(f), "```", "", f"`sha256sum {WEIGHTS}` checks the file.", ""]
    lines += ["## Recipe", "", "```yaml", to_yaml(f.recipe).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _rows(f: Facts) -> list[tuple[str, str]]:
    meta, data, s, machine = f.checkpoint.meta, f.manifest["data"], f.score, f.manifest["machine"]
    size, own = f.recipe.model.image_size, f.macs is not None
    git = f.manifest["git"] or {"commit": "not known", "changed": False}
    score = f"top-1 {s['top1']:.3f} %, top-5 {s['top5']:.3f} %, cross-entropy {s['loss']:.4f}"
    score += f" on {s['images']:,} validation pictures"
    if f.checkpoint.path.stem == "best":
        score += "; the checkpoint was chosen by this score, which is therefore on the high side"
    pictures = f"{data['train']:,} training and {data['val']:,} validation pictures"
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    return [
        ("model", f"`{meta['model']['name']}`, input {size} x {size} pixels"),
        ("parameters", f"{f.parameters:,}" + ("" if own else ", running statistics included")),
        ("multiply-accumulates", f"{f.macs:,} for one picture" if own else "not counted for models of MindCV"),
        ("data", f"{f.recipe.data.source}: {pictures}, {data['classes']:,} classes (`{CLASSES}`)"),
        ("score", score),
        ("weights", f"{PARTS[f.part][0]}, after update {meta['update']:,}, epoch {s['epoch']}"),
        ("file", f"`{WEIGHTS}`, {f.size:,} bytes"),
        ("SHA-256", f"`{f.sha256}`"),
        ("licence", f.licence),
        ("trained on", f"{machine['ranks']} x {machine['device']}, begun {f.manifest['started']}, with {versions}"),
        ("code", f"commit {git['commit']}{' with changes' if git['changed'] else ''}"),
    ]


def _use(f: Facts) -> list[str]:
    model, e = f.checkpoint.meta["model"], f.recipe.evaluate
    said = "".join(f", {key}={value!r}" for key, value in model.items() if key != "name")
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (f.recipe.data.mean, f.recipe.data.std))
    return [
        "from mindcv_crossvit import create_model, load_weights",
        "",
        f"# Pixels in 0 to 1, minus ({mean}), over ({std});",
        f"# the input is the middle of the resized picture, {e.crop_fraction:g} of its shorter side.",
        f"model = create_model({model['name']!r}, {len(f.checkpoint.meta['class_names'])}{said})",
        f"load_weights(model, {WEIGHTS!r})",
        "model.set_train(False)",
    ]


def main() -> int:
    """Reads, writes, says what to do next."""
    arguments = arguments_of()
    folder = Path(arguments.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already there; name a new folder")
    path = resolve(Path(arguments.checkpoint))
    checkpoint = read_checkpoint(path)
    run, recipe = run_folder(path), recipe_of(checkpoint)
    score = score_of(run, checkpoint.meta["update"], arguments.part)
    tensors, config = weights_of(checkpoint, arguments.part), recipe.model.config()
    folder.mkdir(parents=True, exist_ok=True)
    facts = Facts(
        checkpoint=checkpoint,
        recipe=recipe,
        part=arguments.part,
        manifest=json.loads((run / "manifest.json").read_text(encoding="utf-8")),
        score=score,
        parameters=sum(t.size for t in tensors.values()),
        macs=macs(config, len(checkpoint.meta["class_names"])) if config else None,
        sha256=write_weights(folder / WEIGHTS, tensors),
        size=(folder / WEIGHTS).stat().st_size,
        licence=arguments.licence,
    )
    (folder / CARD).write_text(card(facts), encoding="utf-8")
    (folder / RECIPE).write_text(to_yaml(recipe), encoding="utf-8")
    (folder / CLASSES).write_text("".join(f"{name}\n" for name in checkpoint.meta["class_names"]), encoding="utf-8")
    print(f"{folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}; docs/PUBLISH.md says how to upload it")
    return 0


if __name__ == "__main__":
    run_main(main)
