"""The benchmark of the data pipeline: what it prints adds up, and its worker speaks the protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from running import ROOT, call, photos

SCRIPT = "scripts/bench_input.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos") / "p", {"a": 8, "b": 8})


def test_every_number_of_workers_has_its_row(folder):
    done = call(SCRIPT, folder, "--workers", 0, 1, "--batch", 4, "--batches", 6)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12 training and 4 validation pictures, batches of 4, by pixels.cc\n")
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row["workers"] for row in found["rows"]] == [0, 1] and found["batch"] == 4
    rows = [row[name] for row in found["rows"] for name in ("train", "val")]
    assert all(row["per_second"] > 0 for row in rows)
    # one process alone cannot use more CPU seconds than there are seconds
    alone = found["rows"][0]
    assert all(alone[name]["per_cpu_second"] >= 0.8 * alone[name]["per_second"] for name in ("train", "val"))


def test_it_says_when_pillow_does_everything(folder):
    done = call(
        SCRIPT, folder, "--workers", 1, "--batch", 4, "--batches", 2, env={**os.environ, "CROSSVIT_PIXELS": "pillow"}
    )
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["by"] == "Pillow"


def test_a_worker_answers_with_times_and_memory(folder):
    command = [sys.executable, str(ROOT / SCRIPT), str(folder), "--serve", "1", "--batch", "4"]
    done = subprocess.run(command, input="3\n1\nq\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ready, three, one = done.stdout.splitlines()
    assert ready.startswith("ready ") and float(ready.split()[1]) > 0
    assert len(three.split()) == 4 and len(one.split()) == 2
    assert all(float(v) > 0 for v in three.split()) and 20 < float(one.split()[-1]) < 4000


def test_a_folder_that_is_not_there_is_the_users_to_know(tmp_path):
    done = call(SCRIPT, tmp_path / "gone")
    assert done.returncode == 2 and "no folder" in done.stderr and "Traceback" not in done.stderr
