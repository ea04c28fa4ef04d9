"""Compares the logits of all models with the official PyTorch ones, on the device MindSpore finds; minutes on a CPU.

python scripts/check_golden.py [--files] [MODEL ...]

Weights and pictures are made by rule, nothing is downloaded. Prints a table, writes docs/golden.json when all models
were checked, and ends with code 1 when a difference exceeds 5e-5.

--files: the weights go through a file of every kind that is read (official and timm's .pth and .safetensors, our own
checkpoint); the difference is the largest of all.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np

from mindcv_crossvit import create_model, list_models, load_weights, runtime
from mindcv_crossvit.models import golden
from mindcv_crossvit.models.catalog import resolve
from mindcv_crossvit.models.crossvit_config import macs

TOLERANCE = 5e-5


def check(row: dict, files: bool) -> dict:
    """Parameters, multiply-accumulates and the largest difference of the five logits of one model."""
    model = create_model(row["model"], **row["overrides"])
    model.set_train(False)
    difference = max(logits_difference(model, row) for _ in (through_files if files else filled)(model))
    parameters = sum(p.size for p in model.get_parameters())
    return {"parameters": int(parameters), "macs": macs(model.config), "difference": float(f"{difference:.1e}")}


def filled(model):
    """Once: the model with the weights by rule."""
    golden.fill(model)
    yield


def through_files(model):
    """Once for each kind of file: the model with the weights by rule, read from it."""
    import weight_files

    state = {p.name: golden.weight(p.name, tuple(p.shape)) for p in model.get_parameters()}
    for name, (_, write) in weight_files.FORMATS.items():
        for parameter in model.get_parameters():
            parameter.set_data(parameter * 0)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / name, state)
            load_weights(model, Path(folder) / name)
        yield


def logits_difference(model, row: dict) -> float:
    """The largest difference of five logits to the official ones."""
    from mindspore import Tensor

    logits = model(Tensor(golden.picture((2, 3, *row["input"])))).asnumpy()
    return float(np.abs(np.array([*logits[0, :4], logits[1, 0]]) - [*row["first"], row["second"]]).max())


def main() -> int:
    """Checks the models named on the command line, or all."""
    files = "--files" in sys.argv[1:]
    wanted = [resolve(name) for name in sys.argv[1:] if name != "--files"]
    device = runtime.start("auto").device
    rows = json.loads((ROOT / "tests" / "data" / "golden.json").read_text())["rows"]
    rows = [r for r in rows if not r["overrides"] and (not wanted or resolve(r["model"]) in wanted)]
    found = {}
    for row in rows:
        found[resolve(row["model"])] = result = check(row, files)
        print(
            f"{resolve(row['model']):<24} {result['parameters']:>12,} parameters  difference {result['difference']:.1e}"
        )
    if set(found) == set(list_models()):
        facts = {"device": device, "models": found}
        (ROOT / "docs" / "golden.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(any(r["difference"] > TOLERANCE for r in found.values()))


if __name__ == "__main__":
    sys.exit(main())
