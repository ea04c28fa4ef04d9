"""Runs that are stopped or killed and go on: bitwise the same, in their own folder, or refused with the reason."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from running import TINY, call, call_msrun, free_port, metrics, msrun_words, same_run, same_to_rounding, wait_for
from supervised import Supervised, slow_disk

from mindcv_crossvit import process as processes
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.journal import Journal, choose_folder
from mindcv_crossvit.recipe_file import load_recipe
from mindcv_crossvit.training.checkpoint import read_checkpoint, write_checkpoint

FIFTH, TENTH = (f"checkpoints/step-{update:09d}.safetensors" for update in (5, 10))


def start(*options: object, env: dict[str, str], script: str = "train.py", **more) -> subprocess.Popen[str]:
    """train.py in a process group of its own, as a terminal or a cluster starts it."""
    command = [sys.executable, str(ROOT / script), "-c", str(TINY), *map(str, options)]
    return subprocess.Popen(command, text=True, env=env, start_new_session=True, **more)


def quiet(*options: object, env: dict[str, str]) -> subprocess.Popen[str]:
    return start(*options, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def workers(process: subprocess.Popen[str]) -> list[Path]:
    """The processes that prepare its batches, from the moment they exist."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            child = (place / "stat").read_text().rpartition(")")[2].split()[1] == str(process.pid)
            found += [place] if child and "spawn_main" in (place / "cmdline").read_text() else []
    return found


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished run: 10 updates, checkpoints after 5 and 10."""
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_killed_run_resumes_bitwise(finished, cached, tmp_path):
    folder = tmp_path / "run"
    process = quiet("--output", folder, env=cached)
    wait_for((folder / "last.safetensors").exists, process)
    process.kill()
    process.wait()
    done = call("train.py", "-c", TINY, "--output", folder, "--resume", "auto", env=cached)
    assert done.returncode == 0, done.stderr
    assert "after update 5" in done.stdout
    same_run(finished, folder)
    again = call("train.py", "-c", TINY, "--output", folder)
    assert again.returncode == 2 and "already has a run" in again.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_update_saves_and_ends_with_a_code_of_its_own(finished, cached, tmp_path, number):
    """Sent to all processes of the run, when the data workers have only just been started."""
    folder = tmp_path / "run"
    process = start("--output", folder, env=cached, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for((folder / "log.txt").exists, process)
    wait_for(lambda: "compiling" in (folder / "log.txt").read_text() and workers(process), process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    stopped_at = read_checkpoint(folder / "last.safetensors").meta["update"]
    assert f"on request after update {stopped_at}" in out and "once more to stop at once" in err
    assert max(m["update"] for m in metrics(folder)) == stopped_at < 10
    done = call("train.py", "-c", TINY, "--output", folder, "--resume", "auto", env=cached)
    assert done.returncode == 0, done.stderr
    same_run(finished, folder)


def test_a_second_signal_ends_the_process_at_once_though_python_has_no_turn(tmp_path):
    """In C code, which takes a minute and more here, Python's own handler does not run: nothing is said."""
    here = tmp_path / "in C"
    options = {"env": {**os.environ, "IN_C": str(here)}, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = start("--output", tmp_path / "run", script="tests/long_compile.py", **options)
    try:
        wait_for(here.exists, process)
        for _ in range(2):
            time.sleep(0.5)
            assert process.poll() is None
            os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGTERM and "SIGTERM" not in said


def test_signals_that_are_held_come_afterwards_and_not_to_a_process_started_meanwhile():
    request = processes.StopRequest()
    before = {number: signal.getsignal(number) for number in processes.STOP_SIGNALS}
    try:
        request.listen()
        with processes.stop_signals_held():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # other threads hold nothing
            code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('lives')"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
            assert done.stdout == "lives\n" and not request.asked
        assert request.asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_run_goes_back_to_a_checkpoint_in_its_own_folder_and_says_what_has_changed(finished, cached, copy, tmp_path):
    options = ["--set", "run.log_every=3", "--set", "evaluate.batch=100", "--resume", copy / FIFTH]
    done = call("train.py", "-c", TINY, *options, env=cached, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"set aside step-000000010: later than update 5, now in {copy / 'checkpoints' / 'set-aside'}" in done.stdout
    assert "changed   since update 5: run.log_every is 3 instead of 50" in done.stdout
    assert done.stdout.count("changed   since") == 1 and "run.log_every is 3" in (copy / "plan.txt").read_text()
    same_run(finished, copy)
    aside = read_checkpoint(copy / "checkpoints" / "set-aside" / Path(TENTH).name)
    assert aside.meta["update"] == 10 and not (tmp_path / "runs").exists()


def test_names_that_a_kill_left_stale_are_put_right_and_what_cannot_be_written_is_said(finished, copy):
    """Killed after the last checkpoint was there and before it was named; and summary.json cannot be replaced.

    Nothing is cached: the evaluation is the first graph here, and the cache knows graphs by their order.
    """
    for name in ("last", "best"):
        (copy / f"{name}.safetensors").unlink()
        os.link(copy / FIFTH, copy / f"{name}.safetensors")
    (copy / "summary.json").unlink()
    (copy / "summary.json").mkdir()
    done = call("train.py", "-c", TINY, "--output", copy, "--resume", "auto")
    assert done.returncode == 7 and "Traceback" not in done.stderr, done.stderr
    assert f"stopped: {copy / 'summary.json'} cannot be written: Is a directory" in done.stdout
    same_run(finished, copy)
    assert os.path.samefile(copy / "last.safetensors", copy / TENTH)


def test_checkpoints_of_which_none_is_whole_are_named_and_nothing_is_begun(copy):
    for path in sorted(copy.rglob("*.safetensors")):
        path.write_bytes(path.read_bytes()[:1000])
    before = (copy / "metrics.jsonl").read_text()
    done = call("train.py", "-c", TINY, "--output", copy, "--resume", "auto")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for name in (FIFTH, TENTH):
        assert f"error: {copy / name}: not a whole safetensors file" in done.stderr
    assert "none is whole" in done.stderr and (copy / "metrics.jsonl").read_text() == before


def test_where_a_run_goes_on_follows_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "checkpoints" / "mine"
    (run / "checkpoints" / "set-aside").mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    recipe = load_recipe(TINY)
    inside = ("last.safetensors", FIFTH, "checkpoints/set-aside/step-000000010.safetensors", ".")
    for name in inside:
        assert choose_folder(recipe, str(run / name)).samefile(run)
        assert choose_folder(load_recipe(TINY, [f"run.output={run}"]), str(run / name)).samefile(run)
        with pytest.raises(UserError, match=r"run.output: other, but --resume goes on with the run in .*/mine: "):
            choose_folder(load_recipe(TINY, ["run.output=other"]), str(run / name))
    assert choose_folder(recipe) == choose_folder(recipe, "auto") == Path("runs/tiny")
    Path("runs/tiny/checkpoints").mkdir(parents=True)
    Path("runs/tiny", TENTH).touch()  # its metrics are lost: a run all the same
    assert (choose_folder(recipe), choose_folder(recipe, "auto")) == (Path("runs/tiny-2"), Path("runs/tiny"))


def test_what_a_run_cannot_go_on_from_is_refused_with_the_reason(finished, copy, tmp_path):
    alone = Path(shutil.copy(finished / FIFTH, tmp_path / "alone.safetensors"))
    done = call("train.py", "-c", TINY, "--resume", alone, cwd=tmp_path)
    assert done.returncode == 2 and f"{tmp_path} is no run folder" in done.stderr
    assert "put the checkpoint there as checkpoints/step-000000005.safetensors" in done.stderr
    whole = read_checkpoint(copy / TENTH)
    weights = {key: whole.meta[key] for key in ("model", "class_names", "update")}
    write_checkpoint(copy / TENTH, {n: t for n, t in whole.tensors.items() if n.startswith("model.")}, weights)
    done = call("train.py", "-c", TINY, "--resume", copy / TENTH)
    assert done.returncode == 2 and "a run cannot go on from it, it does not say its recipe, world" in done.stderr
    assert "--init-from begins a new one with its weights" in done.stderr
    odd = ["--set", "batch.global_batch=128", "--set", 'data.classes=["0","1"]', "--set", "model.embed_dim=[16, 16]"]
    done = call("train.py", "-c", TINY, "--resume", copy / FIFTH, *odd)
    assert done.returncode == 2
    for part in (
        "model.embed_dim is (8, 16) in the checkpoint",
        "it was trained on 10 classes, the data has 2",
        "batch.global_batch is 128, 256 when it was written: update 5 would be another place in the run",
        "training pictures are 288, 1,437 when it was written",
        "updates per epoch are 2, 5 when it was written",
    ):
        assert f"error: {copy / FIFTH}: {part}" in done.stderr, done.stderr


def test_metrics_that_are_missing_are_said_and_those_to_come_are_dropped(tmp_path, capsys):
    journal = Journal(tmp_path)
    lines = [f'{{"update": {update}, "loss": 1}}' for update in (1, 2, 2, 5, 6, 7, 8)] + ['{"update": 3, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    journal.forget_after(7)
    assert [m["update"] for m in metrics(tmp_path)] == [1, 2, 2, 5, 6, 7]
    assert "note      metrics.jsonl lacks 2 updates, the first of them 3" in capsys.readouterr().out


def test_weights_of_a_run_start_another_which_has_nothing_else_of_it(finished, tmp_path):
    settings = ("--set", "schedule.epochs=1", "--set", "optimizer.lr=1e-9", "--set", "schedule.warmup_epochs=0")
    settings += ("--set", "schedule.min_lr=0")
    done = call("train.py", "-c", TINY, "--output", tmp_path / "new", "--init-from", finished, *settings)
    assert done.returncode == 0, done.stderr
    before, after = (read_checkpoint(f / "last.safetensors") for f in (finished, tmp_path / "new"))
    for name, value in before.part("model").items():
        np.testing.assert_allclose(after.part("model")[name], value, rtol=0, atol=1e-6)
        if name in after.part("ema"):  # begins with the weights, not with the other run's average
            np.testing.assert_allclose(after.part("ema")[name], value, rtol=0, atol=1e-6)
    assert any(np.abs(before.part("ema")[n] - before.part("model")[n]).max() > 1e-4 for n in before.part("ema"))
    assert [m["update"] for m in metrics(tmp_path / "new") if "loss" in m] == [1, 2, 3, 4, 5]
    counters = {key: after.meta[key] for key in ("update", "applied", "best_update")}
    assert counters == {"update": 5, "applied": 5, "best_update": 5}
    scores = [m for m in metrics(tmp_path / "new") if "val_top1" in m]
    assert after.meta["best_top1"] == max(scores[0]["val_top1"], scores[0]["ema_top1"]) and len(scores) == 1
    assert "resumed" not in done.stdout and (tmp_path / "new" / "best.safetensors").exists()


def test_ranks_that_do_not_begin_alike_all_end_with_what_differs(finished_by_two, tmp_path):
    """Rank 1 passes the newest checkpoint over and has one validation picture less."""
    folder = shutil.copytree(finished_by_two, tmp_path / "run")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    words = [*msrun_words(2, free_port()), "python", ROOT / "tests" / "differing_start.py", "-c", TINY]
    code, said = Supervised(tmp_path / "logs", [*words, "--output", folder, "--resume", "auto"]).end()
    assert code == 2 and "supervise: restart" not in said, said[-3000:]
    for rank in (0, 1):
        log = (tmp_path / "logs" / "attempt-1" / f"worker_{rank}.log").read_text()
        assert "error: the ranks do not begin alike: the run's beginning is after update 10 (" in log
        assert ") on rank 0, after update 5 (" in log and "Traceback" not in log
        assert "do not begin alike: the number of validation pictures is 360 on rank 0, 359 on rank 1" in log
        assert f"ended: rank {rank} ended with code 2: the ranks do not begin alike" in said
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_kills_all_over_a_run_end_bitwise_the_same(cached, tmp_path):
    """20 kills of a live process, each after another update: while it computes, saves, validates, writes a line."""
    whole, folder, rng = tmp_path / "whole", tmp_path / "run", np.random.default_rng(0)
    settings = ["schedule.epochs=8", "evaluate.every_epochs=2", "checkpoint.every_updates=3", "run.log_every=1"]
    options = [word for setting in settings for word in ("--set", setting)]
    done = call("train.py", "-c", TINY, *options, "--output", whole, env=cached)
    assert done.returncode == 0, done.stderr
    killed = []
    env = slow_disk(cached, tmp_path)  # a save takes a second and more: many kills meet one
    for target in np.linspace(1, 39, 20).astype(int):
        process = quiet(*options, "--output", folder, "--resume", "auto", env=env)
        wait_for(lambda: (folder / "metrics.jsonl").exists(), process)
        wait_for(lambda update=target: recorded(folder) >= update, process)
        time.sleep(float(rng.uniform(0, 0.6)))
        assert process.poll() is None, "the run ended too early"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        killed.append(recorded(folder))
    assert len(killed) == 20 and len(set(killed)) >= 10, killed
    done = call("train.py", "-c", TINY, *options, "--output", folder, "--resume", "auto", env=cached)
    assert done.returncode == 0, done.stderr
    assert [m["update"] for m in metrics(folder) if "loss" in m] == list(range(1, 41))
    same_run(whole, folder)


def recorded(folder: Path) -> int:
    """The last update in a run's metrics, while it runs."""
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    return int(lines[-1].split(",")[0].rpartition(" ")[2]) if lines else 0


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [(2, 2), (1, 2), (2, 1)])
def test_a_run_goes_on_with_as_many_ranks_or_others(first, then, tmp_path):
    """From update 3 of 10, each of 2 or 4 micro-batches of 64: bitwise with as many, else to rounding."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    settings = ["batch.largest_per_device=64", "checkpoint.every_updates=3", "checkpoint.keep=9"]
    options = [word for setting in settings for word in ("--set", setting)]
    run(first, tmp_path / "first", *options, "--output", whole)
    shutil.copytree(whole, half)
    step = half / "checkpoints" / "step-000000003.safetensors"
    said = run(then, tmp_path / "then", *options, "--resume", step)
    assert "set aside step-000000005, step-000000006, step-000000009, step-000000010: later than update 3" in said
    assert f"x 64 x {4 // then} accumulation" in said
    if first == then:
        same_run(whole, half)
        assert "results agree to rounding" not in said
    else:
        assert f"note      {then} device" in said and "the same global batches in the same order" in said
        assert "results agree to rounding, not bitwise" in said
        same_to_rounding(whole, half, 10)


def run(world: int, place: Path, *options: object) -> str:
    """Trains by so many ranks, with compiled graphs of its own; what it said."""
    place.mkdir()
    words = ("train.py", "-c", TINY, *options)
    done = call(*words) if world == 1 else call_msrun(world, place / "logs", *words)
    log = place / "logs" / "worker_0.log"
    said = log.read_text() if log.exists() else done.stdout
    assert done.returncode == 0, said[-2000:] + done.stderr[-2000:]
    return said
