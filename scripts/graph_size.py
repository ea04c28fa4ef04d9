"""Counts the kernels of a compiled training step, ours beside MindCV's, as an Ascend card would be given it.

python scripts/graph_size.py crossvit_9 crossvit_15 crossvit_18 [--precision O2]

Counted is the graph that MindSpore's front end hands to a backend, batch 2, after its own optimisations: what a CPU
lacks and takes apart again is still whole in it. It may end there: operators of a card (`--ops fused`, which a card
gets) cannot be run on a CPU. A card's compiler fuses some kernels and adds format changes of its own, which cannot be
seen here. MindCV is counted twice: as its own train.py would train it (a fixed loss scale, no check for overflows), and
its model in this suite's step, where only the models differ. Operators that compute nothing (reshapes, tuples, the
order of updates) are not counted.
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
sys.path.insert(0, str(ROOT))

from mindcv_crossvit.ops import NAMES, PRECISIONS

BATCH = 2
COUNTED = {"ours": "this suite", "mindcv": "MindCV", "mindcv model": "MindCV's model in this suite's step"}
NOTHING = {"Reshape", "ExpandDims", "TupleGetItem", "MakeTuple", "make_list", "UpdateState", "Load", "Depend", "Return"}
NOTHING |= {"Switch", "Partial"}
MOVES = {"Transpose", "Concat", "StridedSlice", "StridedSliceGrad", "Slice", "Split", "SplitWithSize", "Stack"}
MOVES |= {"Unstack", "Tile", "BroadcastTo", "Cast"}
_NODE = re.compile(r"^\s+%\d+\([^)]*\) = (?:PrimFunc_)?(\w+)\(")
_BITS = re.compile(r"Tensor\[[A-Za-z]+(\d+)\]")
_SHAPE = re.compile(r"\((\d[\d, ]*)\)")


@dataclass(frozen=True)
class Size:
    """kernels: that compute or move. transposes: of them, those. moved: MB that transposes, casts, slices, joins and
    repeats read and write."""

    kernels: int
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
    return Size(sum(kinds.values()), kinds["Transpose"], moved / 1e6)


def output_bytes(line: str) -> int:
    """Bytes of a node's outputs, from the line below it: `: (inputs) -> (outputs)`."""
    outputs = line.rpartition(" -> ")[2]
    bits = _BITS.search(outputs)
    numbers = sum(math.prod(int(n) for n in shape.split(",") if n.strip()) for shape in _SHAPE.findall(outputs))
    return int(bits[1]) // 8 * numbers if bits else 0


def compiled(command: list[str]) -> str:
    """The largest graph that a program compiles, in MindSpore's own notation. RuntimeError when it makes none."""
    with tempfile.TemporaryDirectory() as folder:
        say = {**os.environ, "MS_DEV_SAVE_GRAPHS": "2", "MS_DEV_SAVE_GRAPHS_PATH": folder}
        done = subprocess.run(command, env=say, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        graphs = list(Path(folder).rglob("*_backend_pass_*.ir"))
        if not graphs:
            raise RuntimeError(f"nothing was compiled: {done.stderr[-500:]}")
        return max((path.read_text() for path in graphs), key=len)


def measure(model: str, precision: str, ops: str = "fused") -> dict[str, Size]:
    """The sizes of a model's training step: `ours`, MindCV's as it trains, and MindCV's model in our step."""
    scripts = ROOT / "scripts"
    ours = [sys.executable, str(scripts / "bench_model.py")]
    rest = [str(BATCH), "train", "--serve", "--precision", precision]
    commands = {
        "ours": [*ours, model, *rest, "--ops", ops],
        "mindcv": [sys.executable, str(scripts / "bench_peer.py"), "mindcv-train", model, str(BATCH), precision],
        "mindcv model": [*ours, f"mindcv/{model}", *rest],
    }
    return {who: size_of(compiled(command)) for who, command in commands.items()}


def row(name: str, size: Size) -> str:
    """One line of the table."""
    return f"| {name} | {size.kernels:,} | {size.transposes:,} | {size.moved:,.0f} MB |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Count the kernels of a training step.", allow_abbrev=False)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--ops", choices=NAMES, default="fused")
    parser.add_argument("--precision", choices=PRECISIONS, default="O0")
    arguments = parser.parse_args()
    print("| model | kernels | transposes | moved by copies, batch 2 |")
    print("|---|--:|--:|--:|")
    for model in arguments.models:
        for who, size in measure(model, arguments.precision, arguments.ops).items():
            print(row(f"{model}, {COUNTED[who]}", size), flush=True)


if __name__ == "__main__":
    main()
