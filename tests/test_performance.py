"""How speed is compared: workers in turn, the page made of what was measured and of nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import performance_page
from alternate import alternate
from performance import PARTS

WORKER = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "scripts")!r})
from worker import serve
name, seconds = sys.argv[1], float(sys.argv[2])
def run():
    time.sleep(seconds)
    with open("turns", "a") as file:
        file.write(name)
print("a line of some library", flush=True)
run()
serve(run, 0.5)
"""

PARENT = f"""
import hashlib, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
sys.path.insert(0, {str(ROOT / "scripts")!r})
from worker import serve
pool = ProcessPoolExecutor(1, get_context("fork"))
run = lambda: pool.submit(hashlib.pbkdf2_hmac, "sha1", b"", b"", 500_000).result()
run()
serve(run, 0.5)
"""


def worker(name: str, seconds: float) -> list[str]:
    return [sys.executable, "-c", WORKER, name, str(seconds)]


def test_workers_are_asked_in_turn_and_told_apart(tmp_path):
    slow, fast = alternate([worker("s", 0.05), worker("f", 0.01)], 3, 2, tmp_path)
    assert (tmp_path / "turns").read_text() == "sf" + "ssff" * 3
    assert len(slow.seconds) == len(fast.seconds) == 6 and slow.ready == 0.5
    assert slow.best >= 0.05 and 0.01 <= fast.best <= fast.median < 0.05 and fast.best < slow.best
    assert 5 < fast.peak < 500 and fast.cpu < 0.05


def test_cpu_time_of_child_processes_counts(tmp_path):
    (found,) = alternate([[sys.executable, "-c", PARENT]], 3, 2, tmp_path)
    before = time.process_time()
    hashlib.pbkdf2_hmac("sha1", b"", b"", 500_000)
    alone = time.process_time() - before
    assert alone / 3 < found.cpu < 3 * alone


def test_a_worker_does_not_see_what_is_set_after_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("SET_BY_SOME_LIBRARY", "1")
    check = f"import os; assert 'SET_BY_SOME_LIBRARY' not in os.environ\n{WORKER}"
    assert alternate([[sys.executable, "-c", check, "w", "0"]], 1, 1, tmp_path)[0].ready == 0.5


def test_a_worker_that_dies_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"^ended too early: .* -c raise SystemExit\(3\)$"):
        alternate([[sys.executable, "-c", "raise SystemExit(3)"]], 1, 1, tmp_path)


RATES = {"best": 1.0, "median": 1.25, "cpu": 2.0, "ready": 9.0, "peak": 1000}


def measured(found: object) -> dict[str, object]:
    versions = {"mindspore": "2.10.0", "timm": "1.0.31"}
    machine = {"date": "2026-01-01", "cpu": "A Processor", "cores": 2, "versions": versions}
    return {"machine": machine, "found": found}


def test_the_page_has_every_part_that_was_measured_and_its_ratios():
    """And every table has as many cells in each row as in its head."""
    size = {"kernels": 50, "transposes": 3, "moved": 7.5}
    sizes = {"ours": size, "mindcv": {**size, "kernels": 100}, "mindcv model": {**size, "kernels": 60, "moved": 30.0}}
    both, twice = {"timm": RATES, "ours": {**RATES, "best": 0.5}}, {**RATES, "best": 2.0, "peak": 1500}
    models = {"timm": RATES, "composed": twice, "native": RATES, "mindcv": {**RATES, "best": 7.0}}
    data = {
        "models": measured([{"model": "m", "batch": 8, "what": "forward", "results": models}]),
        "floor": measured({"large": 1e11, "models": {"m": 8e10}, "macs": {"m": 5e9}}),
        "exported": measured([{"model": "m", "runtime": "openvino", "results": both}]),
        "graphs": measured([{"model": "m", "precision": "O2", "sizes": sizes}]),
        "start": measured(
            {name: [3.0, 2.0, 4.0] for name in ("composed", "native", "mindcv", "mindcv model", "cached")}
        ),
        "input": measured({**both, "pillow": RATES, "batch": 64, "workers": 2, "by_workers": {"0": 50.0, "2": 99.0}}),
    }
    text = performance_page.page(data)
    for said in (
        "`m`, 8 pictures, forward: `composed` | 2,000 ms | 2.00 | 1.00 | 1,500 MB | 1.50 |",
        "| `m` | 160 GFLOP/s | 500 ms | 2.00 | 4.00 | 2.00 |",
        "| `m`, openvino | 1,000 ms | 500 ms | 0.50 | 1.00 |",
        "| `m`, O2, this suite | 50 | 0.50 | 3 | 8 MB |",
        "*2026-01-01, A Processor, 2 cores; mindspore 2.10.0, timm 1.0.31.*",
    ):
        assert said in text
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table
    assert "Exported" not in performance_page.page({name: data[name] for name in ("models", "input")})


def test_the_page_in_the_docs_is_made_of_its_data():
    data = json.loads(performance_page.DATA.read_text())
    assert performance_page.PAGE.read_text(encoding="utf-8") == performance_page.page(data)
    assert set(data) == set(PARTS) and performance_page.PICTURE.read_bytes().startswith(b"\x89PNG")
