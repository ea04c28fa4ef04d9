"""The ledger: what others published, what was measured here, and what the two say about each other.

docs/published.json holds the figures as printed, docs/measured.json what the last run of scripts/verify_claims.py
found. Every status in docs/RESULTS.md is computed here from those two files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED, MEASURED, RESULTS = "published.json", "measured.json", "RESULTS.md"
LOGITS, SUMS, ROUNDING = 5e-5, 5e-3, 2.0**-24
"""Largest difference of a logit or a map's value, of a sum over all of them, and of a sum of a map's absolute values in
proportion to itself, that counts as equal."""
POINTS = Decimal("0.1")
"""Largest difference of two accuracies that counts as equal, in percentage points: 50 pictures of 50,000."""
VALIDATION_PICTURES, VALIDATION_CLASSES = 50_000, 1000
OFFICIAL = "official code, PyTorch 2.13"

HERE, DIFFERS, ELSEWHERE, UNVERIFIED, UNCHECKED = (
    "verified here",
    "differs",
    "verified elsewhere",
    "unverified",
    "not checked in this run",
)
MEANINGS = {
    HERE: "computed by that run, and equal to the published figure when rounded to its digits"
    f" (accuracies: within {POINTS} points)",
    DIFFERS: "computed by that run, and not equal; the note says why, where it is known",
    ELSEWHERE: "somebody else's measurement, who is named; not ours",
    UNVERIFIED: "a claim that nothing here supports; accuracies need ImageNet and the weights, `--data_dir` and"
    " `--weights` measure them",
    UNCHECKED: "could be computed, but that run left it out",
}
FIGURES = {
    "params": "parameters, M",
    "macs": "multiply-accumulates, G",
    "top1": "top-1, %",
    "top5": "top-5, %",
    "top1_large": "top-1 of the large branch alone, %",
    "top1_small": "top-1 of the small branch alone, %",
}
_UNITS = {"params": Decimal(10**6), "macs": Decimal(10**9)}
_LEFT_OUT = {"pos_embed": "position embeddings", "projs": "projections around the fusion"}


@dataclass(frozen=True)
class Row:
    """One published figure and what became of it.

    status: one of MEANINGS. known: a difference would be no news.
    """

    label: str
    figure: str
    published: str
    source: str
    ours: str
    status: str
    note: str = ""
    known: bool = False

    @property
    def wrong(self) -> bool:
        """A count or a logit that differs, and the claim has no note of it."""
        return self.status == DIFFERS and not self.known


def load(path: Path) -> dict[str, Any]:
    """A data file of the ledger."""
    return json.loads(path.read_text(encoding="utf-8"))


def rounds_to(value: Decimal, published: str) -> bool:
    """Whether a value is the published one when rounded to its digits, halves away from zero."""
    printed = Decimal(published)
    return value.quantize(printed, ROUND_HALF_UP) == printed


def judge(entry: dict[str, Any], published: dict[str, Any], measured: dict[str, Any]) -> list[Row]:
    """A row for every figure of an entry, and one for its logits where official ones exist."""
    found = measured["entries"].get(entry["name"], {})
    rows = []
    for claim in entry["claims"]:
        ours, status, note = _verdict(entry, claim, published, found)
        note = "; ".join(filter(None, (note, claim.get("note"))))
        source = published["sources"][claim["source"]]["name"]
        known = "note" in claim or claim["figure"] not in _UNITS  # released weights may score other than the paper's
        rows.append(Row(entry["label"], FIGURES[claim["figure"]], claim["value"], source, ours, status, note, known))
    if "logits" in found:
        rows.append(_logits_row(entry, found["logits"]))
    return rows


def _verdict(entry, claim, published, found) -> tuple[str, str, str]:
    """(ours, status, note)."""
    if claim["figure"] in _UNITS:
        return _count_verdict(entry, claim, found)
    return _accuracy_verdict(entry, claim, published["sources"], found)


def _count_verdict(entry, claim, found) -> tuple[str, str, str]:
    figure = claim["figure"]
    if figure not in found:
        return "", UNCHECKED, ""
    left_out = entry.get("params_without", []) if figure == "params" else []
    value = Decimal(found["params_compared" if left_out else figure])
    status = HERE if rounds_to(value / _UNITS[figure], claim["value"]) else DIFFERS
    words = " and ".join(_LEFT_OUT[name] for name in left_out)
    note = (
        f"counted without the {words}, as the paper's figure seems to be; with them {found['params']:,}"
        if left_out
        else ""
    )
    return f"{value:,}", status, "; ".join(filter(None, (note, entry.get("note"))))


def _accuracy_verdict(entry, claim, sources, found) -> tuple[str, str, str]:
    source, figure, published = sources[claim["source"]], claim["figure"], Decimal(claim["value"])
    others = [c for c in entry["claims"] if c["figure"] == figure and _evaluates_official_weights(sources[c["source"]])]
    measured = found.get("accuracy", {}).get(str(crop_fraction(claim)))
    if measured and source["weights"] == "official":
        text = f"{measured[figure]:.3f}"
        if measured["images"] != VALIDATION_PICTURES:
            return text, UNVERIFIED, f"measured on {measured['images']:,} pictures of {VALIDATION_PICTURES:,}"
        note = f"{measured['weights']}, SHA-256 {measured['sha256'][:16]}..."
        return text, HERE if abs(Decimal(text) - published) <= POINTS else DIFFERS, note
    if "log" in source:
        return "", ELSEWHERE, source["log"]
    for other in others:
        log = f"{sources[other['source']]['log']} has {other['value']}"
        if crop_fraction(other) != crop_fraction(claim):
            log += f", with a crop of {crop_fraction(other):g} instead of {crop_fraction(claim):g}"
        return ("", ELSEWHERE, log) if abs(Decimal(other["value"]) - published) <= POINTS else ("", UNVERIFIED, log)
    return "", UNVERIFIED, source.get("unverified", "no weights were released")


def _evaluates_official_weights(source: dict[str, Any]) -> bool:
    return source["weights"] == "official" and "log" in source


def crop_fraction(claim: dict[str, Any]) -> float:
    """How much of the resized picture an accuracy was measured on; the paper's 224/256 unless the claim says."""
    return claim.get("crop_fraction", 0.875)


