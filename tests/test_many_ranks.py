"""One recipe on 1, 2, 4 and 8 ranks, and on two machines: network namespaces joined by a cable of their own. Slow."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import ROOT, TINY, call, call_msrun, last_json, msrun_env, same_run, same_to_rounding

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
                pytest.skip("no `ip` to make network namespaces with")
            if done.returncode:
                pytest.skip(f"no right to make network namespaces: {' '.join(command)}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_machines_give_bitwise_the_run_of_four_ranks_on_one(by_ranks, two_nodes, tmp_path):
    folder, running = tmp_path / "run", []
    try:
        for rank, namespace in enumerate(two_nodes):
            launch = [ROOT / "scripts" / "launch.sh", "--workers", 2, "--nodes", 2, "--node-rank", rank]
            launch += ["--master", NODES["node0"], "--port", 8118, "--restarts", 0, "--logs", tmp_path / "logs"]
            words = ["ip", "netns", "exec", namespace, *launch, "train.py", *RECIPE, "--output", folder]
            said = (tmp_path / f"said-{rank}.txt").open("w")
            options = {"stdout": said, "stderr": subprocess.STDOUT, "env": msrun_env()}
            running.append(subprocess.Popen([str(w) for w in words], **options))
        codes = [process.wait(PATIENCE) for process in running]
    finally:
        for process in running:
            process.terminate()
    said = [(tmp_path / f"said-{rank}.txt").read_text() for rank in range(2)]
    assert codes == [0, 0], "\n".join(text[-3000:] for text in said)
    for rank in range(2):
        workers = {p.name for p in (tmp_path / "logs" / f"node-{rank}" / "attempt-1").glob("worker_*.log")}
        assert workers == {f"worker_{2 * rank}.log", f"worker_{2 * rank + 1}.log"}
    same_run(by_ranks(4), folder)
