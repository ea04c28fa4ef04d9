"""Several ranks against one: the same training and the same scores, and every trouble is that of all of them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from rank_cases import answers
from running import call_msrun
from test_images import byte_wise, encoded, noise, png_header

BAD = {
    "torn.jpg": "image file is truncated",
    "empty.png": "the file is empty",
    "bomb.png": "decompression bomb",
    "text.jpg": "cannot identify image file",
    "broken.jpg": "No such file or directory",
    "pipe.jpg": "no file with a picture, but a pipe",
}


def odd_pictures(folder: Path) -> Path:
    """Two classes with every odd kind of picture, six of which cannot be read, and three of six to validate."""
    whole = encoded(noise(), "JPEG")
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    good = {
        "cmyk.jpg": encoded(Image.new("CMYK", (16, 16), (0, 255, 0, 0)), "JPEG"),
        "sixteen.png": encoded(Image.new("I;16", (9, 9), 40_000), "PNG"),
        "grey with alpha.png": encoded(Image.new("LA", (9, 9), (90, 40)), "PNG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "one.png": encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"),
        "一只 猫.png": encoded(noise(), "PNG"),
        "two\nlines.png": encoded(noise(), "PNG"),
        "with spaces 1.png": encoded(noise(), "PNG"),
    }
    for bits in (8, 16):
        good |= {f"kind {colours} of {bits} bits.png": byte_wise(bits, colours)[0] for colours in (2, 4, 6)}
    bad = {"torn.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.jpg": b"hello"}
    bad["bomb.png"] = png_header(20_000, 20_000)
    for name in ("train/红", "train/a b", "val/红", "val/a b"):
        (folder / name).mkdir(parents=True)
    for name, data in {**good, **bad}.items():
        (folder / "train" / "红" / name).write_bytes(data)
    (folder / "train" / "红" / "broken.jpg").symlink_to("gone.jpg")
    os.mkfifo(folder / "train" / "红" / "pipe.jpg")
    for k in range(12):
        (folder / "train" / "a b" / f"{k}.png").write_bytes(encoded(noise((20 + k, 20)), "PNG"))
    for name in ("torn.jpg", "text.jpg", "cmyk.jpg"):
        (folder / "val" / "红" / name).write_bytes({**good, **bad}[name])
    (folder / "val" / "a b" / os.fsdecode(b"\xff.png")).write_bytes(b"not text, in name and content")
    for k in range(2):
        (folder / "val" / "a b" / f"{k}.png").write_bytes(encoded(noise(), "PNG"))
    return folder


def failing_pictures(folder: Path) -> None:
    """Whole pictures and one whose storage fails: the memory of a process cannot be read from its beginning."""
    folder.mkdir()
    for k in range(40):
        (folder / "a" if k % 2 else folder / "b").mkdir(exist_ok=True)
        (folder / ("a" if k % 2 else "b") / f"{k}.png").write_bytes(encoded(noise(), "PNG"))
    for k in range(3):  # one of which at least is no picture to validate
        (folder / "a" / f"sector {k}.jpg").symlink_to("/proc/self/mem")


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def cases(request, tmp_path_factory) -> list[dict[str, dict]]:
    """What each rank found in each case of rank_cases.py."""
    folder = tmp_path_factory.mktemp("cases")
    odd_pictures(folder / "pictures")
    failing_pictures(folder / "failing")
    env = {**os.environ, "RANK_CASES": str(folder)}
    done = call_msrun(request.param, folder / "logs", "tests/rank_cases.py", env=env)
    logs = [(folder / "logs" / f"worker_{rank}.log").read_text() for rank in range(request.param)]
    assert done.returncode == 0, "\n".join(log[-2000:] for log in logs)
    said = [[json.loads(line[5:]) for line in log.splitlines() if line.startswith("case ")] for log in logs]
    return [{s["name"]: s["found"] for s in rank} for rank in said]


def of_rank(found: dict) -> dict:
    """What every rank must find: all but rank 0's log and folder."""
    own = ("log", "saved", "recorded", "best_saved")
    return {k: of_rank(v) if isinstance(v, dict) else v for k, v in found.items() if k not in own}


