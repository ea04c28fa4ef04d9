"""The real scripts, run as a user runs them, on real pictures: train, validate, msrun, and wrong input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from running import TINY, call, call_msrun, last_json, metrics, photos, same_to_rounding

from mindcv_crossvit.training.checkpoint import read_checkpoint


def test_a_run_leaves_everything_in_its_folder(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"recipe.yaml", "plan.txt", "manifest.json", "metrics.jsonl", "log.txt", "curves.png"} <= names
    assert {"last.safetensors", "best.safetensors", "checkpoints"} <= names
    updates = [m["update"] for m in metrics(finished) if "loss" in m]
    assert updates == list(range(1, 11))
    assert [m["epoch"] for m in metrics(finished) if "val_top1" in m] == [1, 2]
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["data"]["train"] == 1437 and manifest["data"]["val"] == 360 and manifest["versions"]["mindspore"]
    assert Image.open(finished / "curves.png").size[0] > 500
    said = (finished / "stdout.txt").read_text()
    assert "1 device x 128 x 2 accumulation = 256 pictures per update" in said and "compiling the graph" in said


def test_the_checkpoint_knows_itself(finished):
    meta = read_checkpoint(finished / "last.safetensors").meta
    assert meta["class_names"] == [str(d) for d in range(10)] and meta["model"]["name"] == "crossvit_9"
    assert meta["update"] == 10 and meta["recipe"]["name"] == "tiny" and meta["versions"]["mindcv_crossvit"]
    assert meta["best_top1"] == max(max(m["val_top1"], m["ema_top1"]) for m in metrics(finished) if "val_top1" in m)


def test_validate_scores_every_picture_once_whatever_the_batch(finished, tmp_path):
    whole = last_json(call("validate.py", "-c", TINY, "--ckpt_path", finished / "last.safetensors"))
    scores = {"top1", "top5", "loss", "images", "ema_top1", "ema_top5", "ema_loss"}
    assert set(whole) == scores | {"checkpoint", "model"}
    assert whole["images"] == 360 and whole["model"] == "crossvit_9"
    trained = metrics(finished)[-1]
    assert (whole["top1"], whole["top5"]) == (trained["val_top1"], trained["val_top5"])
    assert (whole["ema_top1"], whole["ema_top5"]) == (trained["ema_top1"], trained["ema_top5"])
    assert whole["ema_loss"] != whole["loss"]
    odd = last_json(call("validate.py", "-c", TINY, "--ckpt_path", finished, "--set", "evaluate.batch=77"))
    assert (odd["top1"], odd["top5"], odd["images"]) == (whole["top1"], whole["top5"], 360)
    assert odd["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    ranks = call_msrun(2, tmp_path / "logs", "validate.py", "-c", TINY, "--ckpt_path", finished)
    assert ranks.returncode == 0, ranks.stdout
    said = json.loads(
        [line for line in (tmp_path / "logs" / "worker_0.log").read_text().splitlines() if line.startswith("{")][-1]
    )
    assert (said["top1"], said["top5"], said["images"]) == (whole["top1"], whole["top5"], 360)
    assert said["loss"] == pytest.approx(whole["loss"], abs=1e-6)


def test_two_msrun_workers_train_the_same_run(cached, tmp_path):
    """24 updates with repeated augmentation and a moving average; the graphs are those of `finished`."""
    options = ["-c", TINY, "--set", "schedule.epochs=5", "--set", "augment.repeats=3", "--set", "run.compare_every=7"]
    options += ["--set", "checkpoint.every_updates=24", "--set", "evaluate.every_epochs=5"]
    alone, by_two = tmp_path / "alone", tmp_path / "two"
    done = call("train.py", *options, "--output", alone, env=cached)
    assert done.returncode == 0, done.stderr
    done = call_msrun(2, tmp_path / "logs", "train.py", *options, "--output", by_two, env=cached)
    logs = [(tmp_path / "logs" / f"worker_{rank}.log").read_text() for rank in (0, 1)]
    assert done.returncode == 0, logs[0][-2000:]
    assert "2 devices x 128 x 1 accumulation = 256 pictures per update" in logs[0]
    assert "epoch" not in logs[1]
    same_to_rounding(alone, by_two)


@pytest.mark.slow
def test_two_ranks_train_in_half_precision_with_their_average(finished, tmp_path):
    options = ("--set", "run.precision=O2", "--output", tmp_path / "run")
    done = call_msrun(2, tmp_path / "logs", "train.py", "-c", TINY, *options)
    assert done.returncode == 0, (tmp_path / "logs" / "worker_0.log").read_text()[-2000:]
    half, whole = read_checkpoint(tmp_path / "run" / "last.safetensors"), read_checkpoint(finished / "last.safetensors")
    assert half.meta["loss_scale"]["dynamic"] and half.meta["applied"] == 10 and half.part("ema")
    pairs = zip(metrics(finished), metrics(tmp_path / "run"), strict=True)
    off = [abs(one["loss"] - two["loss"]) for one, two in pairs if "loss" in one]
    assert max(off) < 5e-3 and sum(o > 0 for o in off) > 5  # fresh weights may give the very same loss
    for name, value in whole.part("ema").items():
        np.testing.assert_allclose(half.part("ema")[name], value, rtol=0, atol=2e-3)


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path):
    done = call("train.py", "-c", TINY, "--dry-run", "--set", "batch.global_batch=512", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 device x 128 x 4 accumulation = 512 pictures per update" in done.stdout
    assert "2 per epoch, 4 in 2 epochs" in done.stdout and "multiply-accumulates" in done.stdout
    assert "tensors decayed by 0.05" in done.stdout and not list(tmp_path.iterdir())
    assert "changed   batch.global_batch is 512 instead of the recipe's 256" in done.stdout


def test_a_dry_run_plans_for_any_number_of_devices(tmp_path):
    done = call("train.py", "-c", TINY, "--dry-run", "--world", "64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "64 devices x 4 x 1 accumulation = 256 pictures per update" in done.stdout
    assert "MB sent and received by each rank per update" in done.stdout and not list(tmp_path.iterdir())
    refused = call("train.py", "-c", TINY, "--dry-run", "--world", "1024", cwd=tmp_path)
    assert refused.returncode == 2 and "cannot be divided among 1024 devices" in refused.stderr


FOLDER_SETTINGS = ["--set", "data.source=folder", "--set", "batch.global_batch=16", "--set", "mix.group=8"]
FOLDER_SETTINGS += ["--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0"]


def test_one_folder_of_classes_is_split_trained_and_scored(tmp_path):
    root = photos(tmp_path / "photos", {"红": 20, "a class": 21, "blue": 22})
    (root / "blue" / "torn.png").write_bytes((root / "blue" / "0.png").read_bytes()[:100])
    settings = [*FOLDER_SETTINGS, "--data_dir", root, "--set", "data.val_fraction=0.2"]
    stopped = call("train.py", "-c", TINY, "--output", tmp_path / "stopped", *settings)
    assert stopped.returncode == 2 and "torn.png" in stopped.stderr and "data.bad_images=skip" in stopped.stderr
    settings += ["--set", "data.bad_images=skip"]
    done = call("train.py", "-c", TINY, "--distribute", "False", "--output", tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    assert "torn.png" in done.stdout
    meta = read_checkpoint(tmp_path / "run" / "last.safetensors").meta
    assert meta["class_names"] == ["a class", "blue", "红"] and meta["skipped"] >= 0
    other = photos(tmp_path / "other", {"a class": 5, "blue": 5, "green": 5})
    settings[settings.index(root)] = other
    refused = call("validate.py", "-c", TINY, "--ckpt_path", tmp_path / "run", *settings)
    assert refused.returncode == 2 and "class 2 is '红' in the checkpoint and 'green' in the data" in refused.stderr
    shutil.rmtree(other / "green")
    refused = call("validate.py", "-c", TINY, "--ckpt_path", tmp_path / "run", *settings)
    assert refused.returncode == 2 and "trained on 3 classes, the data has 2" in refused.stderr


def cifar10(root: Path) -> Path:
    """CIFAR-10's published layout with 30 records a file."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        rows = rng.integers(0, 256, (30, 3073), np.uint8)
        rows[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"kind{k}" for k in range(10)))
    return root


