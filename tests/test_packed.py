"""Packs of pictures against the folder they were made from and against MindSpore's own reader, with real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import ROOT, TINY, call, metrics

from mindcv_crossvit.data.images import BadImage
from mindcv_crossvit.data.loader import Loader
from mindcv_crossvit.data.packed import CONTENTS, PackedSource, open_packed
from mindcv_crossvit.data.sources import FileSource, Splits, open_data, read_classes
from mindcv_crossvit.data.transforms import EvalTransform, Normalise, TrainTransform
from mindcv_crossvit.data.views import EvalView, Order, TrainView, eval_jobs, train_jobs
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.recipe import Augment, Data, Mix

SCRIPT = "scripts/to_mindrecord.py"
PIXELS = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


def pictures(folder: Path, counts: dict[str, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name / "deeper").mkdir(parents=True)
        for k in range(count):
            size = rng.integers(20, 60, 2)
            image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
            image.save(folder / name / ("deeper" if k % 3 == 2 else "") / f"it's 图 {k}.{('jpg', 'png')[k % 2]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    pictures(root / "train", {"a cat": 12, "dog": 9, "图": 7}, 0)
    pictures(root / "val", {"a cat": 4, "dog": 3, "图": 5}, 1)
    return root


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory) -> Path:
    """A pack of both parts, of several files each."""
    target = tmp_path_factory.mktemp("some where") / "packed"
    done = call(SCRIPT, folder, target, "--file-size", 0.03)
    assert done.returncode == 0, done.stderr
    assert len(list((target / "train").glob("*.mindrecord"))) > 2
    return target


@pytest.fixture
def pack(made, tmp_path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(made, tmp_path / "pack"))


def opened(root: Path, fraction: float | None = None) -> Splits:
    return open_data(Data(dir=str(root), val_fraction=fraction))


def assert_same(ours: Splits, theirs: Splits) -> None:
    assert ours.class_names == theirs.class_names
    for packed, source in ((ours.train, theirs.train), (ours.val, theirs.val)):
        assert isinstance(packed, PackedSource) and isinstance(source, FileSource)
        assert packed.labels.tolist() == source.labels.tolist() and packed.labels.dtype == source.labels.dtype
        for k, path in enumerate(source.paths):
            assert packed.encoded(k) == Path(path).read_bytes()
            assert path.endswith(f"/{packed.name(k)}")
            assert packed.read(k).tobytes() == source.read(k).tobytes()


def test_a_pack_has_the_pictures_of_its_folder_in_their_order(folder, made):
    assert_same(opened(made), opened(folder))
    assert open_packed(made / "val")[0] == ("a cat", "dog", "图")


def test_mindspore_reads_the_same_pictures(folder, made):
    from mindspore.dataset import MindDataset

    files = sorted(str(p) for p in (made / "train").glob("*.mindrecord"))
    rows = MindDataset(files, shuffle=False).create_dict_iterator(num_epochs=1, output_numpy=True)
    found = [(r["image"].tobytes(), int(r["label"]), str(r["name"])) for r in rows]
    source = opened(folder).train
    assert isinstance(source, FileSource)
    names = [str(Path(p).relative_to(folder / "train")) for p in source.paths]
    expected = [(Path(p).read_bytes(), n, m) for p, n, m in zip(source.paths, source.labels, names, strict=True)]
    assert found == expected


def test_one_folder_is_packed_and_split_as_the_folder_is(folder, tmp_path):
    assert call(SCRIPT, folder / "train", tmp_path / "pack").returncode == 0
    assert_same(opened(tmp_path / "pack", 0.3), opened(folder / "train", 0.3))
    some = Data(dir=str(tmp_path / "pack"), val_fraction=0.3, classes=("图", "a cat"))
    theirs = open_data(Data(dir=str(folder / "train"), val_fraction=0.3, classes=("图", "a cat")))
    assert open_data(some).val.labels.tolist() == theirs.val.labels.tolist()


def batches(data: Splits, workers: int) -> list[dict[str, bytes]]:
    augment = Augment(rand_augment="rand-m9-mstd0.5-inc1", erase=0.25)
    mix = Mix(mixup=0.8, cutmix=1.0, group=4)
    train = TrainView(data.train, TrainTransform(16, augment, PIXELS), 3, 0.1, mix, 4, 8, 3, False)
    val = EvalView(data.val, EvalTransform(16, 0.875, PIXELS), 4, False)
    order, found = Order(3, len(data.train), 8, 3, group=4), []
    with Loader({"train": train, "val": val}, workers) as loader:
        for view, jobs in (("train", train_jobs(order, 8, 0, 1, 0, 5)), ("val", eval_jobs(len(data.val), 4, 0, 1))):
            found += [{k: v.tobytes() for k, v in arrays.items()} for _, arrays, _ in loader.batches(view, jobs)]
    return found


def test_worker_processes_prepare_the_batches_of_the_folder(folder, made):
    assert batches(opened(made), 2) == batches(opened(folder), 0)


@pytest.mark.slow
def test_a_run_and_its_scores_are_those_of_the_folder(folder, made, tmp_path):
    """Losses and validation scores to the last bit."""
    found = []
    for name, data in (("folder", folder), ("pack", made)):
        settings = ["data.source=folder", "data.workers=1", "batch.global_batch=8"]
        words = [word for change in settings for word in ("--set", change)]
        done = call("train.py", "-c", TINY, "--data_dir", data, "--output", tmp_path / name, *words)
        assert done.returncode == 0, done.stderr
        found.append(metrics(tmp_path / name))
    assert found[0] and found[0] == found[1]


def stamps(target: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in target.glob("*.mindrecord*")}


def test_a_second_run_makes_only_what_is_missing_or_damaged(folder, pack):
    before, whole = stamps(pack / "train"), (pack / "train" / CONTENTS).read_bytes()
    (pack / "train" / "00001.mindrecord").unlink()
    (pack / "train" / "00002.mindrecord.db").write_bytes(b"damaged")
    assert call(SCRIPT, folder, pack, "--file-size", 0.03).returncode == 0
    after = stamps(pack / "train")
    assert {name.split(".")[0] for name in after if after[name] != before.get(name)} == {"00001", "00002"}
    assert len((pack / "train" / CONTENTS).read_bytes()) == len(whole)
    assert_same(opened(pack), opened(folder))


def test_a_killed_run_is_refused_and_goes_on(tmp_path):
    pictures(tmp_path / "folder", {"a": 40, "b": 40}, 5)
    command = [sys.executable, str(ROOT / SCRIPT), str(tmp_path / "folder"), str(tmp_path / "pack")]
    command += ["--file-size", "0.005"]
    contents = tmp_path / "pack" / CONTENTS
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if contents.exists() and len(json.loads(contents.read_text())["files"]) >= 3:
                break
            time.sleep(0.001)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finished = [f["file"] for f in json.loads(contents.read_text())["files"]]
    before = {name: (tmp_path / "pack" / name).stat().st_mtime_ns for name in finished}
    with pytest.raises(UserError, match=r"of 80 pictures are packed; run scripts/to_mindrecord.py again to finish"):
        opened(tmp_path / "pack", 0.2)
    assert call(SCRIPT, *command[2:]).returncode == 0
    assert before == {name: (tmp_path / "pack" / name).stat().st_mtime_ns for name in finished}
    assert_same(opened(tmp_path / "pack", 0.2), opened(tmp_path / "folder", 0.2))
    assert not [p for p in (tmp_path / "pack").iterdir() if p.name not in (CONTENTS, *stamps(tmp_path / "pack"))]


def test_a_file_whose_pictures_changed_is_made_anew_and_surplus_files_go(folder, tmp_path):
    root, target = Path(shutil.copytree(folder / "train", tmp_path / "folder")), tmp_path / "pack"
    assert call(SCRIPT, root, target, "--file-size", 0.03).returncode == 0
    before = stamps(target)
    for path in sorted((root / "图").rglob("*.*"))[1:]:
        path.unlink()
    assert call(SCRIPT, root, target, "--file-size", 0.03).returncode == 0
    after = stamps(target)
    assert len(after) < len(before) and after["00000.mindrecord"] == before["00000.mindrecord"]
    whole = [Splits(source, source, names) for names, source in (read_classes(target), read_classes(root))]
    assert_same(*whole)


def test_a_damaged_picture_is_named_when_it_is_read_and_when_it_is_checked(pack):
    assert call(SCRIPT, pack, "--check").returncode == 0
    source = opened(pack).train
    assert isinstance(source, PackedSource)
    at = int(source.start[3] + source.size[3] // 2)
    with Path(source.files[source.file[3]]).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BadImage, match="is damaged: other bytes than were packed") as caught:
        source.read(3)
    assert caught.value.name == source.name(3) and caught.value.name.startswith("a cat/")
    done = call(SCRIPT, pack, "--check")
    assert done.returncode == 2 and done.stderr.strip() == f"error: {caught.value}"


def test_a_picture_that_cannot_be_decoded_is_packed_and_named(tmp_path):
    pictures(tmp_path / "folder", {"a": 2}, 5)
    (tmp_path / "folder" / "a" / "x.jpg").write_bytes(b"no picture")
    assert call(SCRIPT, tmp_path / "folder", tmp_path / "pack").returncode == 0
    with pytest.raises(BadImage) as caught:
        open_packed(tmp_path / "pack")[1].read(2)
    assert str(caught.value) == "a/x.jpg: cannot identify image file"


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda p: (p / "00001.mindrecord").unlink(), "No such file"),
        (lambda p: (p / "00001.mindrecord.db").unlink(), "No such file"),
        (lambda p: os.truncate(p / "00001.mindrecord", 1000), "1,000 bytes, expected"),
        (lambda p: (p / "00000.mindrecord.db").write_bytes(b"SQLite"), "its checksum differs from that in"),
        (lambda p: (p / CONTENTS).write_text("{"), "is not the list of a pack"),
        (lambda p: (p / CONTENTS).write_text('{"pictures": 3, "files": []}'), "0 of 3 pictures are packed"),
    ],
)
def test_a_damaged_pack_is_refused(pack, break_it, said):
    break_it(pack / "train")
    with pytest.raises(UserError, match=said):
        opened(pack)


def test_an_empty_picture_is_refused_when_packing(tmp_path):
    pictures(tmp_path / "folder", {"a": 2}, 5)
    (tmp_path / "folder" / "a" / "empty.jpg").touch()
    done = call(SCRIPT, tmp_path / "folder", tmp_path / "pack")
    assert done.returncode == 2 and "empty.jpg: 0 bytes; MindRecord takes 1 to 268,435,391" in done.stderr


def test_packs_may_be_read_by_others(made):
    mask = os.umask(0)
    os.umask(mask)
    assert {p.stat().st_mode & 0o777 for p in made.rglob("*.mindrecord*")} == {0o666 & ~mask}


def test_nothing_to_pack_or_to_check_is_said(tmp_path):
    for arguments in ((tmp_path / "gone", tmp_path / "pack"), (tmp_path, "--check")):
        done = call(SCRIPT, *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr and str(tmp_path) in done.stderr
