"""How speed is compared: workers in turn, the page made of what was measured and of nothing else."""

from __future__ import annotations

import json
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import performance_page
from alternate import alternate

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
    assert 0.3 * found.median < found.cpu < 3 * found.median


def test_a_worker_that_dies_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"^ended too early: .* -c raise SystemExit\(3\)$"):
        alternate([[sys.executable, "-c", "raise SystemExit(3)"]], 1, 1, tmp_path)


def test_the_page_is_what_was_measured():
    """And every table has as many cells in each row as in its head."""
    text = performance_page.PAGE.read_text(encoding="utf-8")
    assert text == performance_page.page(json.loads(performance_page.DATA.read_text()))
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table
    assert performance_page.PICTURE.read_bytes()[:4] == b"\x89PNG" and f"]({performance_page.PICTURE.name})" in text