def test_cifar_in_its_binary_form_is_trained_and_scored(tmp_path):
    root = cifar10(tmp_path / "data")
    settings = ["--data_dir", root, "--set", "data.source=cifar10", "--set", "batch.global_batch=64"]
    settings += ["--set", "augment.crop=padded", "--set", "schedule.epochs=1"]
    done = call("train.py", "-c", TINY, "--output", tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    assert "150 training and 30 validation pictures, 10 classes" in done.stdout
    assert "(30 pictures; best" in done.stdout


def test_a_model_of_mindcvs_zoo_is_trained_by_the_same_recipe(tmp_path):
    root = photos(tmp_path / "photos", {"red": 12, "green": 12}, size=64)
    recipe = tmp_path / "zoo.yaml"
    recipe.write_text(
        "name: zoo\nmodel: {name: mindcv/squeezenet1_1, input_size: 64}\ndata: {val_fraction: 0.25, workers: 0}\n"
        "batch: {global_batch: 8}\nschedule: {epochs: 1, warmup_epochs: 0}\nevaluate: {batch: 4}\n"
    )
    done = call("train.py", "-c", recipe, "--data_dir", root, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    scored = last_json(call("validate.py", "-c", recipe, "--data_dir", root, "--ckpt_path", tmp_path / "run"))
    assert scored["model"] == "mindcv/squeezenet1_1" and scored["images"] == 6


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    settings = ["--set", "optimizer.lr=1e30", "--set", "schedule.warmup_epochs=0", "--set", "augment.flip=0"]
    done = call("train.py", "-c", TINY, "--output", tmp_path / "run", *settings)
    assert done.returncode == 3, done.stderr
    assert "the loss is not finite in update" in done.stdout and "Try a lower optimizer.lr" in done.stdout


def test_given_weights_begin_a_run_and_are_not_read_again_when_it_goes_on(finished, tmp_path):
    options = ["-c", TINY, "--dry-run", "--resume", "auto", "--init-from", tmp_path / "gone.pth", "--output"]
    begun = call("train.py", *options, tmp_path / "new")
    assert begun.returncode == 2 and "gone.pth: no such file" in begun.stderr
    assert call("train.py", *options, finished).returncode == 0


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--set", "optimizer.weight_dcay=1"], "did you mean weight_decay"),
        (["--set", "model.name=crossvit_91"], "did you mean crossvit_9"),
        (["--set", "data.source=folder"], "--data_dir"),
        (["--set", "data.source=folder", "--data_dir", "/no/such/folder"], "no folder /no/such/folder"),
        (["--output", "/proc/run"], "no write access to /proc"),
        (["--init-from", "missing.safetensors"], "missing.safetensors: no such file"),
        (["--resume", "missing.safetensors"], "missing.safetensors: no such checkpoint"),
        (["--set", "model.num_classes=7"], "the data has 10 classes"),
        (["--distribute", "True"], "msrun did not start this"),
        (["--distribute", "maybe"], "expected True or False"),
        (["--confg", "x"], "unrecognized arguments"),
        (["--world", "8"], "with --dry-run"),
        (["--resume", "y", "--init-from", "x"], "give one of them"),
    ],
)
def test_wrong_input_is_one_message_and_code_2_before_mindspore_is_imported(arguments, expected, tmp_path):
    if arguments[:2] == ["--output", "/proc/run"] and os.access("/proc", os.W_OK):
        arguments, expected = ["--output", "/dev/null/run"], "/dev/null is a file"
    started = time.monotonic()
    done = call("train.py", "-c", TINY, *arguments, cwd=tmp_path, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time")]
    assert done.returncode == 2, done.stderr
    assert expected in "\n".join(said) and "Traceback" not in done.stderr
    assert "| mindspore" not in done.stderr and time.monotonic() - started < 60


def test_a_checkpoint_of_another_model_is_refused(finished, tmp_path):
    for script, option in (("validate.py", "--ckpt_path"), ("train.py", "--resume")):
        done = call(script, "-c", TINY, option, finished, "--set", "model.embed_dim=[16, 16]", cwd=tmp_path)
        assert done.returncode == 2 and "model.embed_dim is (8, 16) in the checkpoint" in done.stderr
    done = call("train.py", "-c", TINY, "--init-from", finished, "--set", "model.embed_dim=[16, 16]", cwd=tmp_path)
    assert done.returncode == 2 and "fits this model only in part" in done.stderr


def test_a_misspelt_key_under_msrun_ends_at_once_with_the_message(tmp_path):
    done = call_msrun(2, tmp_path / "logs", "train.py", "-c", TINY, "--set", "optimizer.weight_dcay=1")
    assert done.returncode != 0
    assert "did you mean weight_decay" in (tmp_path / "logs" / "worker_0.log").read_text()


def test_the_command_line_is_frozen():
    options = {
        "train.py": {
            "--config",
            "--data_dir",
            "--output",
            "--resume",
            "--init-from",
            "--dry-run",
            "--world",
            "--set",
            "--distribute",
        }
    }
    options["validate.py"] = {"--config", "--data_dir", "--ckpt_path", "--runtime", "--branch", "--set", "--distribute"}
    options["scripts/export.py"] = {"--ckpt_path", "--output", "--batch", "--weights", "--pictures", "--check"}
    options["scripts/supervise.py"] = {"--restarts", "--logs", "--backoff", "--start", "--compile", "--hang", "--"}
    options["scripts/check_env.py"] = {"--config", "--data_dir", "--output", "--set", "--distribute"}
    for script, expected in options.items():
        words = call(script, "--help").stdout.replace(",", " ").replace("]", " ").split()
        assert {w for w in words if w.startswith("--")} - {"--help"} == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, batch, more",
    [
        ("crossvit_9", 4, ""),
        ("crossvit_9", 12, ""),
        ("crossvit_15", 4, ""),
        ("crossvit_15", 12, ""),
        ("crossvit_15", 4, "batch.global_batch=8 ema.decay=0.9"),
        ("crossvit_tiny", 12, "evaluate.batch=12"),
        ("crossformer_t", 8, ""),
        ("cabvit_h_l1", 8, ""),
    ],
)
def test_the_plans_memory_is_near_the_peak_of_the_process(name, batch, more, tmp_path):
    """Of a whole run of train.py, its evaluation included, with the recipe's defaults but for the batch."""
    photos(tmp_path / "photos", {"a": 20, "b": 20}, size=240)
    config = ROOT / "configs" / f"{name}_ascend.yaml"
    settings = [f"batch.global_batch={batch}", f"batch.largest_per_device={batch}", f"mix.group={batch}"]
    settings += ["schedule.epochs=1", "schedule.warmup_epochs=0", "data.val_fraction=0.3", "data.workers=1"]
    settings += more.split()
    command = [sys.executable, str(ROOT / "train.py"), "-c", str(config), "--data_dir", str(tmp_path / "photos")]
    command += ["--output", str(tmp_path / "run"), *(word for s in settings for word in ("--set", s))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    line = next(s for s in (tmp_path / "run" / "plan.txt").read_text().splitlines() if s.startswith("memory"))
    planned, peak = float(line.split()[1]), usage.ru_maxrss * 1024 / 1e9
    print(f"{name}, {batch} pictures {more}: planned {planned:.2f} GB, peak {peak:.2f} GB ({planned / peak:.2f})")
    assert planned == pytest.approx(peak, rel=0.25), line