def _logits_row(entry: dict[str, Any], logits: dict[str, float] | None) -> Row:
    """Of the logits, or of a dense backbone's maps."""
    figure, text = ("maps", "20 values and 8 sums") if entry.get("backbone") else ("logits", "5 logits and 2 sums")
    where = (entry["label"], figure, text, entry.get("logits_by", OFFICIAL))
    if logits is None:
        return Row(*where, "", UNCHECKED)
    largest, sums, absolute = logits["difference"], logits["sums"], logits.get("absolute_sums", 0.0)
    status = HERE if largest <= LOGITS and sums <= SUMS and absolute <= ROUNDING else DIFFERS
    ours = f"differ by {largest:.1e} and {sums:.1e}"
    if absolute:
        ours += f", absolute sums by {absolute:.1e} of themselves"
    return Row(*where, ours, status)


def all_rows(published: dict[str, Any], measured: dict[str, Any]) -> dict[str, list[Row]]:
    """The ledger's rows by group."""
    groups: dict[str, list[Row]] = {name: [] for name in published["groups"]}
    for entry in published["entries"]:
        groups[entry["group"]] += judge(entry, published, measured)
    return groups


def render(published: dict[str, Any], measured: dict[str, Any]) -> str:
    """docs/RESULTS.md."""
    groups = all_rows(published, measured)
    rows = [row for group in groups.values() for row in group]
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    lines = [
        "# Published figures, and what is known about them",
        "",
        f"Written by `{measured['command']}` on {measured['date']}, on {measured['device']}, with {versions}.",
        "Not written by hand: the figures come from `docs/published.json`, what was computed from",
        "`docs/measured.json`, and every status from comparing the two. The same command does all of it again.",
        "",
        "| status | figures | |",
        "|---|--:|---|",
        *(f"| {name} | {sum(r.status == name for r in rows)} | {text} |" for name, text in MEANINGS.items()),
        "",
        f"Logits, and values of maps, count as equal within {LOGITS:g}, sums over all of them within {SUMS:g}, with",
        "weights made by rule. The sum of a map's absolute values, up to half a million, counts as equal within 2^-24",
        "of itself: what one rounding of each value to float32 may add up to.",
        "Parameters are counted in built models; multiply-accumulates, the papers' FLOPs, follow from their settings.",
    ]
    for name, title in published["groups"].items():
        lines += [
            "",
            f"## {title}",
            "",
            "| | figure | published | by | here | status | note |",
            "|---|---|--:|---|--:|---|---|",
        ]
        lines += [
            f"| {r.label} | {r.figure} | {r.published} | {r.source} | {r.ours} | {r.status} | {r.note} |"
            for r in groups[name]
        ]
    lines += ["", "## Sources", ""]
    lines += [f"- {source['name']}: {source['text']}" for source in published["sources"].values()]
    return "\n".join(lines) + "\n"


def model_table(published: dict[str, Any], measured: dict[str, Any]) -> str:
    """The README's table of models: all that have a name of their own."""
    lines = [
        "| model | parameters | multiply-accumulates | published top-1 | logits: largest difference |",
        "|---|--:|--:|--:|--:|",
    ]
    for entry in published["entries"]:
        found = measured["entries"].get(entry["name"], {})
        if entry.get("model") != entry["name"] or "params" not in found:
            continue
        top1 = next((f"{c['value']} %" for c in entry["claims"] if c["figure"] == "top1"), "none")
        logits = found.get("logits", {})
        difference = UNCHECKED if logits is None else f"{logits['difference']:.0e}" if logits else "none to compare"
        lines.append(
            f"| `{entry['name']}` | {found['params']:,} | {found['macs'] / 1e9:.2f} G | {top1} | {difference} |"
        )
    lines += [
        "",
        f"Differences to the official models in PyTorch (DeiT: timm's), weights by rule, on {measured['device']}.",
    ]
    return "\n".join(lines)
