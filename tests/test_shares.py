"""One recipe is the same pictures, mixed in the same pairs, on any number of devices; with real processes, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from reference import reference
from running import call, call_msrun
from test_loader import filled, train_view

from mindcv_crossvit.data.draws import drop_path_scale
from mindcv_crossvit.data.shares import keeps_pairs, share_rows
from mindcv_crossvit.data.sources import Splits
from mindcv_crossvit.data.views import Arrays, Order, train_jobs
from mindcv_crossvit.plan import Plan, make_plan, plan_lines
from mindcv_crossvit.recipe import Mix
from mindcv_crossvit.recipe_file import load_recipe

PAPER = ROOT / "configs" / "crossvit_15_ascend.yaml"
GLOBAL, GROUP = 32, 16


def plan(world: int, *changes: str, path=PAPER, pictures: int = 1_281_167) -> Plan:
    data = Splits(range(pictures), range(50_000), tuple(map(str, range(1000))))  # type: ignore[arg-type]
    return make_plan(load_recipe(path, changes), data, world)


# The plan


@pytest.mark.parametrize("world", [1, 8, 32, 64, 512, 1024, 2048])
def test_the_papers_recipe_mixes_as_the_paper_on_any_number_of_devices(world):
    p = plan(world)
    assert (p.group, p.mix_group, p.notes) == (128, 128, ())
    assert p.per_device == min(128, 4096 // world) and p.per_device * p.accumulation * world == 4096


@pytest.mark.parametrize(
    "world, changes, per_device, mix_group, said",
    [
        (4096, [], 1, 1, ["mixing draws once per 1 pictures instead of 128: a device's 1 hold no pairs"]),
        (256, ["batch.global_batch=768"], 3, 3, ["mixing draws once per 3 pictures instead of 128: a device's 3"]),
        (256, ["batch.global_batch=768", "mix.mixup=0", "mix.cutmix=0"], 3, 128, []),
        (3, ["batch.global_batch=768", "mix.group=96"], 128, 96, []),  # pairs of two groups, no group whole
        (1, ["batch.global_batch=160"], 80, 160, ["once per 160 pictures instead of 128: the global batch of 160"]),
        (1, ["batch.global_batch=15"], 15, 15, ["once per 15 pictures instead of 128: the global batch of 15"]),
        (5, ["batch.global_batch=15", "mix.group=4"], 3, 3, ["once per 5 pictures instead of 4", "hold no pairs"]),
        (2, ["batch.global_batch=12", "mix.group=3"], 6, 3, []),
        (1, ["batch.global_batch=254", "mix.mixup=0"], 2, 254, ["once per 254", "holds 2 pictures at once, not 127"]),
    ],
)
def test_what_devices_hold_and_what_is_said_of_it(world, changes, per_device, mix_group, said):
    p = plan(world, *changes)
    assert (p.per_device, p.mix_group) == (per_device, mix_group)
    assert len(p.notes) == len(said) and all(part in note for part, note in zip(said, p.notes, strict=True))


@pytest.mark.parametrize("size, crop", [("[32,32]", "auto"), ("[48,48]", "auto"), ("[32,32]", "resized")])
def test_the_plan_says_that_small_pictures_are_shifted(size, crop):
    recipe = load_recipe(PAPER, [f"model.img_size={size}", "model.patch_size=[8,16]", f"augment.crop={crop}"])
    said = [text for topic, text in plan_lines(recipe, plan(1)) if topic == "crop"]
    expected = "32 pixels with 4 of padding and a random shift, as the official loader up to 32"
    assert said == ([expected] if (size, crop) == ("[32,32]", "auto") else [])


@pytest.mark.parametrize(
    "before, world, norms_batches, said",
    [
        (128, 8, True, ""),
        (128, 1024, False, "1024 devices x 4 pictures instead of 8 x 128"),
        (64, 8, False, "results agree to rounding, not bitwise"),
        (
            64,
            1,
            True,
            "1 device x 128 pictures instead of 8 x 64: the same global batches in the same order, but batch",
        ),
        (128, 4096, False, "mixing draws once per 1 pictures, not 128"),
        (128, 4096, True, "other training from here"),
    ],
)
def test_going_on_with_other_devices_says_what_differs_and_nothing_else(before, world, norms_batches, said):
    from mindcv_crossvit.training.start import other_devices

    meta = {"world": 8, "per_device": before, "mix_group": 128}
    note = other_devices(meta, plan(world), norms_batches)
    assert said in note and bool(note) == bool(said)
    assert ("agree to rounding" in note) == (bool(note) and not norms_batches and world != 4096)
    assert "but batch norms" not in note or norms_batches


def test_an_epoch_of_repeated_pictures_is_as_long_as_the_official_one():
    """N // 256 * 256 of the repeated pictures, as timm's sampler keeps of them in tests/data/repeats.json."""
    assert plan(8, path=ROOT / "configs" / "crossvit_18_ascend.yaml").steps_per_epoch == 312
    known, small = reference("repeats.json"), ["batch.global_batch=64", "mix.group=16"]
    kept = sum(map(len, known["ranks"]))
    assert plan(1, "augment.repeats=3", *small, pictures=known["pictures"]).steps_per_epoch == kept // 64 == 8
    assert plan(1, *small, pictures=known["pictures"]).steps_per_epoch == 10


