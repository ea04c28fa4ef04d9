"""Real jobs with real faults under the supervisor: who failed and why, nobody lives on, the run ends the same."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from running import MSRUN, TINY, free_port, metrics, msrun_words, same_run, wait_for
from supervised import Supervised, slow_disk

from mindcv_crossvit import cli, presence
from mindcv_crossvit.errors import MACHINE, UserError
from mindcv_crossvit.job import read_job
from mindcv_crossvit.peers import News
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


@pytest.mark.parametrize("code", [0, 3, 4, 7])
def test_what_a_restart_would_not_change_is_not_started_again(tmp_path, code):
    ended, said = run(tmp_path, f"code {code}", ALONE)
    assert ended == code and "supervise: restart" not in said and said.count("supervise: runs") == 1


@pytest.mark.parametrize("alone", [True, False])
def test_a_user_error_is_not_started_again_whoever_meets_it(tmp_path, alone):
    """The only rank, or one of two under msrun, the other of which would wait for it; in words that take much room."""
    ended, said = run(tmp_path, "user", ALONE if alone else two_ranks(FAULTY))
    assert ended == 2 and "supervise: restart" not in said and said.count("supervise: runs") == 1
    assert re.search(rf"ended: rank {0 if alone else 1} ended with code 2: a word in the recipe .*图 \(log: ", said)


def test_a_data_worker_that_is_killed_and_storage_that_fails_are_started_again(tmp_path):
    ended, said = run(tmp_path, f"code {MACHINE}", ALONE, "--restarts", 1)
    assert ended == 1 and "restart 1 of 1" in said and said.count("supervise: runs") == 2


@pytest.mark.parametrize("by_msrun, code", [(True, 0), (False, 0), (False, 5)])
def test_a_command_that_says_nothing_of_itself_is_known_by_its_exit_code(tmp_path, by_msrun, code):
    (tmp_path / "silent.py").write_text(f"import sys; sys.exit({code})")
    command = two_ranks(tmp_path / "silent.py") if by_msrun else [sys.executable, tmp_path / "silent.py"]
    ended, said = run(tmp_path, "none", command, "--restarts", 1)
    assert ended == (1 if code else 0) and said.count("supervise: runs") == (2 if code else 1)


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


def test_a_port_that_is_taken_before_a_restart_fails_that_and_no_more(tmp_path):
    """A rank that raises before it joins is started again; for the second start the port is taken."""
    port, env = free_port(), {**os.environ, "FAULT": "before", "FAULT_MARK": str(tmp_path / "mark")}
    command = [*msrun_words(2, port), "python", FAULTY]
    job = Supervised(tmp_path / "logs", command, "--restarts", 2, "--backoff", 2, env=env)
    wait_for((tmp_path / "mark").exists, job.process)
    began = time.monotonic()
    wait_for(lambda: "restart 1 of 2" in job.log(), job.process)
    assert time.monotonic() - began < 30
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", port))
        taken.listen()
        wait_for(lambda: "restart 2 of 2" in job.log(), job.process)
    code, said = job.end()
    assert code == 1 and f"FAILED: job the scheduler (rank 0's machine) cannot have port {port}: it is in use" in said
    expected = r"FAILED: rank 1 ended with code 1: FileNotFoundError: no such picture: a.png \(log: .*worker_1.log\)"
    assert said.count("supervise: runs") == len(re.findall(expected, said)) == 2


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "fault, options, who, expected",
    [
        pytest.param("after", [], "rank 1", "ended with code 1: ValueError: the data end here", marks=SLOW),
        ("late", ["--start", "12"], "rank 1", "has not joined the others: starting for 12 s"),
        ("hang", ["--hang", "5"], "rank 1", "hangs: preparing for 5 s"),
        pytest.param("stopped", ["--start", "12"], "scheduler", "its process is stopped", marks=SLOW),
    ],
)
def test_who_fails_is_named_with_its_log_within_half_a_minute(tmp_path, fault, options, who, expected):
    env = {**os.environ, "FAULT": fault, "FAULT_MARK": str(tmp_path / "mark")}
    job = Supervised(tmp_path / "logs", two_ranks(FAULTY), "--restarts", 0, *options, env=env)
    wait_for((tmp_path / "mark").exists, job.process)
    began = time.monotonic()
    wait_for(lambda: "FAILED: " in job.log(), job.process)
    assert time.monotonic() - began < 30
    ended, said = job.end()
    blamed = re.findall(r"FAILED: (\w+ ?\d*) (.*) \(log: (.*)\)", said)
    assert ended == 1 and [name for name, *_ in blamed] == [who] and expected in blamed[0][1], said
    assert Path(blamed[0][2]).name == ("scheduler.log" if who == "scheduler" else "worker_1.log")
    assert Path(blamed[0][2]).is_file()


def test_nobody_outlives_msrun_or_the_supervisor_when_it_is_killed(tmp_path):
    """A supervisor and, beside it, msrun alone; two ranks each."""
    joined = ["--join", "True", "--tail_worker_log", "99", "--log_dir", tmp_path, "python", FAULTY]
    jobs = []
    for name, command in (("supervisor", two_ranks(FAULTY)), ("msrun", [*two_ranks(FAULTY)[:-2], *joined])):
        (tmp_path / name).mkdir()
        env = {**os.environ, "FAULT": "idle", "FAULT_MARK": str(tmp_path / name / "mark")}
        jobs.append(Supervised(tmp_path / name / "logs", command, env=env, supervised=name == "supervisor"))
    for job in jobs:
        wait_for((job.logs.parent / "mark").exists, job.process)
        assert len(job.processes()) >= 3
        job.process.kill()
        job.process.wait()
    began = time.monotonic()
    while any(job.processes() for job in jobs) and time.monotonic() - began < 5:
        time.sleep(0.1)
    assert not [job.processes() for job in jobs if job.processes()]


def of_several(node: int, port: int) -> list[object]:
    """The rank of one of three machines, all of which are this one."""
    words = [MSRUN, "--worker_num", 3, "--local_worker_num", 1, "--node_rank", node, "--master_port", port]
    return [*words, "--cluster_time_out", 60, "python", FAULTY]


def test_a_user_error_on_one_machine_ends_the_others_which_do_not_start_again(tmp_path):
    """One that says so while the others join, one that waits for it, one that comes too late to have heard it."""
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    env, port = {**os.environ, "FAULT": "user"}, free_port()
    waiting = Supervised(tmp_path / "logs", of_several(0, port), env=env, said=tmp_path / "0" / "said.txt")
    wait_for(lambda: (waiting.people().get("rank 0") or {}).get("phase") == "joining", waiting.process)
    failing = Supervised(tmp_path / "logs", of_several(1, port), env=env, said=tmp_path / "1" / "said.txt")
    began = time.monotonic()
    code, said = failing.end()
    assert code == 2 and "ended: rank 1 ended with code 2: a word in the recipe is wrong: 图图" in said
    code, said = waiting.end()
    assert code == 2 and time.monotonic() - began < 30 and said.count("supervise: runs") == 1
    assert "ended: node 1 has failed: rank 1 ended with code 2: a word in the recipe is wrong: 图图" in said
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == ["node-0", "node-0.json", "node-1", "node-1.json"]


@SLOW
def test_machines_that_do_not_come_are_named_and_not_waited_for_again(tmp_path):
    """What a job before this left of machine 1 does not count."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "node-1.json").write_text('{"attempt": 1, "code": 2, "cause": "old", "again": false}')
    code, said = Supervised(
        tmp_path / "logs", of_several(0, free_port()), "--start", 12, env={**os.environ, "FAULT": "none"}
    ).end()
    for rank in (1, 2):
        assert re.search(rf"FAILED: rank {rank} \(node {rank}\) did not join: the ranks here have waited 1\d s\n", said)
    assert code == 1 and said.count("supervise: runs") == 1 and "not started again: the other machines do not" in said


