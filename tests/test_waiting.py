"""The share of time spent waiting for data: the real loop and loader, a source and a step of known duration."""

from __future__ import annotations

import json
import re
import time

import pytest
from running import TINY
from worker_scripts import SlowSource

from mindcv_crossvit.data.sources import open_data
from mindcv_crossvit.plan import make_plan
from mindcv_crossvit.recipe_file import load_recipe

pytestmark = pytest.mark.usefixtures("graph_mode")
UPDATES, BATCH = 6, 8


class PacedStep:
    """An update that computes nothing and takes its time."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def apply(self, *_):
        from mindcv_crossvit.training.step import Outcome

        time.sleep(self.seconds)
        return Outcome(1.0, True)


def train(folder, workers: int, picture_seconds: float, step_seconds: float, monkeypatch) -> tuple[float, float]:
    """(share in summary.json, share in the last log line) of six updates of eight pictures."""
    from mindcv_crossvit import build
    from mindcv_crossvit.evaluation import Score
    from mindcv_crossvit.journal import Journal
    from mindcv_crossvit.runtime import Runtime
    from mindcv_crossvit.training import loop

    recipe = load_recipe(TINY, [f"batch.global_batch={BATCH}", f"data.workers={workers}", "run.log_every=1"])
    data = open_data(recipe.data)
    data = data._replace(train=SlowSource(data.train, picture_seconds))
    plan = make_plan(recipe, data, 1)
    plan = type(plan)(**{**vars(plan), "total_steps": UPDATES})
    journal, state = Journal(folder, speaks=False), build.new_state(recipe, plan)
    score = Score(0.0, 0.0, 0.0, 1)
    monkeypatch.setattr(loop, "_score", lambda _: score)
    with build.build_loader(recipe, {"train": build.train_view(recipe, data, plan)}) as loader:
        training = build.build_training(recipe, plan, data, Runtime("CPU"), journal, state, loader)
        training.step, training.saver.folder = PacedStep(step_seconds), None  # type: ignore[assignment]
        loop.fit(training)
    build.write_summary(journal, training, score)
    said = re.findall(r"images/s, (\d+)% waiting for data", (folder / "log.txt").read_text())
    assert len(said) == UPDATES
    return json.loads((folder / "summary.json").read_text())["data_wait_share"], int(said[-1]) / 100


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_source_is_waited_for(tmp_path, monkeypatch, workers):
    """0.4 s for a batch, 0.02 s for a step: at least 0.38 of 0.4 s is waiting with a worker, 0.4 of 0.42 without."""
    summary, log = train(tmp_path, workers, 0.05, 0.02, monkeypatch)
    assert 0.85 < summary <= 1 and abs(summary - log) < 0.006


def test_half_of_the_time_is_said_to_be_half(tmp_path, monkeypatch):
    """Without workers a batch of 0.4 s and a step of 0.4 s follow each other."""
    summary, _ = train(tmp_path, 0, 0.05, 0.4, monkeypatch)
    assert 0.45 < summary < 0.65


def test_the_loop_does_not_wait_for_a_source_that_is_faster_than_the_step(tmp_path, monkeypatch):
    """0.16 s for a batch, 0.5 s for a step: the next batches are ready."""
    summary, log = train(tmp_path, 1, 0.02, 0.5, monkeypatch)
    assert summary < 0.03 and log <= 0.03