# Rows


@pytest.mark.parametrize("total, group", [(32, 16), (32, 32), (48, 6), (40, 8), (24, 3)])
def test_parts_are_all_rows_and_reversed_they_are_their_partners(total, group):
    partner = np.arange(total).reshape(-1, group)[:, ::-1].reshape(-1)
    for size in (k for k in range(1, total + 1) if total % k == 0):
        parts = [share_rows(k, size, group) for k in range(total // size)]
        assert sorted(np.concatenate(parts)) == list(range(total)) and {len(p) for p in parts} == {size}
        for rows in parts if keeps_pairs(size, group) else []:
            assert np.all(np.diff(rows // group) >= 0)
            for number in set(rows // group):
                mine = rows[rows // group == number]
                np.testing.assert_array_equal(mine[::-1], partner[mine])
        if size % group == 0:
            np.testing.assert_array_equal(np.concatenate(parts), np.arange(total))
    assert not keeps_pairs(1, 2) and not keeps_pairs(4, 3) and keeps_pairs(6, 3) and keeps_pairs(6, 4)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("mix", [Mix(), Mix(mixup=0.8, cutmix=1.0)], ids=["plain", "mixed"])
def test_pixels_targets_and_drop_path_of_any_ranks_are_bytewise_those_of_one(mix, repeats):
    """Rows are put together by their number; the reference has each global batch, with whole groups, in one piece."""

    def rows(world: int, per_device: int) -> Arrays:
        view, found = replace(train_view(batch=per_device), mix=mix, group=GROUP), {}
        order = Order(3, 1437, GLOBAL, 3, repeats, GROUP)
        for rank in range(world):
            for k, work in enumerate(train_jobs(order, per_device, rank, world, 2, 4)):
                arrays = filled(view, work)
                update, micro = 2 + k * world * per_device // GLOBAL, k % (GLOBAL // (world * per_device))
                drop = drop_path_scale(3, update, (0.2, 0.4), GLOBAL)
                arrays["drop"] = drop[:, share_rows(micro * world + rank, per_device, GROUP)].T
                for k, row in enumerate(work.rows.tolist()):
                    assert (work.epoch, row) not in found
                    found[work.epoch, row] = {name: array[k] for name, array in arrays.items()}
        return {n: np.stack([found[number][n] for number in sorted(found)]) for n in ("images", "targets", "drop")}

    one = rows(1, GLOBAL)
    assert len(one["images"]) == 2 * GLOBAL and len(np.unique(one["drop"])) == 3
    for world, per_device in ((1, 8), (2, 16), (2, 4), (4, 8), (4, 2), (8, 4), (8, 2), (16, 2)):
        together = rows(world, per_device)
        for name in one:
            assert together[name].tobytes() == one[name].tobytes(), (world, per_device, name)


# Real processes


def prepared(folder: Path, world: int, start: int, stop: int, *workers: int) -> list[list[str]]:
    """Per number of workers, what the ranks prepared together: a sorted line a row."""
    words = ("tests/prepared_pictures.py", start, stop, *workers)
    if world == 1:
        done = call(*words)
        said = [done.stdout]
    else:
        done = call_msrun(world, folder, *words, timeout=900)
        said = [(folder / f"worker_{rank}.log").read_text() for rank in range(world)]
    assert done.returncode == 0, done.stderr[-2000:] + said[0][-2000:]
    found: list[list[str]] = [[] for _ in workers]
    for text in said:
        parts = text.split("with ")[1:]
        assert [int(part.split()[0]) for part in parts] == list(workers)
        for mine, part in zip(found, parts, strict=True):
            mine += [line for line in part.splitlines() if line.startswith("row ")]
    return [sorted(mine) for mine in found]


@pytest.fixture(scope="module")
def by_one(tmp_path_factory) -> list[str]:
    """The pictures of updates 18 to 25 by one process with one worker; an epoch has 20 updates."""
    return prepared(tmp_path_factory.mktemp("one"), 1, 18, 26, 1)[0]


def test_workers_prepare_the_pictures_of_one_before_and_after_a_restart(by_one, tmp_path):
    """Two ranks do it in test_ranks.py."""
    assert len(by_one) == len({line.rpartition(" ")[0] for line in by_one}) == 8 * 64
    assert {line.split()[1] for line in by_one} == {"0", "1"} and len({line.split()[-1] for line in by_one}) == 8 * 64
    (begun,), (rest,) = prepared(tmp_path, 1, 18, 21, 8), prepared(tmp_path, 1, 21, 26, 2)
    assert sorted(begun + rest) == by_one


@pytest.mark.slow
def test_eight_ranks_with_eight_workers_prepare_the_pictures_of_one_process(by_one, tmp_path):
    assert prepared(tmp_path / "all", 8, 18, 26, 1, 8) == [by_one] * 2
    (begun,), (rest,) = prepared(tmp_path / "begun", 8, 18, 23, 1), prepared(tmp_path / "rest", 8, 23, 26, 2)
    assert sorted(begun + rest) == by_one
