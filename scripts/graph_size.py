"""Counts the kernels of a compiled training step, ours beside MindCV's, as an Ascend card would be given it.

python scripts/graph_size.py crossvit_9 crossvit_15 crossvit_18

The step is compiled on the CPU with MindSpore's own operators (`--ops standard`), batch 2, float32; a card's compiler
fuses some kernels and adds format changes of its own, which cannot be seen here. Both models go through the same step,
so what differs is the model. Operators that compute nothing (reshapes, tuples, the order of updates) are not counted.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCH = 2
NOTHING = {"Reshape", "ExpandDims", "TupleGetItem", "MakeTuple", "UpdateState", "Load", "Depend", "Return", "Switch"}
MOVES = {"Transpose", "Concat", "StridedSlice", "StridedSliceGrad", "Slice", "Split", "Tile", "BroadcastTo", "Cast"}
_NODE = re.compile(r"^\s+%\d+\([^)]*\) = (?:PrimFunc_)?(\w+)\(")
_SHAPE = re.compile(r"Tensor\[(\w+?)(\d+)\], \(([\d, ]*)\)")


@dataclass(frozen=True)
class Size:
    """kernels: that compute or move. optimizer: of them, the updates of parameters. moved: MB that transposes, slices,
    joins and repeats read and write. transposes: how many of the kernels they are."""

    kernels: int
    optimizer: int
    transposes: int
    moved: float


def size_of(text: str) -> Size:
    """The size of a graph, from what MindSpore writes of it."""
    kinds: Counter[str] = Counter()
    moved = 0
    lines = text.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        node = _NODE.match(line)
        if node and node[1] not in NOTHING:
            kinds[node[1]] += 1
            moved += output_bytes(after) * 2 if node[1] in MOVES else 0
    updates = sum(n for kind, n in kinds.items() if kind.startswith(("AdamW", "Assign")))
    return Size(sum(kinds.values()), updates, kinds["Transpose"], moved / 1e6)


def output_bytes(line: str) -> int:
    """Bytes of a node's output, from the line below it: `: (inputs) -> (output)`."""
    found = _SHAPE.search(line.rpartition(" -> ")[2])
    if not found:
        return 0
    return int(found[2]) // 8 * math.prod(int(n) for n in found[3].split(",") if n.strip())


def compiled(model: str, ops: str) -> str:
    """The training step's graph as it is run, in MindSpore's own notation."""
    with tempfile.TemporaryDirectory() as folder:
        say = {**os.environ, "MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": folder}
        command = [sys.executable, str(ROOT / "scripts" / "bench_model.py"), model, str(BATCH), "train", "--serve"]
        command += [] if model.startswith("mindcv/") else ["--ops", ops]
        subprocess.run(command, env=say, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        graphs = list(Path(folder).rglob("graph_build_*.ir"))
        return max((path.read_text() for path in graphs), key=len)


def row(name: str, size: Size) -> str:
    """One line of the table."""
    counts = f"{size.kernels:,} | {size.kernels - size.optimizer:,} | {size.transposes:,}"
    return f"| {name} | {counts} | {size.moved:,.0f} MB |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Count the kernels of a training step.", allow_abbrev=False)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--ops", default="standard")
    arguments = parser.parse_args()
    print("| model | kernels | without the optimizer | transposes | moved by copies, batch 2 |")
    print("|---|--:|--:|--:|--:|")
    for model in arguments.models:
        for name in (model, f"mindcv/{model}"):
            print(row(name, size_of(compiled(name, arguments.ops))), flush=True)


if __name__ == "__main__":
    main()
