"""scripts/bench_model.py as a user and as a comparing program start it, on a small model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

SMALL = [
    "crossvit_9",
    "2",
    "train",
    "--set",
    "depth=[[1,1,0]]",
    "--set",
    "img_size=[48,48]",
    "--set",
    "patch_size=[12,16]",
]


@pytest.mark.parametrize("ops", ["composed", "standard"])
def test_the_table(run_script, ops):
    done = run_script("scripts/bench_model.py", *SMALL, "--ops", ops)
    assert done.returncode == 0, done.stderr
    names, _, values = ([cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines())
    row = dict(zip(names, values, strict=True))
    assert row["model"] == "crossvit_9" and row["ops"] == ops and row["batch"] == "2" and row["what"] == "train"
    fastest, median = (float(row[name].removesuffix(" ms")) for name in ("minimum", "median"))
    assert 0 < fastest <= median < 1e3 * float(row["first result"].removesuffix(" s"))
    assert int(row["peak memory"].removesuffix(" MB")) > 100


def test_the_protocol(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "bench_model.py"), *SMALL, "--serve"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path) as worker:
        assert worker.stdin and worker.stdout
        ready, seconds = worker.stdout.readline().split()
        assert ready == "ready" and float(seconds) > 0
        for count in (3, 1):
            worker.stdin.write(f"{count}\n")
            worker.stdin.flush()
            *times, peak_mb = worker.stdout.readline().split()
            assert len(times) == count and all(0 < float(t) < float(seconds) for t in times) and int(peak_mb) > 100
        worker.stdin.write("q\n")
        worker.stdin.flush()
        assert worker.wait(60) == 0


COUNTED = """import mindspore as ms, numpy as np
from mindspore import nn, ops
ms.set_context(mode=ms.GRAPH_MODE)
class Net(nn.Cell):
    def construct(self, x):
        a, b = ops.split(ops.transpose(x, (1, 0)), 2)
        return ops.matmul(a.reshape(2, 6), b.reshape(6, 2)) + 1
Net()(ms.Tensor(np.ones((6, 4), np.float32)))
"""


def test_a_graph_is_counted(tmp_path):
    import graph_size

    program = tmp_path / "program.py"
    program.write_text(COUNTED)
    size = graph_size.size_of(graph_size.compiled([sys.executable, str(program)]))
    # transpose, split, product and sum compute or move; the first two read and write 24 numbers each
    assert size == graph_size.Size(kernels=4, transposes=1, moved=2 * 2 * 24 * 4 / 1e6)
    with pytest.raises(RuntimeError, match=r"nothing was compiled: .*no such thing"):
        graph_size.compiled([sys.executable, "-c", "raise SystemExit('no such thing')"])