def elsewhere(**news: News) -> Scene:
    """Two ranks that wait to join, and machines 1 and 2 elsewhere."""
    found = scene(21, a="joining", b="joining")
    heard = {int(name[1:]): said for name, said in news.items()}
    return replace(found, attempt=2, others={1: "ranks 2 to 3 (node 1)", 2: "ranks 4 to 5 (node 2)"}, news=heard)


def test_what_is_heard_of_other_machines_decides():
    limits, runs, bad = Limits(start=20), News(2), "rank 3 was killed by SIGKILL"
    for news, expected in (
        ({}, [("ranks 2 to 3 (node 1)", False), ("ranks 4 to 5 (node 2)", False)]),
        ({"n1": runs}, [("ranks 4 to 5 (node 2)", False)]),
        ({"n1": runs, "n2": runs}, [("ranks 2 to 3 (node 1)", True), ("ranks 4 to 5 (node 2)", True)]),
        ({"n1": News(1, 1, bad), "n2": News(3)}, [("node 2", True)]),
        ({"n1": News(2, 1, bad)}, [("node 1", True)]),
        ({"n1": News(1, 1, bad, again=False)}, [("node 1", False)]),
    ):
        outcome = judge(elsewhere(**news), limits)
        assert outcome and [(name, outcome.again) for name, _ in outcome.causes] == expected
        assert outcome.code == 1
    for code in (2, 3, 4, 7):
        outcome = judge(elsewhere(n1=News(1, code, "no", again=False)), limits)
        assert outcome and (outcome.code, outcome.causes, outcome.again) == (
            code,
            (("node 1", "has failed: no"),),
            False,
        )
    assert judge(replace(elsewhere(n1=News(1, 1, bad), n2=News(2, 0)), now=1.0), limits) is None


