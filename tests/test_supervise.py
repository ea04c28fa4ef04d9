"""Real jobs with real faults under the supervisor: who failed and why, nobody lives on, the run ends the same."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from running import TINY, free_port, metrics, msrun_env, msrun_words, same_run, wait_for

from mindcv_crossvit import cli
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.job import read_job
from mindcv_crossvit.training.checkpoint import read_checkpoint

FAULTY = ROOT / "tests" / "faulty_rank.py"
ALONE = [sys.executable, str(FAULTY)]


class Supervised:
    """A supervisor with its job, in an environment that marks every process of it."""

    def __init__(self, logs: Path, command: list[object], *options: object, env: dict[str, str] | None = None):
        self.logs, self.mark = logs, f"CROSSVIT_TEST={logs}"
        words = [sys.executable, ROOT / "scripts" / "supervise.py", "--logs", logs, "--backoff", "0.1", *options, "--"]
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [str(w) for w in [*words, *command]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**msrun_env(env), name: value},
        )

    def end(self, seconds: float = 150) -> tuple[int, str]:
        """(exit code, what it said); fails when it takes longer or leaves a process."""
        try:
            said, _ = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
        assert not self.processes(), "processes of the job live on"
        return self.process.returncode, said

    def processes(self) -> dict[int, dict[str, str]]:
        """Environment of every process of the job but the supervisor, by process id."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if self.mark in words and int(path.parent.name) != self.process.pid:
                found[int(path.parent.name)] = dict(w.split("=", 1) for w in words if "=" in w)
        return found

    def log(self) -> str:
        """What the supervisor wrote so far."""
        path = self.logs / "supervise.log"
        return path.read_text() if path.exists() else ""

    def people(self) -> dict[str, dict]:
        """What the ranks of the running attempt say."""
        found = {}
        for env in self.processes().values():
            folder = Path(env.get("CROSSVIT_PRESENCE", "/none"))
            for path in folder.glob("*.json"):
                try:
                    found[path.stem] = json.loads(path.read_text())
                except (OSError, ValueError):
                    continue
            if found:
                break
        return found


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


def test_options_of_the_supervisor():
    a = cli.supervise_arguments(["--restarts", "0", "--hang", "7", "--", "python", "train.py", "--config", "x"])
    assert (a.restarts, a.hang, a.command) == (0, 7.0, ["python", "train.py", "--config", "x"])
    for wrong in (["--restarts", "-1"], ["--hang", "0"]):
        with pytest.raises(SystemExit):
            cli.supervise_arguments([*wrong, "--", "true"])


SLOW_DISK = """
import os, time
fsync = os.fsync
def slow(handle):
    time.sleep(0.5)
    fsync(handle)
os.fsync = slow
"""


def test_a_run_of_two_ranks_survives_every_kill_and_is_bitwise_the_same(finished_by_two, cached, tmp_path):
    """A worker, rank 0 while it saves, the scheduler and msrun are killed, then a rank is stopped; then it ends."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_DISK)
    folder = tmp_path / "run"
    command = two_ranks(ROOT / "train.py", "-c", TINY, "--output", folder, "--set", "checkpoint.every_updates=1")
    env = {**cached, "PYTHONPATH": str(tmp_path / "slow")}
    job = Supervised(tmp_path / "logs", command, "--restarts", 5, "--hang", 8, env=env)
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
