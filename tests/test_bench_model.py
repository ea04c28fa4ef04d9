"""scripts/bench_model.py as a user and as a comparing program start it, on a small model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

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
