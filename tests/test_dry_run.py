"""What `--dry-run` says, number by number, on class folders of ImageNet's shape; and that it compiles nothing."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from mindcv_crossvit.models.catalog import VARIANTS
from mindcv_crossvit.models.memory import Load, training_memory

NINE = ROOT / "configs" / "crossvit_9_ascend.yaml"
PARAMETERS, MACS, TENSORS = 8_553_296, 1_840_796_160, {"official": (92, 176), "timm": (88, 180)}
"""Of the official crossvit_9 for 1,000 classes, by PyTorch; tensors that are decayed and that are not."""


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """1,000 classes; 4 pictures each for training, 1 for validation, which a dry run need not read."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 4), ("val", 1)):
        for label in range(1000):
            (root / split / f"n{label:08d}").mkdir(parents=True)
            for k in range(count):
                (root / split / f"n{label:08d}" / f"{k}.JPEG").write_bytes(b"\xff\xd8")
    return root


@pytest.fixture
def plan(imagenet, monkeypatch, capsys, tmp_path, graph_mode):
    """plan("--set", ...): the lines of a dry run by topic; whatever would compile a graph fails."""
    from mindspore import nn

    import train

    def refuse(*_, **__):
        raise AssertionError("a graph is compiled")

    def dry_run(*arguments: str) -> dict[str, list[str]]:
        command = ["train.py", "-c", str(NINE), "--data_dir", str(imagenet), "--dry-run", *arguments]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command)
            patch.setattr(nn.Cell, "compile", refuse)
            patch.chdir(tmp_path)
            assert train.main() == 0
        lines: dict[str, list[str]] = {}
        for line in capsys.readouterr().out.splitlines():
            lines.setdefault(line[:9].strip(), []).append(line[10:])
        assert not list(tmp_path.iterdir())
        return lines

    return dry_run


def test_every_number_of_the_papers_plan(plan):
    started = time.monotonic()
    said = plan("--world", "8")
    assert time.monotonic() - started < 60  # seconds; compiling crossvit_9 takes a minute and more
    assert said["model"] == [f"crossvit_9, {PARAMETERS:,} parameters, 240 px, {MACS / 1e9:.3f} G multiply-accumulates"]
    assert said["data"][0].startswith("4,000 training and 1,000 validation pictures, 1,000 classes")
    assert said["batch"] == ["8 devices x 128 x 4 accumulation = 4096 pictures per update"]
    assert said["lr"] == ["0.0005 x 4096/512 = 0.004; 30 epochs warm-up from 1e-06, cosine to 1e-05"]
    assert said["steps"] == ["1 per epoch, 300 in 300 epochs"]
    sent = 2 * 7 / 8 * 4 * PARAMETERS / 1e6
    assert said["traffic"][0].startswith(f"{sent:.1f} MB sent and received by each rank per update: a ring all-reduce")
    assert "changed" not in said and "shipped" not in said


@pytest.mark.parametrize("rule", TENSORS)
def test_the_decayed_tensors_are_counted_by_rule(plan, rule):
    said = plan("--set", f"optimizer.no_decay={rule}", "--set", "schedule.warmup_epochs=10")
    decayed, others = TENSORS[rule]
    assert said["decay"] == [f"{decayed} tensors decayed by 0.05, {others} not"]
    assert "traffic" not in said and said["changed"][-1].startswith(
        "schedule.warmup_epochs is 10.0 instead of the recipe"
    )
    assert said["changed"][-1].endswith("(facebookresearch/deit#63)") and len(said["changed"]) == 1 + (rule == "timm")


def test_the_memory_follows_from_the_recipe(plan):
    """Weights, two moments and an average; a micro-batch's gradients, two sums and their mean: eight of each number."""
    changes = ["batch.largest_per_device=16", "batch.global_batch=32", "ema.decay=0.9", "evaluate.batch=100"]
    line = plan(*(word for change in changes for word in ("--set", change)))["memory"][0]
    state, step, evaluation, program = gigabytes(line)
    assert state == pytest.approx(8 * 4 * PARAMETERS / 1e9, abs=0.006)
    assert "weights, gradients, moments, moving average, sums of gradients" in line
    assert "of 16 pictures in a step" in line and "of 100 in an evaluation" in line

    config, tensors = VARIANTS["crossvit_9"], sum(TENSORS["official"])
    load = Load(16, 100, tensors, held=4 * PARAMETERS, trained=PARAMETERS, accumulates=True)
    need = training_memory(config, load, on_cpu=True)
    assert [need.state, need.step, need.evaluation, need.program] == pytest.approx(
        [1e9 * value for value in (state, step, evaluation, program)], abs=6e6
    )
    more = training_memory(config, replace(load, pictures=32, evaluated=300), on_cpu=True)
    assert (more.step, more.evaluation) == pytest.approx((2 * step * 1e9, 3 * evaluation * 1e9), abs=2e7)
    alone = training_memory(config, replace(load, accumulates=False), on_cpu=False)
    assert alone.state == 4 * 5 * PARAMETERS and alone.program == 0
    unknown = training_memory(None, load, on_cpu=True)
    assert unknown.step is None and unknown.total == unknown.state + unknown.program


def gigabytes(line: str) -> list[float]:
    """State, a step's activations, an evaluation's, MindSpore and its graphs; their sum is the number in front."""
    total, *parts = [float(number) for number in re.findall(r"([\d.]+) GB", line)]
    assert len(parts) == 4 and total == pytest.approx(parts[0] + max(parts[1:3]) + parts[3], abs=0.02)
    return parts


def test_the_guard_sees_compiling(graph_mode, monkeypatch):
    from mindspore import Tensor, nn

    monkeypatch.setattr(nn.Cell, "compile", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(pytest.fail.Exception, match="compiled"):
        nn.Dense(2, 2)(Tensor(np.zeros((1, 2), np.float32)))