def of_all(cases, name: str) -> dict:
    """The finding of every rank, rank 0's log aside, which must be the same."""
    assert all(of_rank(c[name]) == of_rank(cases[0][name]) for c in cases)
    return cases[0][name]


def test_sets_that_do_not_divide_give_the_same_training_and_scores(cases):
    for rank in cases:
        for found in rank["sets_that_do_not_divide"]:
            assert found["off"] < 2e-6 < 1e-3 < found["moved"]
            assert found["several"]["top1"] == found["one"]["top1"]
            assert found["several"]["loss"] == pytest.approx(found["one"]["loss"], abs=1e-6)
        assert [f["several"]["images"] for f in rank["sets_that_do_not_divide"]] == [1, 5]


def test_ranks_with_any_workers_prepare_the_pictures_of_one_process_without(cases):
    found = [rank["pictures_of_any_ranks_and_workers"] for rank in cases]
    assert len(found[0]["all"]) == 4 * 64 and all(f["all"] == found[0]["all"] for f in found)
    for k in range(2):
        together = [line for rank in found for line in rank["mine"][k]]
        assert sorted(together) == sorted(found[0]["all"])


def test_scores_are_those_of_one_rank_bit_for_bit_empty_shares_included(cases):
    for rank in cases:
        assert rank["scores_of_any_size"] == {"tried": 8, "different": []}


def test_a_rank_that_drifts_stops_the_job_with_the_parameters_name(cases):
    for rank in cases:
        asked, at_checkpoint = rank["ranks_that_drift"]
        assert asked["error"].startswith("RuntimeError: after update 5: the ranks' parameters differ, first bias (")
        assert asked["update"] == 5
        assert at_checkpoint["error"].startswith("RuntimeError: checkpoint at update 6: the ranks' parameters differ")
    assert cases[0]["ranks_that_drift"][1]["saved"] is None


def test_parameters_that_differ_are_named_and_counted(cases):
    assert of_all(cases, "parameters_that_differ") == {"said": "now: the ranks' parameters differ, first p1 (1 of 3)"}


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_in_the_same_update(cases):
    found = of_all(cases, "a_loss_that_is_not_finite")
    assert found["error"].startswith("NonFiniteLoss: the loss is not finite in update 4 (epoch 1, step 4, lr ")
    assert "on disk: the checkpoint after update 3. Try a lower optimizer.lr" in found["error"]
    assert found["saved"] == 3


def test_a_loss_that_is_not_finite_is_not_applied_and_the_state_before_it_is_saved(cases):
    name = "a_loss_that_is_not_finite_far_from_a_save"
    for k, (found, *others) in enumerate(zip(*(rank[name] for rank in cases), strict=True)):
        assert all(of_rank(other) == of_rank(found) for other in others)
        assert found["error"].startswith("NonFiniteLoss: the loss is not finite in update 6 (epoch 1, step 6, lr ")
        assert "the state before it is on disk: the checkpoint after update 5. Try a lower" in found["error"]
        assert ("less float16 than run.precision=O3" in found["error"]) == (k == 2)
        assert (found["saved"], found["update"], found["applied"]) == (5, 5, 5) and found["finite"] and found["same"]


def test_parameters_that_are_not_finite_are_not_saved(cases):
    found = of_all(cases, "parameters_that_are_not_finite")
    assert found["error"].startswith("NonFiniteLoss: model.bias is not finite after update 6; ")
    assert "on disk: the checkpoint after update 3. Try" in found["error"] and found["saved"] == 3


def test_gradients_that_overflow_on_one_rank_are_left_out_on_all(cases):
    found = of_all(cases, "gradients_that_overflow")
    assert found["applied"] == 0 and found["moved"] == 0 and found["update"] == 27
    assert "the gradients overflow, even with the loss scaled by 0.000488281, in update 27" in found["error"]
    assert "on disk: the checkpoint after update 27. Try" in found["error"] and found["saved"] == 27
    assert "less float16 than run.precision=O2" in found["error"]
    assert cases[0]["gradients_that_overflow"]["recorded"] == 27  # what is saved has its metrics
    assert "update 1 left out: gradients overflowed; loss scale 32768" in cases[0]["gradients_that_overflow"]["log"]


