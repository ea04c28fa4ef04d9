"""Checks every published figure that can be checked, and writes down what came of it.

    python scripts/verify_claims.py                                 # parameters, multiply-accumulates, logits: minutes
    python scripts/verify_claims.py --no-logits                     # without running the models
    python scripts/verify_claims.py --data_dir /path/to/imagenet --weights /path/to/weights    # the accuracies, too

Parameters are counted in built models, multiply-accumulates follow from their settings, logits and dense maps are
compared with the official code's for weights and pictures made by rule, accuracies with published ones: claimed,
measured, difference. Writes measured.json and RESULTS.md into docs/; what a run leaves out stands there as "not checked
in this run". Ends with code 1 when a count or a logit differs and docs/published.json has no note of it.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import claims
import comparison
import numpy as np

from mindcv_crossvit import runtime
from mindcv_crossvit.data.sources import Splits, read_classes
from mindcv_crossvit.errors import UserError, nearest, run_main
from mindcv_crossvit.journal import versions
from mindcv_crossvit.models.catalog import resolve
from mindcv_crossvit.recipe_file import load_recipe

RECIPE = ROOT / "configs" / "crossvit_15_ascend.yaml"
"""Its evaluation is that of all ImageNet recipes."""
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Check the published figures.", allow_abbrev=False)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these; the others are not checked")
    parser.add_argument("--no-logits", action="store_true", help="do not run the models")
    parser.add_argument("--data_dir", metavar="DIR", help="ImageNet-1k: val/ with its 1000 class folders")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files named after their model, folders of such, NAME=FILE",
    )
    parser.add_argument(
        "--pictures", type=int, metavar="N", help="only N validation pictures, evenly spaced: no verification"
    )
    parser.add_argument("--output", default=str(ROOT / "docs"), metavar="DIR", help="where the two files go (docs/)")
    arguments = parser.parse_args(argv)
    if bool(arguments.data_dir) != bool(arguments.weights):
        parser.error("accuracies need both --data_dir and --weights")
    if arguments.pictures is not None and (arguments.pictures < 1 or not arguments.data_dir):
        parser.error("--pictures goes with --data_dir and is at least 1")
    return arguments


def chosen(names: list[str] | None, entries: list[dict[str, Any]]) -> set[str]:
    """Names of the entries to check; models in any spelling. Raises UserError for an unknown one."""
    known = {e["name"] for e in entries}
    if names is None:
        return known
    plain = {name: _plain(name) for name in names}
    unknown = [name for name in names if plain[name] not in known]
    if unknown:
        raise UserError(f"--models: unknown {name!r}; {nearest(name, sorted(known))}" for name in unknown)
    return set(plain.values())


def _plain(name: str) -> str:
    try:
        return resolve(name)
    except ValueError:
        return name


def find_weights(given: list[str], names: set[str]) -> dict[str, Path]:
    """Files by model. Raises UserError for what is missing or belongs to no model."""
    found: dict[str, Path] = {}
    problems = []
    for text in given:
        name, separator, rest = text.partition("=")
        path = Path(rest if separator else text).expanduser()
        if not path.exists():
            problems.append(f"--weights: no file or folder {path}")
            continue
        files = sorted(p for p in path.iterdir() if p.suffix in ENDINGS) if path.is_dir() else [path]
        here = {_plain(name if separator else file.name.split(".")[0]): file for file in files}
        here = {model: file for model, file in here.items() if model in names}
        if not here:
            problems.append(f"--weights: {path} is named after none of the models checked; say NAME={path}")
        found |= here
    if problems:
        raise UserError(problems)
    return found


def open_validation(data_dir: str, pictures: int | None) -> Splits:
    """The validation pictures, or some of them. Raises UserError when they are not ImageNet-1k's."""
    root = Path(data_dir).expanduser()
    if not (root / "val").is_dir():
        raise UserError(f"--data_dir: expected the folder {root / 'val'} with a folder per class")
    names, source = read_classes(root / "val")
    if len(names) != claims.VALIDATION_CLASSES:
        raise UserError(
            f"{root / 'val'}: {len(names)} class folders, expected the {claims.VALIDATION_CLASSES} of ImageNet-1k,"
            " whose order (n01440764, n01443537, ...) is that of the outputs"
        )
    if pictures:
        source = source.part(np.unique(np.linspace(0, len(source), pictures, endpoint=False).astype(int)))
    return Splits(source, source, names)


