"""Data sets: class folders and CIFAR binaries written here in the published layout, digits against scikit-learn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindcv_crossvit.data.sources import Source, Splits, open_data
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.recipe import Data


def write_picture(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (colour, colour, colour)).save(path)


def write_classes(root: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        for k in range(count):
            write_picture(root / name / f"{k:03d}.png", k)


def folder(root: Path, fraction: float | None = None, seed: int = 0) -> Splits:
    return open_data(Data(dir=str(root), val_fraction=fraction, split_seed=seed))


def paths(source: Source) -> list[str]:
    return list(source.paths)  # type: ignore[attr-defined]


def problem(data: Data) -> str:
    with pytest.raises(UserError) as caught:
        open_data(data)
    return str(caught.value)


def test_a_folder_with_train_and_val(tmp_path):
    write_classes(tmp_path / "train", {"dog": 2, "cat": 3})
    write_classes(tmp_path / "val", {"cat": 1, "dog": 1})
    data = folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.val)) == (5, 2)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1] and data.train.labels.dtype == np.int64
    assert [Path(p).parent.name for p in paths(data.train)] == ["cat"] * 3 + ["dog"] * 2
    assert [data.train.read(k).getpixel((0, 0)) for k in range(5)] == [(k, k, k) for k in (0, 1, 2, 0, 1)]


def test_any_suffix_case_and_depth_counts_and_other_files_do_not(tmp_path):
    names = ["a.JPG", "b.jpeg", "c.Png", "deep/er/d.webp", "e.bmp", "f.gif", "g.tif", "图 片.png"]
    for part in ("train", "val"):
        for name in names:
            write_picture(tmp_path / part / "x" / name)
        (tmp_path / part / "x" / "notes.txt").write_text("no picture")
        (tmp_path / part / "readme.md").write_text("no class")
        (tmp_path / part / ".cache").mkdir()
    data = folder(tmp_path)
    assert data.class_names == ("x",)
    assert {str(Path(p).relative_to(tmp_path / "train" / "x")) for p in paths(data.train)} == set(names)


def test_a_class_folder_may_be_a_link(tmp_path):
    write_classes(tmp_path / "elsewhere", {"cat": 2})
    for part in ("train", "val"):
        (tmp_path / "data" / part).mkdir(parents=True)
        (tmp_path / "data" / part / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    assert len(folder(tmp_path / "data").train) == 2


def test_one_folder_is_split_by_class(tmp_path):
    write_classes(tmp_path, {"a": 50, "b": 20, "c": 2})
    data = folder(tmp_path, 0.2)
    assert Counter(data.val.labels.tolist()) == {0: 10, 1: 4, 2: 1}
    assert Counter(data.train.labels.tolist()) == {0: 40, 1: 16, 2: 1}
    every = paths(data.train) + paths(data.val)
    assert len(every) == len(set(every)) == 72
    for part in (data.train, data.val):
        assert [data.class_names[label] for label in part.labels] == [Path(p).parent.name for p in paths(part)]


def test_the_split_is_that_of_its_seed(tmp_path):
    write_classes(tmp_path, {"a": 50, "b": 20})
    first, again, other = (folder(tmp_path, 0.2, seed) for seed in (0, 0, 1))
    assert (paths(first.train), paths(first.val)) == (paths(again.train), paths(again.val))
    assert set(paths(first.val)) != set(paths(other.val))


def test_a_split_class_does_not_depend_on_the_other_classes(tmp_path):
    write_classes(tmp_path / "one", {"a": 30, "b": 30})
    write_classes(tmp_path / "two", {"a": 30, "b": 5})
    one, two = ([p for p in paths(folder(tmp_path / d, 0.3).val) if "/a/" in p] for d in ("one", "two"))
    assert [Path(p).name for p in one] == [Path(p).name for p in two]


def test_train_without_val_is_split(tmp_path):
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    data = folder(tmp_path, 0.2)
    assert (data.class_names, len(data.train), len(data.val)) == (("a", "b"), 16, 4)


@pytest.mark.parametrize("fraction, held_out", [(0.01, 1), (0.99, 3), (0.5, 2)])
def test_a_split_leaves_pictures_on_both_sides(tmp_path, fraction, held_out):
    write_classes(tmp_path, {"a": 4, "b": 4})
    assert Counter(folder(tmp_path, fraction).val.labels.tolist()) == {0: held_out, 1: held_out}


def test_a_class_of_one_picture_cannot_be_split(tmp_path):
    write_classes(tmp_path, {"a": 4, "b": 1})
    assert "has one picture" in problem(Data(dir=str(tmp_path), val_fraction=0.2))


def test_every_class_folder_without_pictures_is_named(tmp_path):
    write_classes(tmp_path, {"a": 4})
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("no picture")
    lines = problem(Data(dir=str(tmp_path), val_fraction=0.2)).split("\n")
    assert [line.split(":")[0] for line in lines] == [str(tmp_path / "b"), str(tmp_path / "c")]
    assert all("a class folder without pictures (.jpg, .jpeg, .png" in line for line in lines)


def test_a_missing_folder_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "imagenet").mkdir()
    said = problem(Data(dir=str(tmp_path / "imagnet")))
    assert said == f"data.dir: no folder {tmp_path / 'imagnet'}; did you mean imagenet? (in {tmp_path})"
    assert problem(Data(dir=str(tmp_path / "no" / "where"))) == f"data.dir: no folder {tmp_path / 'no' / 'where'}"


@pytest.mark.parametrize("source", ["folder", "cifar10", "cifar100"])
def test_a_missing_setting_is_named(source):
    assert problem(Data(source=source)).startswith("data.dir is missing: name the folder of the")


def test_different_classes_in_train_and_val_are_named(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1})
    write_classes(tmp_path / "val", {"a": 1, "c": 1})
    assert problem(Data(dir=str(tmp_path))).endswith("have different classes; only in one of them: b, c")


@pytest.mark.parametrize("present", [[], ["train"], ["val"]])
def test_without_val_a_fraction_is_asked_for(tmp_path, present):
    for name in present:
        write_classes(tmp_path / name, {"a": 2})
    assert "set data.val_fraction (for example 0.2)" in problem(Data(dir=str(tmp_path)))


def test_a_folder_without_classes_is_refused(tmp_path):
    write_picture(tmp_path / "picture.png")
    assert problem(Data(dir=str(tmp_path), val_fraction=0.2)) == f"{tmp_path}: expected a folder per class, found none"


def cifar_picture(k: int) -> np.ndarray:
    """[32, 32, 3]: red counts rows, green counts columns, blue is the record's number."""
    rows, columns = np.mgrid[:32, :32]
    return np.stack([rows * 8, columns * 8, np.full((32, 32), k)], -1).astype(np.uint8)


