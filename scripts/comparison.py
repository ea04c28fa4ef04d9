"""The ledger's models as they are now: built, counted, and compared with the official code's numbers in tests/data."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mindcv_crossvit.models.catalog import VARIANTS, macs, resolve

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
LOGITS = ("golden.json", "crossformer.json", "deit.json", "cabvit.json")
"""Logits of pictures of 224 pixels unless a row says."""
MAPS = "crossformer.json"


def build(entry: dict[str, Any]) -> Any:
    """An entry's model, or its dense backbone."""
    from mindcv_crossvit import create_model
    from mindcv_crossvit.models.crossformer import CrossFormerBackbone
    from mindcv_crossvit.ops import choose

    if entry.get("backbone"):
        return CrossFormerBackbone(VARIANTS[entry["model"]], choose("auto"))
    return create_model(entry["model"], **entry.get("overrides", {}))


def counts(entry: dict[str, Any], model: Any) -> dict[str, Any]:
    """Parameters and multiply-accumulates of a model, and what the published count leaves out taken off.

    A backbone's multiply-accumulates are those of its input: none are given.
    """
    buffers = (".running_mean", ".running_var")  # of batch norms: no parameters in PyTorch
    sizes = {p.name: int(p.size) for p in model.get_parameters() if not p.name.endswith(buffers)}
    found = {"params": sum(sizes.values())}
    if not entry.get("backbone"):
        found["macs"] = macs(model.config)
    if without := entry.get("params_without"):
        found["params_compared"] = sum(n for name, n in sizes.items() if not any(part in name for part in without))
    return found


def official_rows(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """What the official code gave for an entry's model: a row for its logits, or for each map; none where none are."""
    if entry.get("backbone"):
        return [row for row in _read(MAPS)["maps"] if row["model"] == entry["model"]]
    wanted = entry["model"], entry.get("overrides", {})
    rows = ({"input": [224, 224], **row} for file in LOGITS for row in _read(file)["rows"])
    return [row for row in rows if (resolve(row["model"]), row.get("overrides", {})) == wanted][:1]


def compare(model: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Largest differences of single values and of sums to the official ones, for weights and pictures by rule.

    Of logits [2, classes] the sum and the sum of absolute values are both `sums`; of maps the latter are apart, in
    proportion to themselves, as `absolute_sums`.
    """
    from mindspore import Tensor

    from mindcv_crossvit.models import golden

    model.set_train(False)
    golden.fill(model)
    given = model(Tensor(golden.picture((2, 3, *rows[0]["input"]))))
    values, sums, shares = [], [], []
    for row in rows:
        dense = "map" in row
        x = (given[row["map"]] if dense else given).asnumpy().astype(np.float64)
        first = x[0, :4, 0, 0] if dense else x[0, :4]
        values += [*(first - row["first"]), x[1].flat[0] - row["second"]]
        sums.append(x.sum() - row["sum"])
        absolute = np.abs(x).sum() - row["abs_sum"]
        shares += [absolute / row["abs_sum"]] if dense else []
        sums += [] if dense else [absolute]
    found = {"difference": _largest(values), "sums": _largest(sums)}
    return found | ({"absolute_sums": _largest(shares)} if shares else {})


def _largest(differences: list[float]) -> float:
    return float(f"{np.abs(differences).max():.1e}")


def _read(file: str) -> dict[str, Any]:
    return json.loads((DATA / file).read_text(encoding="utf-8"))
