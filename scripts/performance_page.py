"""Writes docs/PERFORMANCE.md and its picture from docs/performance.json, which scripts/performance.py measures.

python scripts/performance_page.py
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import graph_size

DATA, PAGE, PICTURE = (ROOT / "docs" / name for name in ("performance.json", "PERFORMANCE.md", "performance.png"))
WHO = {"timm": "timm, PyTorch eager", "composed": "`composed`", "native": "`native`", "mindcv": "MindCV"}
HEAD = """# Performance

Measured by `python scripts/performance.py`, which writes this page; nothing in it is typed by hand. Everything that is
compared was measured in turn in one run, so that a machine whose speed drifts slows all alike: the ratios say more than
the times. Of each ratio the numbers are those of the fastest iterations. **Nothing here was run on Ascend.**

`composed` are compositions of MindSpore's CPU operators, the default on a CPU; `native` this suite's C++ kernels
(`run.ops=native`). Training is a whole step: soft targets, gradients, AdamW.
"""


def line(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(str(c) for c in cells)} |"


def table(head: list[str], rows: list[str]) -> str:
    """A table whose first column is text and whose others are numbers."""
    return "\n".join([line(*head), "|---|" + "--:|" * (len(head) - 1), *rows])


def where(part: dict[str, Any]) -> str:
    """The machine of a part."""
    m = part["machine"]
    return f"*{m['date']}, {m['cpu']}, {m['cores']} cores; {', '.join(map(' '.join, m['versions'].items()))}.*"


def models(part: dict[str, Any]) -> str:
    """Times, ratios and memory beside timm."""
    rows = []
    for row in part["found"]:
        timm = row["results"]["timm"]
        for who, r in row["results"].items():
            name = f"`{row['model']}`, {row['batch']} pictures, {row['what']}: {WHO[who]}"
            ratios = (f"{r['best'] / timm['best']:.2f}", f"{r['median'] / timm['median']:.2f}")
            memory = f"{r['peak'] / timm['peak']:.2f}"
            rows.append(line(name, f"{r['best'] * 1e3:,.0f} ms", *ratios, f"{r['peak']:,} MB", memory))
    head = ["", "fastest", "ratio to timm", "of medians", "peak memory", "ratio to timm"]
    return f"## Models on the CPU\n\n{table(head, rows)}\n\n{where(part)}"


def floor(part: dict[str, Any], models_part: dict[str, Any]) -> str:
    """How far each forward pass is from the time its products alone would take."""
    found, rows = part["found"], []
    for row in models_part["found"]:
        if row["what"] == "forward" and row["batch"] == 8:
            least = found["macs"][row["model"]] * 8 / found["models"][row["model"]]
            times = [f"{row['results'][who]['best'] / least:.2f}" for who in ("timm", "composed", "native")]
            speed = f"{2 * found['models'][row['model']] / 1e9:.0f} GFLOP/s"
            rows.append(line(f"`{row['model']}`", speed, f"{least * 1e3:.0f} ms", *times))
    head = ["forward, 8 pictures", "rate of its products", "they alone", "timm, times that", "`composed`", "`native`"]
    return (
        f"## The floor\n\nA model cannot be faster than its multiply-accumulates at the rate at which this machine"
        f" multiplies matrices of its sizes ({2 * found['large'] / 1e9:.0f} GFLOP/s for one large product,"
        f" `python scripts/product_rate.py`).\n\n{table(head, rows)}\n\n{where(part)}\n\n`composed` reads the class"
        " token's attention with fewer products than the model's definition has, see `NormClassAttention`."
    )


def exported(part: dict[str, Any]) -> str:
    """Our ONNX beside timm's export."""
    rows = []
    for row in part["found"]:
        timm, own = (row["results"][who] for who in ("timm", "ours"))
        ratios = (f"{own['best'] / timm['best']:.2f}", f"{own['median'] / timm['median']:.2f}")
        times = (f"{timm['best'] * 1e3:,.0f} ms", f"{own['best'] * 1e3:,.0f} ms")
        rows.append(line(f"`{row['model']}`, {row['runtime']}", *times, *ratios))
    head = ["8 pictures, float32", "timm's export", "ours", "ratio", "of medians"]
    return f"## Exported\n\n{table(head, rows)}\n\n{where(part)}"


def graphs(part: dict[str, Any]) -> str:
    """Kernels of a training step."""
    rows = []
    for row in part["found"]:
        for who, s in row["sizes"].items():
            ratio = s["kernels"] / row["sizes"]["mindcv"]["kernels"]
            cells = (f"{s['kernels']:,}", f"{ratio:.2f}", s["transposes"], f"{s['moved']:,.0f} MB")
            rows.append(line(f"`{row['model']}`, {row['precision']}, {graph_size.COUNTED[who]}", *cells))
    head = ["training step, 2 pictures", "kernels", "ratio to MindCV", "transposes", "moved by copies"]
    return (
        f"## Size of the graph\n\nWhat can be said of a card without one: how many kernels it is asked to run."
        f" `python scripts/graph_size.py` says how they are counted.\n\n{table(head, rows)}\n\n{where(part)}"
    )