def test_gradients_are_clipped_after_they_are_averaged(cases):
    found = of_all(cases, "clipping_of_unlike_gradients")
    assert found["off one rank"] < 1e-7 and found["off clip of the mean"] < 1e-7
    assert found["off mean of the clipped"] > 1e-3
    assert found["norm"] == pytest.approx(0.5, rel=1e-4)


def test_a_run_stopped_after_overflows_goes_on_with_its_loss_scale(cases):
    found = of_all(cases, "a_stop_after_overflows")
    assert found["stopped"]["error"].startswith("Stopped: on request after update 5;")
    assert found["stopped"]["loss_scale"] == {"dynamic": True, "scale": 16384.0, "good": 3}
    assert found["resumed"]["loss_scale"] == {"dynamic": True, "scale": 16384.0, "good": 14}
    assert found["resumed"]["applied"] == 14 and found["differing"] == []


def test_a_best_that_was_not_saved_does_not_stand_in_the_way_of_one_that_is(cases):
    found = of_all(cases, "a_best_that_cannot_be_saved")
    log = cases[0]["a_best_that_cannot_be_saved"]["log"]
    assert "NOT SAVED after update 8: " in log and "error" not in found
    assert cases[0]["a_best_that_cannot_be_saved"]["best_saved"] == found["best"][1] == 16
    assert found["best"][0] == found["score"]["top1"] > 0


def test_every_rank_has_the_same_answer_to_every_picture(cases):
    """Its pixels, or the reason why not; and they are those that this process finds."""
    found = of_all(cases, "answers_to_pictures")
    assert found == answers(sorted(Path(name) for name in found))
    names = {Path(name).name for name in found}
    assert {*BAD, "cmyk.jpg", "sixteen.png", "animated.gif", "one.png", "一只 猫.png", "kind 4 of 16 bits.png"} <= names
    for name, reason in BAD.items():
        assert [reason in said for path, said in found.items() if Path(path).name == name].count(False) == 0
    read = [path for path, said in found.items() if said.startswith("pixels")]
    assert len(read) == len(found) - len(BAD) - 3  # two more bad ones and the name that is no text, to validate


def test_pictures_that_cannot_be_read_are_named_and_counted_alike_by_all(cases):
    for rank in cases:
        found = rank["pictures_that_cannot_be_read"]
        several, one = found["several"], found["one"]
        assert several["skipped"] == one["skipped"] > 5
        assert several["score"]["skipped"] == one["score"]["skipped"] == 3 and several["score"]["images"] == 3
    log = cases[0]["pictures_that_cannot_be_read"]["several"]["log"]
    for name, reason in BAD.items():
        said = [line for line in log.splitlines() if f"/train/红/{name}: " in line]
        assert len(said) == 1 and "skipped: " in said[0] and reason in said[0], name
    assert log.count("/train/") == len(BAD)
    assert r"/val/a b/\udcff.png: cannot identify image file" in log
    assert "skipped   3 of 6 validation pictures cannot be read" in log
    assert f"skipped   {several['skipped']} times a training picture could not be read" in log


def test_storage_that_fails_on_one_rank_ends_all_and_is_never_skipped(cases):
    found = of_all(cases, "storage_that_fails")
    assert found["error"].startswith("MachineError: ") and found["skipped"] == 0
    assert re.search(
        r"/failing/a/sector \d\.jpg: Input/output error, 2 times in 0\.01 s: the storage f", found["error"]
    )


def test_a_picture_that_cannot_be_read_stops_all_ranks_with_the_same_words(cases):
    for which in ("stop", "val"):
        errors = [rank["pictures_that_cannot_be_read"][which]["error"] for rank in cases]
        assert len(set(errors)) == 1
        assert errors[0].startswith("UserError: a picture cannot be read: ") and "data.bad_images=skip" in errors[0]
        updates = [rank["pictures_that_cannot_be_read"][which]["update"] for rank in cases]
        assert len(set(updates)) == 1
    assert "/val/" in errors[0]
