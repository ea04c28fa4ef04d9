"""Archives in the official shape, small: a tar of tars, a flat tar, a kit with a MATLAB file written by scipy."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import call

SCRIPT = "scripts/prepare_imagenet.py"
TRAIN, VAL, KIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
COUNTS = {"n01440764": 3, "n01443537": 2, "n15075141": 4}
VAL_IDS = [3, 1, 2, 3, 1]
INNER = 0
"""ILSVRC2012_ID 4 is an inner node of the hierarchy, as in the official file: no class."""


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(members: dict[str, bytes], mode: str = "w", extra: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if extra:
            archive.addfile(extra)
    return buffer.getvalue()


def kit(counts: dict[str, int] = COUNTS) -> bytes:
    from scipy.io import savemat

    fields = [
        ("ILSVRC2012_ID", "f8"),
        ("WNID", "O"),
        ("words", "O"),
        ("num_children", "f8"),
        ("num_train_images", "f8"),
    ]
    rows = [(k, name, f"word, {name}", 0, number) for k, (name, number) in enumerate(counts.items(), 1)]
    synsets = np.array([*rows, (len(rows) + 1, "n00001740", "entity", 2, INNER)], fields)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets[:, None]})
    return tar(
        {
            "ILSVRC2012_devkit_t12/readme.txt": b"words",
            "ILSVRC2012_devkit_t12/data/meta.mat": buffer.getvalue(),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
                f"{k}\n" for k in VAL_IDS
            ).encode(),
        },
        "w:gz",
    )


def train_members() -> dict[str, dict[str, bytes]]:
    return {
        name: {f"{name}_{k * 7}.JPEG": jpeg(100 * c + k) for k in range(number)}
        for c, (name, number) in enumerate(COUNTS.items())
    }


def val_members() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{k:08d}.JPEG": jpeg(1000 + k) for k in range(1, len(VAL_IDS) + 1)}


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    (folder / TRAIN).write_bytes(tar({f"{name}.tar": tar(inner) for name, inner in train_members().items()}))
    (folder / VAL).write_bytes(tar(val_members()))
    (folder / KIT).write_bytes(kit())
    return folder


def expected() -> dict[str, bytes]:
    names = list(COUNTS)
    files = {f"train/{c}/{name}": data for c, inner in train_members().items() for name, data in inner.items()}
    for label, (name, data) in zip(VAL_IDS, val_members().items(), strict=True):
        files[f"val/{names[label - 1]}/{name}"] = data
    return files


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_class_folders_with_every_picture(archives, tmp_path):
    done = call(SCRIPT, archives, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "out") == expected()
    assert "train     9 pictures in 3 classes" in done.stdout and "val       5 pictures in 3 classes" in done.stdout

    from mindcv_crossvit.data.sources import open_data
    from mindcv_crossvit.recipe import Data

    data = open_data(Data(dir=str(tmp_path / "out")))
    assert data.class_names == tuple(sorted(COUNTS)) and data.val.labels.tolist() == [0, 0, 1, 2, 2]


def test_a_second_run_writes_only_what_is_missing_or_cut(archives, tmp_path):
    out = tmp_path / "out"
    assert call(SCRIPT, archives, out).returncode == 0
    files = sorted(p for p in out.rglob("*") if p.is_file())
    gone, cut, kept = files[0], files[1], files[2:]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:50])
    (kept[0].parent / f".{kept[0].name}.part").write_bytes(b"half")
    before = [p.stat().st_mtime_ns for p in kept]
    assert call(SCRIPT, archives, out).returncode == 0
    assert tree(out) == expected()
    assert [p.stat().st_mtime_ns for p in kept] == before


def hostile(kind: str) -> bytes:
    if kind == "link":
        info = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        info.type, info.linkname = tarfile.SYMTYPE, "../../outside.JPEG"
        return tar({}, extra=info)
    return tar({kind: jpeg(0)})


@pytest.mark.parametrize("kind", ["../outside.JPEG", "/tmp/outside.JPEG", "a/../../outside.JPEG", "link", "run.sh"])
@pytest.mark.parametrize("where", ["val", "train"])
def test_no_member_leaves_its_folder(archives, tmp_path, kind, where):
    evil = hostile(kind)
    (archives / (VAL if where == "val" else TRAIN)).write_bytes(
        evil if where == "val" else tar({"n01440764.tar": evil})
    )
    done = call(SCRIPT, archives, tmp_path / "out")
    assert done.returncode == 2 and "is not a picture as expected" in done.stderr
    assert not list(tmp_path.rglob("*outside*")) and not Path("/tmp/outside.JPEG").exists()


def test_a_class_the_kit_does_not_know_is_refused(archives, tmp_path):
    (archives / TRAIN).write_bytes(tar({"../n01440764.tar": tar({})}))
    done = call(SCRIPT, archives, tmp_path / "out")
    assert done.returncode == 2 and "'../n01440764.tar' is not CLASS.tar of a class of the kit" in done.stderr


def test_a_cut_archive_is_said_and_goes_on_when_whole(archives, tmp_path):
    whole = (archives / TRAIN).read_bytes()
    (archives / TRAIN).write_bytes(whole[: len(whole) // 2])
    done = call(SCRIPT, archives, tmp_path / "out")
    assert done.returncode == 2 and "damaged or cut short" in done.stderr
    (archives / TRAIN).write_bytes(whole)
    assert call(SCRIPT, archives, tmp_path / "out").returncode == 0
    assert tree(tmp_path / "out") == expected()


def test_counts_that_differ_from_the_kit_are_named(archives, tmp_path):
    (archives / KIT).write_bytes(kit({**COUNTS, "n01443537": 5}))
    (tmp_path / "out" / "train" / "mine").mkdir(parents=True)
    done = call(SCRIPT, archives, tmp_path / "out")
    assert done.returncode == 2
    out = tmp_path / "out" / "train"
    assert done.stderr.splitlines() == [
        f"error: {out / 'mine'}: not a class of the development kit",
        f"error: {out / 'n01443537'}: 2 pictures, the development kit says 5",
    ]


def test_missing_archives_are_named(archives, tmp_path):
    (archives / VAL).unlink()
    (archives / KIT).unlink()
    done = call(SCRIPT, archives, tmp_path / "out")
    assert done.returncode == 2 and f"missing are {VAL}, {KIT}" in done.stderr and "Traceback" not in done.stderr


def test_a_kit_without_labels_is_refused(archives, tmp_path):
    (archives / KIT).write_bytes(tar({"kit/data/meta.mat": b"not a mat file"}, "w:gz"))
    assert "ground_truth.txt in it" in call(SCRIPT, archives, tmp_path / "out").stderr
    (archives / KIT).write_bytes(
        tar({"k/data/meta.mat": b"no", "k/data/ILSVRC2012_validation_ground_truth.txt": b"1\n"}, "w:gz")
    )
    done = call(SCRIPT, archives, tmp_path / "out")
    assert done.returncode == 2 and "do not say the classes" in done.stderr and "Traceback" not in done.stderr