def test_ranks_that_wait_for_another_machine_do_so_as_long_as_it_may_compile():
    found = replace(elsewhere(n1=News(2), n2=News(2)), now=500.0)
    people = {name: replace(p, phase="computing", waits=True) for name, p in found.people.items()}
    found = replace(found, people=people)
    assert judge(found, Limits(hang=30, compile=600)) is None
    outcome = judge(found, Limits(hang=30, compile=400))
    assert outcome and outcome.causes[0] == ("ranks 2 to 3 (node 1)", "keep the ranks here waiting, 500 s so far")


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
    assert job.ranks == tuple(f"rank {r}" for r in range(8, 16))
    assert (job.node, job.others) == (1, {0: "ranks 0 to 7 (node 0)"})
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


def test_ranks_that_wait_where_all_meet_are_not_blamed():
    """Rank 1 is in the step as the others are, but not yet where they meet; what is stopped is named before that."""
    limits, both = Limits(hang=30), scene(31, a="computing", b="computing")
    waits = replace(both, people={**both.people, "rank 0": replace(both.people["rank 0"], waits=True)})
    outcome = judge(waits, limits)
    assert outcome and outcome.causes == (
        ("rank 1", "hangs: computing in update 3 for 31 s"),
        ("job", "the others wait: rank 0 computing for 31 s"),
    )
    late = replace(waits, people={**waits.people, "rank 1": replace(waits.people["rank 1"], phase="compiling")})
    assert judge(late, limits) is None  # a validation, for example: rank 0 is done with it
    together = replace(waits, people={name: replace(p, waits=True) for name, p in waits.people.items()})
    outcome = judge(together, limits)
    assert outcome and [name for name, _ in outcome.causes] == ["rank 0", "rank 1"]
    stopped = replace(waits, statuses={**waits.statuses, "rank 0": Status("", True)})
    outcome = judge(stopped, limits)
    assert outcome and outcome.causes[0] == ("rank 0", "hangs: computing in update 3 for 31 s, its process is stopped")


def test_what_is_said_is_heard_however_long_it_is(tmp_path, monkeypatch):
    """A cause and a folder in Chinese take six bytes a sign, and what is said next is shorter again."""
    monkeypatch.setenv(presence.FOLDER, str(tmp_path))
    monkeypatch.setattr(presence, "_file", None)
    monkeypatch.setattr(presence, "_said", {})
    presence.begin()
    folder = "/" + "/".join(["图" * 80] * 12) + "/\udcff"  # as long as a path may be
    presence.mark("saving", folder=folder, cause="长" * 5000)
    assert presence.read(tmp_path)["rank 0"].cause == "长" * 5000
    presence.end(2, "没有这张图片：" + "图" * 400 + "\nmore")
    said = presence.read(tmp_path)["rank 0"]
    assert (said.code, said.folder, said.phase) == (2, folder, "ended")
    assert said.cause == ("没有这张图片：" + "图" * 400)[:300]


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


FAULTS = {
    "before": r"rank 1 ended with code 1: FileNotFoundError: the disk of the pictures is not there \(log: ",
    "deaf": r"rank \d ended with code 1: RuntimeError: start: the ranks' parameters differ, first \w\S+ \(1 of \d+\)",
    "raises": r"rank 1 ended with code 1: ValueError: a number that cannot be \(log: ",
    "sleeps": r"rank 1 hangs: computing in update 5 for 12 s \(log: ",
    "worker": r"rank \d ended with code 8: a data worker process died; most often memory ran out",
    "drift": r"rank \d ended with code 1: RuntimeError: checkpoint at update 8: the ranks' parameters differ, first \w",
}


@pytest.mark.slow
def test_a_run_survives_every_fault_of_a_rank_and_is_bitwise_the_same(finished_by_two, cached, tmp_path):
    """See faulty_train.py. Rank 1 compiles longer than a later update may take, which is no fault."""
    folder, env = tmp_path / "run", {**cached, "FAULTS": str(tmp_path)}
    command = two_ranks(ROOT / "tests" / "faulty_train.py", "-c", TINY, "--output", folder)
    command += ["--set", "checkpoint.every_updates=2"]
    job = Supervised(tmp_path / "logs", command, "--restarts", len(FAULTS), "--hang", 12, env=env)
    for number, (name, expected) in enumerate(FAULTS.items(), 1):
        wait_for((tmp_path / name).exists, job.process)
        began = time.monotonic()
        wait_for(lambda n=number: f"restart {n} of" in job.log(), job.process)
        assert time.monotonic() - began < 30
        said = job.log().split("runs ")[number]
        assert re.search(rf"FAILED: {expected}", said), said
    code, said = job.end(300)
    assert code == 0 and said.count("supervise: runs") == len(FAULTS) + 1, said[-3000:]
    assert (tmp_path / "compiles").exists() and "FAILED: rank 0 hangs" not in said
    slow = re.findall(r"compiled; the first update took (\d+) s", (folder / "log.txt").read_text())
    assert max(map(int, slow)) > 12
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
