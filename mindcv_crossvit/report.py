"""A picture of a run's curves. Reads the run folder only; the training path does not need it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .journal import written

if TYPE_CHECKING:
    from .evaluation import Score
    from .inference import Answer
    from .training.checkpoint import Described

CURVES = "curves.png"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def draw_curves(folder: Path) -> Path:
    """Writes curves.png: training and validation loss over epochs, validation accuracy, learning rate.

    Raises NotSaved.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = read_metrics(folder)
    updates = [line for line in lines if "loss" in line]
    scores = [line for line in lines if "val_top1" in line]
    per_epoch = max(updates[-1]["update"] / updates[-1]["epoch"], 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot(
        [u["update"] / per_epoch for u in updates], [u["loss"] for u in updates], lw=0.5, alpha=0.6, label="training"
    )
    left.plot([s["epoch"] for s in scores], [s["val_loss"] for s in scores], lw=1.5, label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy", title="loss")
    left.legend(frameon=False)
    rate = left.twinx()
    rate.plot([u["update"] / per_epoch for u in updates], [u["lr"] for u in updates], lw=0.8, ls=":", color="grey")
    rate.set_ylabel("learning rate (dotted)")
    right.plot([s["epoch"] for s in scores], [100 - s["val_top1"] for s in scores], lw=1.2, color="tab:green")
    right.set(
        xlabel="epoch",
        ylabel="error, %",
        yscale="symlog",
        title=f"validation error; last top-1 {scores[-1]['val_top1']:.2f} %",
    )
    right.set_ylim(bottom=0)
    right.grid(alpha=0.3)
    path = folder / CURVES
    with written(path) as fresh:
        figure.savefig(fresh, dpi=110, format="png")
    plt.close(figure)
    return path


def draw_comparison(runs: dict[str, list[Path]], path: Path) -> None:
    """Writes a picture of the validation error over updates, a colour per name and a line per run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for k, (name, folders) in enumerate(runs.items()):
        for folder in folders:
            scores = [line for line in read_metrics(folder) if "val_top1" in line]
            label = name if folder == folders[0] else None
            errors = [100 - s["val_top1"] for s in scores]
            axes.plot([s["update"] for s in scores], errors, color=f"C{k}", lw=1.2, alpha=0.8, label=label)
    axes.set(xlabel="update", ylabel="validation error, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def score_facts(scores: dict[str, Score], checkpoint: Described, branch: str | None = None) -> dict[str, Any]:
    """The scores of a checkpoint's weights (`model`) and of their moving average (`ema`, if any) as plain values.

    branch: whose head alone was scored, if it was.
    """
    raw = scores["model"]
    facts: dict[str, Any] = {"top1": raw.top1, "top5": raw.top5, "loss": raw.loss, "images": raw.images}
    if "ema" in scores:
        facts |= {f"ema_{name}": getattr(scores["ema"], name) for name in ("top1", "top5", "loss")}
    facts |= {"branch": branch} if branch else {}
    return {**facts, "checkpoint": str(checkpoint.path), "model": checkpoint.meta["model"]["name"]}


def score_table(scores: dict[str, Score], checkpoint: Described, branch: str | None = None) -> str:
    """The same for people."""
    rows = [
        ("model", checkpoint.meta["model"]["name"]),
        ("checkpoint", f"{checkpoint.path} (after update {checkpoint.meta['update']:,})"),
    ]
    rows += [("branch", f"{branch}; the head of this branch alone")] if branch else []
    for part, score in scores.items():
        name = "weights" if part == "model" else "moving average"
        rows.append((name, f"top-1 {score.top1:.2f} %  top-5 {score.top5:.2f} %  cross-entropy {score.loss:.4f}"))
    raw = scores["model"]
    rows.append(("images", f"{raw.images:,} counted once" + (f", {raw.skipped} skipped" if raw.skipped else "")))
    return "\n".join(f"{name:<15} {text}" for name, text in rows)


def answer_facts(path: Path, answers: list[Answer], drawing: Path | None) -> dict[str, Any]:
    """The likeliest classes of one picture as plain values, likeliest first."""
    facts: dict[str, Any] = {
        "path": str(path),
        "classes": [{"class": a.name, "index": a.index, "probability": a.probability} for a in answers],
    }
    return facts | ({"attention": str(drawing)} if drawing else {})


def answer_table(facts: dict[str, Any]) -> str:
    """The same for people."""
    name = facts["path"].encode(errors="backslashreplace").decode()  # a file's name need not be text
    lines = [name, *(f"  {100 * c['probability']:6.2f} %  {c['class']}" for c in facts["classes"])]
    return "\n".join([*lines, *([f"  attention drawn in {facts['attention']}"] if "attention" in facts else [])])
