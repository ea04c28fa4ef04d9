"""Real jobs with real faults under the supervisor: who failed and why, nobody lives on, the run ends the same."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from running import TINY, free_port, metrics, msrun_words, same_run, wait_for
from supervised import Supervised, slow_disk

from mindcv_crossvit import cli
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.job import read_job
from mindcv_crossvit.presence import Presence
from mindcv_crossvit.process import Status, status
from mindcv_crossvit.training.checkpoint import read_checkpoint
from mindcv_crossvit.verdict import Limits, Scene, judge, waiting

FAULTY = ROOT / "tests" / "faulty_rank.py"
ALONE = [sys.executable, str(FAULTY)]


def run(tmp_path: Path, fault: str, command: list[object], *options: object, seconds: float = 100) -> tuple[int, str]:
    return Supervised(tmp_path / "logs", command, *options, env={**os.environ, "FAULT": fault}).end(seconds)


def two_ranks(script: object, *arguments: object) -> list[object]:
    return [*msrun_words(2, free_port()), "python", script, *arguments]


@pytest.mark.parametrize("code", [0, 2, 3, 4, 7])
def test_what_a_restart_would_not_change_is_not_started_again(tmp_path, code):
    ended, said = run(tmp_path, f"code {code}", ALONE)
    assert ended == code and "supervise: restart" not in said and said.count("supervise: runs") == 1
    if code == 2:
        assert "rank 0 ended with code 2: a word in the recipe is wrong" in said


def test_a_failing_job_is_started_again_so_many_times_and_says_why(tmp_path):
    ended, said = run(tmp_path, "before", ALONE, "--restarts", 2)
    assert ended == 1 and said.count("supervise: runs") == 3 and "given up after 2 restarts" in said
    assert "restart 1 of 2 in 0.1 s" in said and "restart 2 of 2 in 0.2 s" in said
    assert said.count("FAILED: rank 0 ended with code 1: FileNotFoundError: no such picture: a.png") == 3
    logs = sorted(p.name for p in (tmp_path / "logs").iterdir())
    assert logs == ["attempt-1", "attempt-2", "attempt-3", "supervise.log"]
    assert "Traceback" in (tmp_path / "logs" / "attempt-3" / "launch.log").read_text()


def test_a_port_in_use_is_said_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended, said = run(tmp_path, "none", [*msrun_words(2, port), "python", FAULTY], seconds=30)
    assert ended == 2 and f"cannot have port {port}: it is in use" in said and "supervise: runs" not in said


@pytest.mark.parametrize(
    "fault, options, expected",
    [
        ("before", [], "rank 1 ended with code 1: FileNotFoundError: no such picture: a.png"),
        ("after", [], "rank 1 ended with code 1: ValueError: the data end here"),
        ("late", ["--start", "12"], "rank 1 has not joined the others: starting for 12 s"),
    ],
)
def test_a_rank_that_fails_before_or_after_joining_is_named(tmp_path, fault, options, expected):
    began = time.monotonic()
    ended, said = run(tmp_path, fault, two_ranks(FAULTY), "--restarts", 0, *options)
    assert ended == 1 and f"FAILED: {expected}" in said, said
    log = re.search(r"FAILED: rank 1 .*\(log: (.*)\)", said)
    assert log and Path(log[1]).is_file() and Path(log[1]).name == "worker_1.log"
    assert time.monotonic() - began < 60


def test_the_first_death_is_named_even_when_msrun_has_killed_the_others_since(tmp_path):
    env = {**os.environ, "FAULT": "late"}
    job = Supervised(tmp_path / "logs", two_ranks(FAULTY), "--restarts", 0, env=env)
    wait_for(lambda: {"rank 0", "rank 1"} <= job.people().keys(), job.process)
    first, other = (job.people()[name]["pid"] for name in ("rank 1", "rank 0"))
    job.process.send_signal(signal.SIGSTOP)  # a supervisor that is late
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: status(other).ended, job.process)
    time.sleep(1)
    job.process.send_signal(signal.SIGCONT)
    code, said = job.end()
    assert code == 1 and "FAILED: rank 1" in said, said


def test_ranks_of_a_machine_are_read_from_the_command():
    words = ["msrun", "--worker_num", "16", "--local_worker_num=8", "--node_rank", "1", "python", "train.py", "-c", "x"]
    job = read_job(words)
    assert job.ranks == tuple(f"rank {r}" for r in range(8, 16)) and not job.master
    assert job.command(Path("L"), "runs/a")[:5] == ["msrun", "--log_dir", "L", "--join", "True"]
    assert job.command(Path("L"), "runs/a")[-4:] == ["--output", "runs/a", "--resume", "auto"]
    assert job.command(Path("L"), None)[5:] == words[1:]
    assert read_job(["msrun", "python", "train.py"]).ranks == tuple(f"rank {r}" for r in range(8))
    for wrong, expected in (
        (["msrun", "--log_dir", "x", "python", "train.py"], "folder per attempt"),
        (["msrun", "--worker_num", "16", "python", "train.py"], "--node_rank"),
        (["msrun", "--worker_num", "4", "python", "train.py"], "8 workers from rank 0"),
        (["python", "train.py", "--resume", "a.safetensors"], "--resume auto"),
        ([], "no command"),
    ):
        with pytest.raises(UserError, match=expected):
            read_job(wrong)


def scene(seconds: float, **phases: str) -> Scene:
    """Two ranks that began their phases so many seconds ago."""
    people = {f"rank {k}": Presence(f"rank {k}", k + 1, phase, 0.0, 3) for k, phase in enumerate(phases.values())}
    statuses = {name: Status("", False) for name in people}
    return Scene(("rank 0", "rank 1"), people, statuses, True, None, 0.0, seconds)


def test_compiling_is_told_apart_from_hanging_and_from_not_joining():
    limits = Limits(start=20, compile=1000, hang=30)
    assert judge(scene(500, a="compiling", b="compiling"), limits) is None
    for seconds, phases, expected in (
        (1001, ("compiling", "compiling"), ("rank 0", "hangs: compiling in update 3 for 1001 s")),
        (31, ("computing", "waiting for data"), ("rank 1", "hangs: waiting for data in update 3 for 31 s")),
        (21, ("preparing", "joining"), ("rank 1", "has not joined the others: joining for 21 s")),
    ):
        outcome = judge(scene(seconds, a=phases[0], b=phases[1]), limits)
        assert outcome and outcome.code == 1 and outcome.causes[0] == expected
        assert judge(scene(seconds - 2, a=phases[0], b=phases[1]), limits) is None
    lines = waiting(scene(70, a="compiling", b="joining"), lambda name: f"logs/{name}.log")
    assert lines == [
        "rank 0: compiling for 70 s (log: logs/rank 0.log)",
        "rank 1: joining for 70 s (log: logs/rank 1.log)",
    ]
    alone = Scene(("rank 0", "rank 1"), {}, {}, True, None, 0.0, 70.0)
    assert waiting(alone, str)[1] == "rank 1: has not started (log: rank 1)"


def test_options_of_the_supervisor():
    a = cli.supervise_arguments(["--restarts", "0", "--hang", "7", "--", "python", "train.py", "--config", "x"])
    assert (a.restarts, a.hang, a.command) == (0, 7.0, ["python", "train.py", "--config", "x"])
    for wrong in (["--restarts", "-1"], ["--hang", "0"]):
        with pytest.raises(SystemExit):
            cli.supervise_arguments([*wrong, "--", "true"])


@pytest.mark.slow
def test_a_run_of_two_ranks_survives_every_kill_and_is_bitwise_the_same(finished_by_two, cached, tmp_path):
    """A worker, rank 0 while it saves, the scheduler and msrun are killed, then a rank is stopped; then it ends."""
    folder = tmp_path / "run"
    command = two_ranks(ROOT / "train.py", "-c", TINY, "--output", folder, "--set", "checkpoint.every_updates=1")
    job = Supervised(tmp_path / "logs", command, "--restarts", 5, "--hang", 8, env=slow_disk(cached, tmp_path))
    cut = lambda: any((folder / "checkpoints").glob(".*.tmp"))  # noqa: E731
    update = lambda: job.people().get("rank 0", {}).get("update") or 0  # noqa: E731
    faults = [
        ("rank 1", signal.SIGKILL, lambda: update() >= 2, "rank 1 was killed by SIGKILL"),
        ("rank 0", signal.SIGKILL, cut, "rank 0 was killed by SIGKILL"),
        ("scheduler", signal.SIGKILL, lambda: update() >= 5, "scheduler was killed by SIGKILL"),
        ("msrun", signal.SIGKILL, lambda: update() >= 7, "msrun was killed by SIGKILL"),
        ("rank 1", signal.SIGSTOP, lambda: update() >= 9, "its process is stopped"),
    ]
    for number, (who, fault, ready, expected) in enumerate(faults, 1):
        wait_for(lambda n=number: job.log().count("runs ") == n, job.process)
        wait_for(lambda: job.people().get("rank 0", {}).get("update"), job.process)
        wait_for(ready, job.process)
        os.kill(msrun_of(job) if who == "msrun" else job.people()[who]["pid"], fault)
        began = time.monotonic()
        wait_for(lambda n=number: f"restart {n} of 5" in job.log(), job.process)
        assert time.monotonic() - began < 30
        assert expected in job.log().split("runs ")[number], job.log()
    code, said = job.end()
    assert code == 0, said[-3000:]
    same_run(finished_by_two, folder)
    assert not cut()


@pytest.mark.slow
def test_a_run_whose_rank_raises_before_and_after_joining_is_bitwise_the_same(finished_by_two, cached, tmp_path):
    folder = tmp_path / "run"
    command = two_ranks(ROOT / "tests" / "faulty_train.py", "-c", TINY, "--output", folder)
    env = {**cached, "FAULTS": str(tmp_path)}
    job = Supervised(tmp_path / "logs", [*command, "--set", "checkpoint.every_updates=2"], env=env)
    code, said = job.end(300)
    assert code == 0 and said.count("supervise: runs") == 3, said[-3000:]
    assert "FAILED: rank 1 ended with code 1: FileNotFoundError: the disk of the pictures is not there (log: " in said
    assert "FAILED: rank 1 ended with code 1: ValueError: a number that cannot be (log: " in said
    assert "after update 2" in said.rpartition("supervise: runs")[2]
    same_run(finished_by_two, folder)


def msrun_of(job: Supervised) -> int:
    return int(
        job.people()["rank 0"]["pid"] and Path(f"/proc/{job.people()['rank 0']['pid']}/stat").read_text().split()[3]
    )


def test_a_request_to_stop_reaches_the_ranks_which_save(finished_by_two, cached, tmp_path):
    folder = tmp_path / "run"
    command = two_ranks(ROOT / "train.py", "-c", TINY, "--output", folder)
    job = Supervised(tmp_path / "logs", command, env=cached)
    wait_for(lambda: job.people().get("rank 1", {}).get("update"), job.process)
    job.process.terminate()
    code, said = job.end()
    assert code == 4, said
    assert "asked to stop: the ranks finish this update and save" in said and "supervise: restart" not in said
    stopped_at = read_checkpoint(folder / "last.safetensors").meta["update"]
    assert max(m["update"] for m in metrics(folder)) == stopped_at < 10
