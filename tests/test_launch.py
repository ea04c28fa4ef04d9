"""What launch.sh runs on one machine, several, and under Slurm; the check of a machine; the page about scale."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT
from running import TINY, call, free_port, msrun_env, photos

from mindcv_crossvit import process
from mindcv_crossvit.job import read_job

sys.path.insert(0, str(ROOT / "scripts"))
import check_env
import scale_page

LAUNCH = ROOT / "scripts" / "launch.sh"


def launch(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    words = [str(LAUNCH), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env={**msrun_env(), **env})


def printed(*arguments: object, **env: str) -> list[str]:
    done = launch("--print", *arguments, **env)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


TIMEOUTS = {"MS_NODE_TIMEOUT": "", "MS_CPU_COMM_OP_TIMEOUT": ""}  # which msrun_env sets
TIMEOUTS |= {"HCCL_CONNECT_TIMEOUT": "", "HCCL_EXEC_TIMEOUT": ""}  # of which importing MindSpore sets one
AFTER = {"--restarts": "1", "--backoff": "2", "--start": "200", "--compile": "1000", "--hang": "100", "--logs": "logs"}


def settings(words: list[str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """(environment, options of supervise.py, options of msrun) of what launch.sh prints."""
    script, dashes = next(k for k, w in enumerate(words) if w.endswith("supervise.py")), words.index("--")
    inner = words[dashes + 2 : words.index("python", dashes)]
    options = [w.partition("=")[::2] for w in inner if "=" in w]
    plain = [w for w in inner if "=" not in w]
    options += list(zip(plain[::2], plain[1::2], strict=True))
    outer = words[script + 1 : dashes]
    return (
        dict(w.split("=") for w in words[1 : script - 1]),
        dict(zip(outer[::2], outer[1::2], strict=True)),
        dict(options),
    )


def test_one_machine():
    given = [word for pair in AFTER.items() for word in pair]
    words = printed("--workers", 4, "--port", 9000, *given, "train.py", "--config", "a b.yaml", **TIMEOUTS)
    job = read_job(words[words.index("--") + 1 :])
    assert job.ranks == tuple(f"rank {r}" for r in range(4)) and job.node == 0 and job.port == 9000
    assert not job.others
    assert words[-3].endswith("train.py") and words[-2:] == ["--config", "a b.yaml"]
    env, supervise, msrun = settings(words)
    assert supervise == AFTER
    assert msrun["--bind_core"] == "True" and msrun["--tail_worker_log"] == "0"
    # longer than the supervisor's own limits, of which compiling is the longest here
    assert (env["MS_NODE_TIMEOUT"], msrun["--cluster_time_out"]) == ("260", "260")
    assert env["MS_CPU_COMM_OP_TIMEOUT"] == env["HCCL_CONNECT_TIMEOUT"] == env["HCCL_EXEC_TIMEOUT"] == "1060"


def test_timeouts_follow_the_limits_within_what_hccl_takes_and_the_users_own_stay():
    options = ["--workers", 2, "--start", 1, "--compile", 1]
    env, *_ = settings(printed(*options, "--hang", 20_000, "train.py", **TIMEOUTS))
    assert (env["HCCL_CONNECT_TIMEOUT"], env["HCCL_EXEC_TIMEOUT"]) == ("7200", "17340")
    assert env["MS_CPU_COMM_OP_TIMEOUT"] == "20060"
    env, *_ = settings(printed(*options, "--hang", 2, "train.py", **TIMEOUTS))
    assert (env["HCCL_CONNECT_TIMEOUT"], env["HCCL_EXEC_TIMEOUT"], env["MS_NODE_TIMEOUT"]) == ("120", "68", "61")
    own = dict.fromkeys(env, "7")
    assert settings(printed(*options, "train.py", **own))[0] == own


def test_several_machines_and_slurm(tmp_path):
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[3-4]" ] && printf "node3\\nnode4\\n"\n')
    fake.chmod(0o755)
    by_hand = printed("--workers", 8, "--nodes", 2, "--node-rank", 1, "--master", "node3", "train.py")
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[3-4]"}
    path = f"{tmp_path}{os.pathsep}{msrun_env()['PATH']}"
    assert printed("--workers", 8, "train.py", PATH=path, **slurm) == by_hand
    job = read_job(by_hand[by_hand.index("--") + 1 :])
    assert job.ranks == tuple(f"rank {r}" for r in range(8, 16)) and job.others == {0: "ranks 0 to 7 (node 0)"}
    assert by_hand[by_hand.index("--master_addr") + 1] == "node3"


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--workers", "x", "train.py"], "--workers x: expected a whole number"),
        (["--workers", "2", "--nodes", "2", "train.py"], "give --master"),
        (["--workers", "2", "--nodes", "2", "--node-rank", "2", "train.py"], "expected 0 to 1"),
        (["--worker", "2", "train.py"], "unknown option --worker"),
        (["--workers", "2", "trian.py"], "no script"),
        (["--workers", "2"], "no script given"),
    ],
)
def test_wrong_options(arguments, expected):
    done = launch(*arguments)
    assert done.returncode == 2 and expected in done.stderr


def test_two_ranks_are_started_and_it_says_what_runs(tmp_path):
    options = ["--workers", 2, "--port", free_port(), "--logs", tmp_path / "logs", "--start", 90]
    done = launch(*options, ROOT / "tests" / "faulty_rank.py", "a word", FAULT="none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "launch: runs env MS_NODE_TIMEOUT=" in done.stdout and "supervise: runs msrun --log_dir" in done.stdout
    assert "arguments: a word timeout: 3660" in done.stdout
    assert (tmp_path / "logs" / "attempt-1" / "worker_1.log").is_file()


def test_check_env_prints_a_page_and_its_code_follows(tmp_path):
    data = photos(tmp_path / "photos", {"red": 20, "green": 20})
    options = ["-c", TINY, "--set", "data.source=folder", "--set", "data.val_fraction=0.2", "--set", "mix.group=8"]
    options += ["--set", "batch.global_batch=16", "--output", tmp_path / "run"]
    good = call("scripts/check_env.py", *options, "--data_dir", data)
    assert good.returncode == 0, good.stdout + good.stderr
    for words in (
        "ok      two ranks joined and added up",
        "32 training and 8",
        "pictures a second with 1 workers",
        "MindSpore sees the CPU",
    ):
        assert words in good.stdout
    assert "FAILED" not in good.stdout and "GB free" in good.stdout


def page_of(monkeypatch, capsys, *arguments: object, data: bool = True) -> str:
    """What check_env.py prints without its two ranks and its speed; it must have failed."""
    for name in ("two_ranks", "speed", "seen"):
        monkeypatch.setattr(check_env, name, lambda *_: [(check_env.OK, "left out")])
    source = [] if data else ["--set", "data.source=folder"]
    monkeypatch.setattr(sys, "argv", ["check_env.py", "-c", str(TINY), *source, *map(str, arguments)])
    assert check_env.main() == 1
    return capsys.readouterr().out


def test_check_env_names_a_folder_that_cannot_be(monkeypatch, capsys):
    assert "FAILED  run folder: /dev/null is a file" in page_of(monkeypatch, capsys, "--output", "/dev/null/run")
    page = page_of(monkeypatch, capsys, "--output", "/proc/run")  # where even root has no file made
    assert "FAILED  run folder: /proc cannot be written to: " in page or "no write access to /proc" in page


@pytest.mark.parametrize("data", [True, False])
def test_check_env_sees_too_little_disk_with_and_without_data(tmp_path, monkeypatch, capsys, data):
    free = {"free": 10_000}
    monkeypatch.setattr(check_env.shutil, "disk_usage", lambda _: SimpleNamespace(**free))
    page = page_of(monkeypatch, capsys, "--output", tmp_path / "run", data=data)
    classes = "" if data else " (for 1,000 classes)"
    assert f"MB: 0.00 GB for 2, the best and a new{classes}; 0.0 GB free" in page and "can be written to" in page
    assert ("FAILED  data.dir is missing" in page) is not data


def test_check_env_wants_numpy_below_2(monkeypatch):
    for numpy, words in (("1.26.4", ["ok"]), ("1.24.0", ["note"]), ("2.1.0", ["note", "FAILED"])):
        found = {"mindspore": "2.10.0", "numpy": numpy}
        monkeypatch.setattr(check_env, "_installed", found.get)
        monkeypatch.setattr(check_env.sys, "version_info", (3, 11, 0))
        lines = check_env.versions()
        assert [word for word, _ in lines] == words and all(f"numpy {numpy}" in text for _, text in lines)
    monkeypatch.setattr(check_env, "_installed", {"numpy": "1.26.4", "mindspore": ""}.get)
    assert check_env.versions()[0][0] == "FAILED"


WRONG_SUM = """
import sys
from types import SimpleNamespace
sys.path[:0] = [{root!r}, {root!r} + "/scripts"]
import all_reduce
all_reduce.runtime.start = lambda _: SimpleNamespace(sums=lambda: False)
all_reduce.run_main(all_reduce.main)
"""


def test_check_env_says_why_two_ranks_do_not_add_up(tmp_path, monkeypatch):
    (tmp_path / "wrong_sum.py").write_text(WRONG_SUM.format(root=str(ROOT)))
    monkeypatch.setattr(check_env, "ALL_REDUCE", tmp_path / "wrong_sum.py")
    [(word, said)] = check_env.two_ranks()
    assert word == "FAILED" and said.startswith("two ranks did not add up: supervise: FAILED: ")
    assert "RuntimeError: the all-reduce gave another sum" in said


def test_check_env_without_a_mindspore_that_works_is_a_page_and_no_traceback(tmp_path):
    (tmp_path / "fake" / "mindspore").mkdir(parents=True)
    (tmp_path / "fake" / "mindspore" / "__init__.py").write_text("raise ImportError('libge_runner.so: no such file')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "fake")}
    done = call("scripts/check_env.py", "-c", TINY, "--output", tmp_path / "run", env=env)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert "FAILED  MindSpore cannot be used: ImportError: libge_runner.so: no such file" in lines
    assert any(line.startswith("FAILED  two ranks did not add up") for line in lines)
    assert "ok      data: 1,437 training and 360 validation pictures" in lines
    assert lines[-1] == "FAILED  ImportError: libge_runner.so: no such file"


def test_check_env_without_what_it_needs_itself_says_so(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')")
    done = call("scripts/check_env.py", "-c", TINY, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and done.stderr == "FAILED  no numpy here: install the packages of requirements.txt\n"


def test_cards_that_mindspore_does_not_see_are_a_fault(tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    [(word, said)] = check_env.seen(tmp_path)
    assert (word, said) == ("ok", "MindSpore sees the CPU (1 device)")
    for number in range(2):
        (tmp_path / "dev" / f"davinci{number}").touch()
    monkeypatch.setattr(check_env, "SEE", "print('a warning'); print(1, 1)")
    assert check_env.seen(tmp_path) == [("FAILED", "MindSpore sees 1 Ascend cards, the driver shows 2")]
    monkeypatch.setattr(check_env, "SEE", "print(2, 1)")
    assert check_env.seen(tmp_path) == [("ok", "MindSpore sees 2 Ascend cards")]


@pytest.mark.parametrize("cann, word", [("8.2.RC1", "ok"), ("8.1.RC1", "note")])
def test_ascend_software_is_compared_with_what_is_documented(tmp_path, monkeypatch, cann, word):
    home = tmp_path / "usr/local/Ascend"
    for name, text in (
        ("driver", "Version=25.2.0\n"),
        ("firmware", "Version=25.2.0\n"),
        ("ascend-toolkit/latest", f"[x]\ntoolkit_running_version=[7.7.0:{cann}]\n"),
    ):
        (home / name).mkdir(parents=True)
        (home / name / ("version.cfg" if "latest" in name else "version.info")).write_text(text)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "davinci0").touch()
    monkeypatch.setattr(check_env, "_installed", lambda name: "2.7.0")
    [(said, text)] = check_env.devices(tmp_path)
    assert said == word and f"CANN {cann}" in text and "1 Ascend cards" in text
    assert ("documented for MindSpore 2.7.0: CANN 8.2.RC1" in text) == (word == "note")


def test_the_page_about_scale_is_the_plans_arithmetic():
    assert (ROOT / "docs" / "SCALE.md").read_text() == scale_page.page()
    known = scale_page.facts()
    assert known["parameters"] == 27_528_464
    assert [p.per_device * p.accumulation * p.world for p in known["plans"]] == [4096] * 3
    rows = dict(scale_page.rows(known))
    # 27,528,464 float32 gradients, each sent twice but for a rank's own share
    assert rows["MB sent by each card per update"] == [f"{8 * 27.528464 * (w - 1) / w:.1f}" for w in (8, 64, 1024)]
    # as long as 64 MiB took, in proportion to the bytes of the gradient
    assert rows["all-reduce, ms, by HCCL's printed example"][0] == f"{2.6302 * 4 * 27.528464e6 / 2**26:.1f}" == "4.3"


def test_a_process_whose_parent_is_already_gone_ends():
    child = os.fork()
    if child == 0:
        process.die_with_parent(os.getppid() + 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


ORPHAN = """
import os, sys, time
sys.path.insert(0, {root!r})
from mindcv_crossvit.process import die_with_launcher
time.sleep(1)
die_with_launcher()
print("lives", flush=True)
"""
LAUNCHER = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, {orphan!r}], env={{**os.environ, "MS_ROLE": "MS_WORKER", {more}}})
time.sleep({seconds})
"""


@pytest.mark.parametrize(
    "name, seconds, more, lives",
    [
        ("msrun", 0, "'RANK_SIZE': '2'", False),
        ("msrun", 4, "'RANK_SIZE': '2'", True),
        ("other", 0, "", True),  # a cluster put together by hand
    ],
)
def test_a_rank_whose_msrun_ended_before_it_could_ask_for_its_end_does_not_live_on(
    tmp_path, name, seconds, more, lives
):
    (tmp_path / "orphan.py").write_text(ORPHAN.format(root=str(ROOT)))
    launcher = LAUNCHER.format(orphan=str(tmp_path / "orphan.py"), seconds=seconds, more=more)
    (tmp_path / name).write_text(launcher)
    done = subprocess.run([sys.executable, tmp_path / name], capture_output=True, text=True, timeout=60)
    assert (done.stdout == "lives\n") is lives and not done.stderr
