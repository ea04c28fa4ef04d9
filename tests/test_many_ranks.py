"""One recipe on 1, 2, 4 and 8 ranks, and on two machines: network namespaces joined by a cable of their own. Slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import (
    ROOT,
    TINY,
    call,
    call_msrun,
    cannot,
    last_json,
    metrics,
    msrun_env,
    same_run,
    same_to_rounding,
    wait_for,
)
from supervised import marked, people

pytestmark = pytest.mark.slow
SETTINGS = ["augment.repeats=3", "batch.global_batch=160", "batch.largest_per_device=20", "mix.group=40"]
SETTINGS += ["schedule.epochs=3", "evaluate.every_epochs=3", "checkpoint.every_epochs=3", "model.depth=[[1,1,0]]"]
PATIENCE = 1200  # seconds; eight ranks on two cores that others use, too
RECIPE = ["-c", str(TINY), *(word for setting in SETTINGS for word in ("--set", setting))]


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory) -> Callable[..., Path]:
    """The run folder of 24 updates by so many ranks, of `largest` pictures at once; each is run once."""
    finished: dict[tuple[int, int], Path] = {}

    def run(world: int, largest: int = 20) -> Path:
        if (world, largest) not in finished:
            root = tmp_path_factory.mktemp(f"ranks-{world}")
            words = ("train.py", *RECIPE, "--set", f"batch.largest_per_device={largest}", "--output", root / "run")
            if world == 1:
                done = call(*words, timeout=PATIENCE)
            else:
                done = call_msrun(world, root / "logs", *words, timeout=PATIENCE)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            finished[world, largest] = root / "run"
        return finished[world, largest]

    return run


@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_same_training_on_any_number_of_ranks(by_ranks, world):
    same_to_rounding(by_ranks(1), by_ranks(world))
    plan = (by_ranks(world) / "plan.txt").read_text()
    assert f"{world} devices x 20 x {8 // world} accumulation = 160 pictures per update" in plan


def test_the_same_training_with_other_micro_batches(by_ranks):
    """All pictures at once on one rank, half a mixing group on each of eight."""
    whole = by_ranks(1, 160)
    same_to_rounding(whole, by_ranks(8))
    assert "1 device x 160 x 1 accumulation = 160 pictures per update" in (whole / "plan.txt").read_text()


@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_same_scores_to_the_digit_on_any_number_of_ranks(by_ranks, world, tmp_path):
    options = [*RECIPE, "--ckpt_path", by_ranks(1)]
    alone = last_json(call("validate.py", *options, timeout=PATIENCE))
    done = call_msrun(world, tmp_path / "logs", "validate.py", *options, timeout=PATIENCE)
    log = (tmp_path / "logs" / "worker_0.log").read_text()
    assert done.returncode == 0, log[-2000:]
    assert json.loads([line for line in log.splitlines() if line.startswith("{")][-1]) == alone


NODES = {"node0": "10.77.3.1", "node1": "10.77.3.2"}


@pytest.fixture
def two_nodes() -> Iterator[list[str]]:
    """The names of two network namespaces that see each other and nothing else."""
    names = [f"crossvit-{node}-{os.getpid()}" for node in NODES]
    ends = [f"cv{k}-{os.getpid()}"[:15] for k in range(2)]
    commands = [["ip", "netns", "add", name] for name in names]
    commands += [["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]]]
    for name, end, address in zip(names, ends, NODES.values(), strict=True):
        commands += [["ip", "link", "set", end, "netns", name]]
        inside = ["ip", "-n", name]
        commands += [[*inside, "addr", "add", f"{address}/24", "dev", end], [*inside, "link", "set", end, "up"]]
        commands += [[*inside, "link", "set", "lo", "up"]]
    try:
        for command in commands:
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except FileNotFoundError:
                cannot("no `ip` to make network namespaces with")
            if done.returncode:
                cannot(f"no right to make network namespaces: {' '.join(command)}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@contextmanager
def launched(
    namespaces: list[str], root: Path, *options: object, only_first: Sequence = (), only_second: Sequence = ()
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """launch.sh with two ranks on each of two machines; nothing of it is left."""
    env, running = {**msrun_env(), "CROSSVIT_TEST": str(root)}, []
    try:
        for rank, namespace in enumerate(namespaces):
            launch = [ROOT / "scripts" / "launch.sh", "--workers", 2, "--nodes", 2, "--node-rank", rank]
            launch += ["--master", NODES["node0"], "--port", 8118, "--logs", root / "logs", *options]
            words = ["ip", "netns", "exec", namespace, *launch, "train.py", *RECIPE, "--output", root / "run"]
            words += [*(only_first, only_second)[rank]]
            said = (root / f"said-{rank}.txt").open("w")
            running.append(subprocess.Popen([str(w) for w in words], stdout=said, stderr=subprocess.STDOUT, env=env))
        yield running
    finally:
        for process in running:
            process.terminate()
            process.wait(60)
        assert not marked(f"CROSSVIT_TEST={root}")


def ends(running: list[subprocess.Popen[bytes]], root: Path, seconds: float = PATIENCE) -> tuple[list[int], list[str]]:
    """(exit codes, what was said) of both machines."""
    codes = [process.wait(seconds) for process in running]
    return codes, [(root / f"said-{rank}.txt").read_text() for rank in range(2)]


def test_two_machines_give_bitwise_the_run_of_four_ranks_on_one(by_ranks, two_nodes, tmp_path):
    with launched(two_nodes, tmp_path, "--restarts", 0) as running:
        codes, said = ends(running, tmp_path)
    assert codes == [0, 0], "\n".join(text[-3000:] for text in said)
    for rank in range(2):
        workers = {p.name for p in (tmp_path / "logs" / f"node-{rank}" / "attempt-1").glob("worker_*.log")}
        assert workers == {f"worker_{2 * rank}.log", f"worker_{2 * rank + 1}.log"}
    same_run(by_ranks(4), tmp_path / "run")


def test_a_rank_killed_on_one_of_two_machines_ends_and_restarts_both_bitwise(by_ranks, two_nodes, tmp_path):
    folder, mark = tmp_path / "run", f"CROSSVIT_TEST={tmp_path}"
    every = ["--set", "checkpoint.every_updates=2"]
    options = ["--restarts", 1, "--backoff", 1]
    with launched(two_nodes, tmp_path, *options, only_first=every, only_second=every) as running:
        wait_for(lambda: (folder / "metrics.jsonl").exists() and len(metrics(folder)) > 4, running[0], PATIENCE)
        os.kill(people(mark)["rank 3"]["pid"], signal.SIGKILL)
        began = time.monotonic()
        logs = [tmp_path / "logs" / f"node-{rank}" / "supervise.log" for rank in range(2)]
        wait_for(lambda: all("restart 1 of 1" in log.read_text() for log in logs), running[0])
        assert time.monotonic() - began < 30
        codes, said = ends(running, tmp_path)
    assert codes == [0, 0], "\n".join(text[-3000:] for text in said)
    assert "FAILED: rank 3 was killed by SIGKILL" in said[1]
    assert "FAILED: node 1 has failed: rank 3 was killed by SIGKILL" in said[0]
    assert all(text.count("supervise: runs") == 2 for text in said)
    same_run(by_ranks(4), folder)


def test_a_wrong_word_on_one_of_two_machines_ends_both_at_once(two_nodes, tmp_path):
    began = time.monotonic()
    with launched(two_nodes, tmp_path, only_second=["--set", "optimizer.weight_dcay=1"]) as running:
        codes, said = ends(running, tmp_path, 100)
    assert codes == [2, 2] and time.monotonic() - began < 60
    assert all("did you mean weight_decay" in text and "supervise: restart" not in text for text in said)