def measure_accuracy(entry: dict[str, Any], weights: Path, data: Splits, process: runtime.Runtime) -> dict[str, Any]:
    """top1, top5 (percent) and pictures of given weights, for every crop that an accuracy was published with."""
    from mindcv_crossvit import build, load_weights
    from mindcv_crossvit.evaluation import evaluate, scoring

    crops = sorted({claims.crop_fraction(c) for c in entry["claims"] if c["figure"] in ("top1", "top5")})
    options = {f"model.{key}": value for key, value in entry.get("overrides", {}).items()}
    recipe = load_recipe(RECIPE, [f"model.name={entry['model']}", "run.distribute=false"], options)
    batch = min(recipe.evaluate.batch, len(data.val))
    workers = min(recipe.data.workers, len(data.val) // batch)
    recipe = replace(recipe, data=replace(recipe.data, workers=workers))
    model = build.build_model(recipe, len(data.class_names))
    load_weights(model, weights)
    about = {"weights": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    found = {}
    for crop in crops:
        recipe = replace(recipe, evaluate=replace(recipe.evaluate, crop_fraction=crop, batch=batch))
        loader = build.build_loader(recipe, {"val": build.eval_view(recipe, data)})
        with loader, scoring(model) as logits:
            score = evaluate(logits, loader, data.val.labels, batch, process)
        found[str(crop)] = {"top1": score.top1, "top5": score.top5, "images": score.images, **about}
    return found


def print_accuracy(entry: dict[str, Any], found: dict[str, Any]) -> None:
    """Claimed, measured, difference."""
    for claim in entry["claims"]:
        measured = found.get(str(claims.crop_fraction(claim)), {}).get(claim["figure"])
        if measured is not None:
            print(
                f"  {claim['figure']} claimed {claim['value']} ({claim['source']}), measured {measured:.3f} on"
                f" {found[str(claims.crop_fraction(claim))]['images']:,} pictures,"
                f" difference {measured - float(claim['value']):+.3f}",
                flush=True,
            )


def main() -> int:
    """Checks, prints, writes."""
    arguments = arguments_of()
    published = claims.load(ROOT / "docs" / claims.PUBLISHED)
    wanted = chosen(arguments.models, published["entries"])
    weights = find_weights(arguments.weights, wanted)
    data = open_validation(arguments.data_dir, arguments.pictures) if weights else None
    process = runtime.start("auto")
    entries: dict[str, Any] = {}
    for entry in published["entries"]:
        name, rows = entry["name"], comparison.official_rows(entry)
        entries[name] = found = {}
        if name in wanted:
            model = comparison.build(entry)
            found |= comparison.counts(entry, model)
            if rows:
                found["logits"] = None if arguments.no_logits else comparison.compare(model, rows)
            print(f"{name:<24} {found}", flush=True)
            if data and name in weights:
                found["accuracy"] = measure_accuracy(entry, weights[name], data, process)
                print_accuracy(entry, found["accuracy"])
        elif rows:
            found["logits"] = None
    measured = {
        "command": shlex.join(["python", "scripts/verify_claims.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "device": process.device,
        "versions": versions(),
        "entries": entries,
    }
    folder = Path(arguments.output)
    (folder / claims.MEASURED).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (folder / claims.RESULTS).write_text(claims.render(published, measured), encoding="utf-8")
    rows = [row for group in claims.all_rows(published, measured).values() for row in group]
    print(", ".join(f"{sum(r.status == s for r in rows)} {s}" for s in claims.MEANINGS))
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    run_main(main)
