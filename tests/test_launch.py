"""What launch.sh runs on one machine, several, and under Slurm; the check of a machine; the page about scale."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

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


def test_one_machine():
    words = printed("--workers", 4, "--port", 9000, "--restarts", 1, "train.py", "--config", "a b.yaml")
    job = read_job(words[words.index("--") + 1 :])
    assert job.ranks == tuple(f"rank {r}" for r in range(4)) and job.master and job.port == 9000
    assert words[words.index("--restarts") + 1] == "1" and words[-3].endswith("train.py")
    assert words[-2:] == ["--config", "a b.yaml"]
    assert "--bind_core=True" in words and words[words.index("--cluster_time_out") + 1] == "300"


def test_several_machines_and_slurm(tmp_path):
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[3-4]" ] && printf "node3\\nnode4\\n"\n')
    fake.chmod(0o755)
    by_hand = printed("--workers", 8, "--nodes", 2, "--node-rank", 1, "--master", "node3", "train.py")
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[3-4]"}
    path = f"{tmp_path}{os.pathsep}{msrun_env()['PATH']}"
    assert printed("--workers", 8, "train.py", PATH=path, **slurm) == by_hand
    job = read_job(by_hand[by_hand.index("--") + 1 :])
    assert job.ranks == tuple(f"rank {r}" for r in range(8, 16)) and not job.master
    assert by_hand[by_hand.index("--master_addr") + 1] == "node3" and "logs/node-1" in by_hand


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
    assert "supervise: runs msrun --log_dir" in done.stdout and "arguments: a word" in done.stdout
    assert (tmp_path / "logs" / "attempt-1" / "worker_1.log").is_file()


def test_check_env_prints_a_page_and_its_code_follows(tmp_path):
    data = photos(tmp_path / "photos", {"red": 20, "green": 20})
    options = ["-c", TINY, "--set", "data.source=folder", "--set", "data.val_fraction=0.2", "--set", "mix.group=8"]
    options += ["--set", "batch.global_batch=16", "--output", tmp_path / "run"]
    good = call("scripts/check_env.py", *options, "--data_dir", data)
    assert good.returncode == 0, good.stdout + good.stderr
    for words in ("ok      two ranks joined and added up", "32 training and 8", "pictures a second with 1 workers"):
        assert words in good.stdout
    assert "FAILED" not in good.stdout and "GB free" in good.stdout


def test_check_env_names_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_env, "two_ranks", lambda: [(check_env.OK, "left out")])
    monkeypatch.setattr(sys, "argv", ["check_env.py", "-c", str(TINY), "--output", "/dev/null/run"])
    assert check_env.main() == 1
    assert "FAILED  run folder: /dev/null is a file" in capsys.readouterr().out


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


def test_a_process_whose_parent_is_already_gone_ends():
    child = os.fork()
    if child == 0:
        process.die_with_parent(os.getppid() + 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
