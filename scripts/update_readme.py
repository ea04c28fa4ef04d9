"""Writes the README's tables and its picture from measured files.

python scripts/update_readme.py RUN [RUN ...]

RUN: finished run folders of configs/digits.yaml, the first of which gives the picture. The table of models comes from
docs/published.json and docs/measured.json (scripts/verify_claims.py).
"""

import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import claims


def variants() -> str:
    """The table of models."""
    docs = ROOT / "docs"
    return claims.model_table(claims.load(docs / claims.PUBLISHED), claims.load(docs / claims.MEASURED))


def digits(runs: list[Path]) -> str:
    """The results of the digits runs."""
    lines = ["| seed | top-1 | wrong of 360 | training time | machine |", "|--:|--:|--:|--:|---|"]
    scores = []
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        machine = json.loads((run / "manifest.json").read_text())
        seed = re.search(r"\n  seed: (\d+)", (run / "recipe.yaml").read_text())
        wrong = round(summary["images"] * (1 - summary["top1"] / 100))
        cores, version = machine["machine"]["cores"], machine["versions"]["mindspore"]
        scores.append(summary["top1"])
        lines.append(
            f"| {seed[1] if seed else '?'} | {summary['top1']:.2f} % | {wrong} | {summary['seconds']:.0f} s |"
            f" {cores} x86 cores, MindSpore {version} |"
        )
    mean = sum(scores) / len(scores)
    lines += [
        "",
        f"Last checkpoint each, mean {mean:.2f} %; an RBF support-vector machine gets 98.9 % on the same split.",
        "The times include compiling; other jobs shared the cores.",
    ]
    return "\n".join(lines)


def replace(text: str, block: str, content: str) -> str:
    """The text with the content of one marked block exchanged."""
    return re.sub(
        rf"(<!-- {block} -->\n).*?(<!-- /{block} -->)", lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.S
    )


def main() -> int:
    """Updates README.md in place."""
    runs = [Path(argument) for argument in sys.argv[1:]]
    if not runs:
        print(__doc__)
        return 2
    readme = ROOT / "README.md"
    text = replace(readme.read_text(encoding="utf-8"), "variants", variants())
    readme.write_text(replace(text, "digits", digits(runs)), encoding="utf-8")
    shutil.copyfile(runs[0] / "curves.png", ROOT / "docs" / "digits.png")
    print("updated README.md and docs/digits.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
