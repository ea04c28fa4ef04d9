"""A checkpoint that cannot be written: the last good one stays, all ranks agree, and the run stops or goes on."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
from running import ROOT, TINY, call, cannot, free_port, metrics, msrun_words, same_run, wait_for
from supervised import Supervised, slow_disk

from mindcv_crossvit.journal import METRICS, Journal, NotSaved
from mindcv_crossvit.report import draw_curves
from mindcv_crossvit.training.checkpoint import read_checkpoint

EVERY = ["--set", "checkpoint.every_updates=1"]


def limit_files(pid: int, size: int) -> None:
    """As a full disk: no file of the process may grow beyond `size` bytes; -1 for any."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def test_all_ranks_stop_together_when_rank_0_cannot_save(finished_by_two, cached, tmp_path):
    folder = tmp_path / "run"
    train = [*msrun_words(2, free_port()), "python", ROOT / "train.py", "-c", TINY, "--output", folder]
    job = Supervised(tmp_path / "logs", [*train, *EVERY], env=slow_disk(cached, tmp_path))
    wait_for((folder / "last.safetensors").exists, job.process)
    limit_files(job.people()["rank 0"]["pid"], 30_000)
    code, said = job.end()
    assert code == 7 and "supervise: restart" not in said, said[-2000:]
    for rank in (0, 1):
        assert f"ended: rank {rank} ended with code 7: NOT SAVED after update" in said
    assert "File too large" in said and "then --resume auto" in said
    good = read_checkpoint(folder / "last.safetensors").meta["update"]
    assert f"NOT SAVED after update {good + 1}:" in said
    again = Supervised(tmp_path / "again", [*train, "--resume", "auto"], env=cached)
    assert again.end()[0] == 0
    same_run(finished_by_two, folder)


def test_a_run_that_may_goes_on_without_a_checkpoint(finished, cached, tmp_path):
    folder = tmp_path / "run"
    options = [*EVERY, "--set", "checkpoint.on_failure=go_on"]
    command = [sys.executable, ROOT / "train.py", "-c", TINY, "--output", folder, *options]
    process = subprocess.Popen(
        [str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=slow_disk(cached, tmp_path)
    )
    wait_for((folder / "last.safetensors").exists, process)
    limit_files(process.pid, 30_000)
    wait_for(lambda: "NOT SAVED after update" in (folder / "log.txt").read_text(), process)
    limit_files(process.pid, -1)
    assert process.wait(200) == 0
    assert "the run goes on (checkpoint.on_failure)" in (folder / "log.txt").read_text()
    same_run(finished, folder)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_with_room_it_ends_the_same(finished, cached, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = (finished / "last.safetensors").stat().st_size * 5 // 2
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        cannot("no right to mount a small disk")
    try:
        done = call("train.py", "-c", TINY, "--output", disk / "run", *EVERY, "--set", "checkpoint.keep=9", env=cached)
        assert done.returncode == 7, done.stderr
        assert "No space left on device" in done.stdout and "Traceback" not in done.stderr
        good = read_checkpoint(disk / "run" / "last.safetensors").meta["update"]
        assert good == 2
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        done = call("train.py", "-c", TINY, "--output", disk / "run", "--resume", "auto", env=cached)
        assert done.returncode == 0, done.stderr
        same_run(finished, disk / "run")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_stops_the_run_and_writable_it_ends_the_same(finished, cached, tmp_path):
    """Root may write whatever the permissions say: the file system itself is made read-only, under a running job."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True).returncode:
        cannot("no right to mount a file system")
    try:
        folder, env = disk / "run", slow_disk(cached, tmp_path)
        command = [sys.executable, ROOT / "train.py", "-c", TINY, "--output", folder, *EVERY]
        with (tmp_path / "said.txt").open("w") as said:
            process = subprocess.Popen([str(c) for c in command], stdout=said, stderr=subprocess.STDOUT, env=env)
        wait_for((folder / "last.safetensors").exists, process)
        read_only = ["mount", "-o", "remount,ro", disk]  # refused while a file is being written
        wait_for(lambda: subprocess.run(read_only, capture_output=True).returncode == 0, process)
        assert process.wait(100) == 7
        said = (tmp_path / "said.txt").read_text()
        assert "NOT SAVED after update" in said and "Read-only file system" in said and "Traceback" not in said
        good = read_checkpoint(folder / "last.safetensors").meta["update"]
        assert f"NOT SAVED after update {good + 1}:" in said
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        done = call("train.py", "-c", TINY, "--output", folder, "--resume", "auto", env=cached)
        assert done.returncode == 0, done.stderr
        same_run(finished, folder)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_lines_that_a_full_disk_refuses_are_written_later(tmp_path, capsys):
    journal = Journal(tmp_path, speaks=False)
    journal.record(update=1)
    (tmp_path / METRICS).rename(tmp_path / "first")
    (tmp_path / METRICS).symlink_to("/dev/full")
    journal.record(update=2)
    journal.record(update=3)
    assert capsys.readouterr().err.count("kept in memory") == 1
    with pytest.raises(OSError, match="No space left"):  # a checkpoint now would have metrics that may be lost
        journal.settle()
    (tmp_path / METRICS).unlink()
    (tmp_path / "first").rename(tmp_path / METRICS)
    journal.settle()
    assert [m["update"] for m in metrics(tmp_path)] == [1, 2, 3]
    journal.record(update=4)
    assert [m["update"] for m in metrics(tmp_path)] == [1, 2, 3, 4]
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[-1]) == {"update": 4}


def test_a_file_of_the_run_folder_that_cannot_be_written_stays_and_is_named(finished, tmp_path):
    for name in ("plan.txt", "curves.png"):
        (tmp_path / name).mkdir()
    with pytest.raises(NotSaved, match=r"plan\.txt cannot be written: Is a directory; make room, then --resume auto"):
        Journal(tmp_path, speaks=False).write("plan.txt", "new")
    (tmp_path / METRICS).write_bytes((finished / METRICS).read_bytes())
    with pytest.raises(NotSaved, match=r"curves\.png cannot be written"):
        draw_curves(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # as a full disk
        with pytest.raises(NotSaved, match=r"metrics\.jsonl cannot be written: File too large"):
            Journal(tmp_path, speaks=False).forget_after(5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / METRICS).read_bytes() == (finished / METRICS).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", METRICS, "plan.txt"]