def start(part: dict[str, Any]) -> str:
    """Seconds to the first training step."""
    found = part["found"]
    mindcv = min(found["mindcv"])
    names = {
        "composed": "`composed`",
        "native": "`native`",
        "mindcv": "MindCV as its train.py trains",
        "mindcv model": "MindCV's model with MindSpore's AdamWeightDecay",
    }
    rows = [line(names[n], f"{min(found[n]):.1f} s", f"{min(found[n]) / mindcv:.2f}") for n in names]
    rows.append(
        line(
            "`composed`, graphs from MindSpore's compile cache",
            f"{min(found['cached'][1:]):.1f} s",
            f"{min(found['cached'][1:]) / mindcv:.2f}",
        )
    )
    head = ["`crossvit_9`, 8 pictures", "start to end of the first training step", "ratio to MindCV"]
    return f"## Time to the first step\n\n{table(head, rows)}\n\n{where(part)}"


def pictures(part: dict[str, Any]) -> str:
    """The input pipeline."""
    found, names = (
        part["found"],
        {"timm": "timm's loader", "ours": "this suite", "pillow": "this suite, without a compiler"},
    )
    rows = []
    for who, name in names.items():
        r = found[who]
        rows.append(line(name, f"{found['batch'] / r['cpu']:.0f}", f"{found['timm']['cpu'] / r['cpu']:.2f}"))
    head = [
        f"800 photos of 375 to 640 pixels to 240, batches of {found['batch']}, {found['workers']} workers",
        "pictures per CPU second",
        "ratio",
    ]
    scaling = [
        line(f"{w} worker{'s' * (int(w) > 1)}" if int(w) else "in the training process", f"{v:.0f}")
        for w, v in found["by_workers"].items()
    ]
    return (
        f"## Input\n\nRandom crop, flip, RandAugment, erasing, mixing, normalisation, pixels as in the recipe.\n\n"
        f"{table(head, rows)}\n\n{table(['this suite', 'pictures per second'], scaling)}\n\n{where(part)}"
    )


def curves(part: dict[str, Any]) -> str:
    """Cost against batch, picture size and depth."""
    text = f"## Curves\n\n![Time and memory against batch, picture size and depth]({PICTURE.name})\n\n"
    rows = []
    for row in part["found"]:
        cells = [f"{row['results'][w]['best'] * 1e3:,.0f} ms" for w in ("composed", "native")]
        cells += [f"{row['results'][w]['peak']:,} MB" for w in ("composed", "native")]
        rows.append(line(f"{row['curve']} {row['at']}, {row['what']}", *cells))
    head = ["`crossvit_9`, 8 pictures where not said", "`composed`", "`native`", "memory, `composed`", "`native`"]
    return f"{text}{table(head, rows)}\n\n{where(part)}"


def draw(part: dict[str, Any], path: Path) -> None:
    """The curves as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["curve"] for row in part["found"]))
    figure, axes = plt.subplots(2, len(names), figsize=(4 * len(names), 6), layout="constrained")
    for column, curve in enumerate(names):
        for what, style in (("forward", "--"), ("train", "-")):
            rows = [r for r in part["found"] if (r["curve"], r["what"]) == (curve, what)]
            at = [r["at"] for r in rows]
            for who, colour in (("composed", "C0"), ("native", "C1")):
                for axis, key in zip(axes[:, column], ("best", "peak"), strict=True):
                    values = [r["results"][who][key] for r in rows]
                    axis.plot(at, values, style, color=colour, marker=".", label=f"{who}, {what}")
        axes[1, column].set_xlabel({"pixels": "pixels of the small branch"}.get(curve, curve))
        for axis, label in zip(axes[:, column], ("seconds", "peak memory, MB"), strict=True):
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def page(data: dict[str, Any]) -> str:
    """The whole page as Markdown, of the parts that were measured."""
    makers = {
        "models": models,
        "floor": lambda part: floor(part, data["models"]),
        "exported": exported,
        "graphs": graphs,
        "start": start,
        "input": pictures,
        "curves": curves,
    }
    parts = [make(data[name]).strip() for name, make in makers.items() if name in data]
    return "\n\n".join([HEAD.strip(), *parts]) + "\n"


def write(data: dict[str, Any]) -> None:
    """Writes the page and its picture."""
    if "curves" in data:
        draw(data["curves"], PICTURE)
    PAGE.write_text(page(data), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    write(json.loads(DATA.read_text()))