def cifar_record(k: int, *labels: int) -> bytes:
    """Labels, then 1024 bytes of red, of green, of blue, each row by row."""
    picture = cifar_picture(k)
    return bytes(labels) + b"".join(picture[:, :, channel].tobytes() for channel in range(3))


def write_cifar10(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "batches.meta.txt").write_text("\n".join(f"class{k}" for k in range(10)) + "\n\n")
    for part in range(5):
        records = [cifar_record(10 * part + k, (part + k) % 10) for k in range(4)]
        (root / f"data_batch_{part + 1}.bin").write_bytes(b"".join(records))
    (root / "test_batch.bin").write_bytes(cifar_record(100, 9) + cifar_record(101, 3))


def write_cifar100(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "fine_label_names.txt").write_text("\n".join(f"fine_{k}" for k in range(100)) + "\n")
    (root / "coarse_label_names.txt").write_text("\n".join(f"coarse_{k}" for k in range(20)) + "\n")
    (root / "train.bin").write_bytes(b"".join(cifar_record(k, k % 20, 99 - k) for k in range(5)))
    (root / "test.bin").write_bytes(cifar_record(7, 19, 42))


@pytest.mark.parametrize("inside", ["cifar-10-batches-bin", "."])
def test_cifar_10(tmp_path, inside):
    write_cifar10(tmp_path / inside)
    data = open_data(Data(source="cifar10", dir=str(tmp_path)))
    assert data.class_names == tuple(f"class{k}" for k in range(10))
    assert (len(data.train), len(data.val)) == (20, 2)
    assert data.train.labels.tolist() == [(part + k) % 10 for part in range(5) for k in range(4)]
    assert data.val.labels.tolist() == [9, 3]
    for index in range(20):
        np.testing.assert_array_equal(np.asarray(data.train.read(index)), cifar_picture(10 * (index // 4) + index % 4))
    np.testing.assert_array_equal(np.asarray(data.val.read(1)), cifar_picture(101))
    assert data.train.read(0).mode == "RGB"


@pytest.mark.parametrize("inside", ["cifar-100-binary", "."])
def test_cifar_100_has_the_fine_labels(tmp_path, inside):
    write_cifar100(tmp_path / inside)
    data = open_data(Data(source="cifar100", dir=str(tmp_path)))
    assert data.class_names == tuple(f"fine_{k}" for k in range(100))
    assert data.train.labels.tolist() == [99, 98, 97, 96, 95] and data.val.labels.tolist() == [42]
    np.testing.assert_array_equal(np.asarray(data.train.read(3)), cifar_picture(3))


@pytest.mark.parametrize("size", [0, 3072, 3074, 4 * 3073 - 1])
def test_a_truncated_cifar_file_is_refused(tmp_path, size):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(bytes(size))
    said = problem(Data(source="cifar10", dir=str(tmp_path)))
    assert said == f"{tmp_path / 'data_batch_2.bin'}: {size} bytes are not a whole number of records of 3073 bytes"


def test_missing_cifar_files_are_named(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    (tmp_path / "batches.meta.txt").unlink()
    said = problem(Data(source="cifar10", dir=str(tmp_path)))
    assert said.endswith("missing are data_batch_3.bin, batches.meta.txt")


def test_a_cifar_label_beyond_the_names_is_refused(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(cifar_record(0, 10))
    assert "label 10 but only 10 class names" in problem(Data(source="cifar10", dir=str(tmp_path)))


def test_the_digits_are_scikit_learns_split_as_it_splits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x_train, x_val, y_train, y_val = train_test_split(
        digits.images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    data = open_data(Data(source="digits"))
    assert (len(data.train), len(data.val)) == (1437, 360)
    assert data.class_names == tuple("0123456789")
    for source, images, labels in ((data.train, x_train, y_train), (data.val, x_val, y_val)):
        np.testing.assert_array_equal(source.labels, labels)
        for k in range(len(source)):
            pixels = np.asarray(source.read(k))
            assert pixels.shape == (8, 8, 3) and (pixels == pixels[:, :, :1]).all()
            np.testing.assert_array_equal(np.rint(pixels[:, :, 0] * (16 / 255)), images[k])


def test_chosen_classes_are_labelled_by_their_place():
    whole = open_data(Data(source="digits"))
    some = open_data(Data(source="digits", classes=("7", "2")))
    assert some.class_names == ("7", "2") and "2 of 10 classes" in some.note
    for part, all_of_it in ((some.train, whole.train), (some.val, whole.val)):
        kept = np.flatnonzero(np.isin(all_of_it.labels, (2, 7)))
        assert part.labels.tolist() == [{7: 0, 2: 1}[k] for k in all_of_it.labels[kept]]
        assert part.read(3).tobytes() == all_of_it.read(int(kept[3])).tobytes()


@pytest.mark.parametrize(
    "names, expected",
    [(("1", "ten"), "no class 'ten'; known are 0, 1, 2"), (("1", "1"), "different"), ((), "different")],
)
def test_classes_that_are_not_there_are_refused(names, expected):
    assert expected in problem(Data(source="digits", classes=names))


def test_the_note_says_how_a_folder_was_split(tmp_path):
    write_classes(tmp_path, {"a": 10, "b": 10})
    assert folder(tmp_path, 0.2, 3).note == "20% of each class held out for validation, seed 3"
