"""Graphs that MindSpore keeps between runs: never those of something else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

from mindcv_crossvit import runtime

PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from mindcv_crossvit import runtime

process, keeps, factor, order = runtime.start("CPU"), sys.argv[1] == "keep", float(sys.argv[2]), sys.argv[3]
if keeps:
    process.keep_graphs(factor=factor, first=order.split(",")[0])
from mindspore import Tensor, nn, ops


class Times(nn.Cell):
    def __init__(self):
        super().__init__()
        self.factor = Tensor(np.float32(factor))

    def construct(self, x):
        return (x * self.factor).sum()


class Minus(Times):
    def construct(self, x):
        return (x - self.factor).sum()


for name in order.split(","):
    if name == "again":
        process.keep_graphs(factor=factor, first=name)
        continue
    print(name, {{"times": Times, "minus": Minus}}[name]()(Tensor(np.ones(3, np.float32))))
"""


def run(place: Path, *arguments: str) -> tuple[str, bool]:
    """What the program says, and whether it took a kept graph."""
    env = {**os.environ, runtime.KEEP: "1", runtime.PLACE: str(place)}
    command = [sys.executable, str(place.parent / "program.py"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, "Use the compilation cache" in done.stderr


def test_another_constant_or_order_gets_graphs_of_its_own(tmp_path):
    """MindSpore alone would run the kept graph of the first program in the others."""
    place = tmp_path / "graphs"
    (tmp_path / "program.py").write_text(PROGRAM)
    first = run(place, "keep", "2", "times,minus")
    assert first == ("times 6.0\nminus -3.0\n", False)
    assert run(place, "keep", "7", "times,minus") == ("times 21.0\nminus -18.0\n", False)
    assert run(place, "keep", "2", "minus,times") == ("minus -3.0\ntimes 6.0\n", False)
    assert run(place, "keep", "2", "times,minus") == (first[0], True)
    assert run(place, "keep", "2", "times,again,times")[0] == "times 6.0\ntimes 6.0\n"
    before = sorted(place.rglob("*"))
    assert run(place, "no", "5", "times") == ("times 15.0\n", False) and sorted(place.rglob("*")) == before

    for torn in place.rglob("*.mindir"):  # by a kill while it was written
        torn.chmod(0o600)
        torn.write_bytes(torn.read_bytes()[:200])
    assert run(place, "keep", "2", "times,minus")[0] == first[0]


@pytest.fixture
def place_of(tmp_path, monkeypatch):
    for name in (runtime.KEEP, runtime.PLACE):
        monkeypatch.setenv(name, "")  # so that it is put back

    def place(**facts: object) -> str:
        del os.environ[runtime.KEEP]
        runtime.Runtime("CPU", graphs=tmp_path).keep_graphs(**facts)
        return os.environ[runtime.PLACE]

    return place


def test_the_folder_follows_from_what_training_compiles(place_of):
    from mindcv_crossvit.build import graph_facts, new_state
    from mindcv_crossvit.data.sources import open_data
    from mindcv_crossvit.plan import make_plan
    from mindcv_crossvit.recipe_file import load_recipe

    recipe = load_recipe(ROOT / "tests" / "tiny.yaml")
    plan = make_plan(recipe, open_data(recipe.data), 1)
    state = new_state(recipe, plan)
    mine = place_of(**graph_facts(recipe, plan, state))

    def place(state=state, plan=plan, **sections: dict[str, object]) -> str:
        changed = {name: replace(getattr(recipe, name), **values) for name, values in sections.items()}
        return place_of(**graph_facts(replace(recipe, **changed), plan, state))

    assert place() == place(run={"output": "x", "log_every": 3}, data={"workers": 1}, schedule={"epochs": 9}) == mine
    others = {
        place(optimizer={"clip_norm": 0.5}),
        place(optimizer={"weight_decay": 0.7}),
        place(ema={"decay": 0.5}),
        place(model={"drop_path_rate": 0.33}),
        place(run={"precision": "O2"}),
        place(plan=replace(plan, accumulation=7)),
        place(state=replace(state, update=plan.total_steps)),
    }
    assert len(others | {mine}) == 8
