"""Compares the logits of all models with the official PyTorch ones, on the device MindSpore finds; minutes on a CPU.

python scripts/check_golden.py [MODEL ...]

Weights and pictures are made by rule, nothing is downloaded. Prints a table, writes docs/golden.json when all models
were checked, and ends with code 1 when a difference exceeds 5e-5.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from mindcv_crossvit import create_model, list_models, runtime
from mindcv_crossvit.models import golden
from mindcv_crossvit.models.catalog import resolve
from mindcv_crossvit.models.crossvit_config import macs

TOLERANCE = 5e-5


def check(row: dict) -> dict:
    """Parameters, multiply-accumulates and the largest difference of the five logits of one model."""
    from mindspore import Tensor

    model = create_model(row["model"], **row["overrides"])
    model.set_train(False)
    golden.fill(model)
    logits = model(Tensor(golden.picture((2, 3, *row["input"])))).asnumpy()
    difference = np.abs(np.array([*logits[0, :4], logits[1, 0]]) - [*row["first"], row["second"]]).max()
    parameters = sum(p.size for p in model.get_parameters())
    return {"parameters": int(parameters), "macs": macs(model.config), "difference": float(f"{difference:.1e}")}


def main() -> int:
    """Checks the models named on the command line, or all."""
    wanted = [resolve(name) for name in sys.argv[1:]]
    device = runtime.start("auto").device
    rows = json.loads((ROOT / "tests" / "data" / "golden.json").read_text())["rows"]
    rows = [r for r in rows if not r["overrides"] and (not wanted or resolve(r["model"]) in wanted)]
    found = {}
    for row in rows:
        found[resolve(row["model"])] = result = check(row)
        print(
            f"{resolve(row['model']):<24} {result['parameters']:>12,} parameters  difference {result['difference']:.1e}"
        )
    if set(found) == set(list_models()):
        facts = {"device": device, "models": found}
        (ROOT / "docs" / "golden.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(any(r["difference"] > TOLERANCE for r in found.values()))


if __name__ == "__main__":
    sys.exit(main())
