"""Data sets as lists of pictures with labels: class folders, CIFAR's published binaries, scikit-learn's digits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from ..errors import UserError, nearest, user_path
from ..recipe import Data
from .draws import Purpose, stream
from .images import decode
from .packed import PackedSource, is_packed, open_packed
from .storage import read_picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
DIGITS_TEST = 360
"""Test pictures of the digits, in the stratified split with seed 0."""


class Source(Protocol):
    """Pictures with labels; small enough to be sent to worker processes."""

    @property
    def labels(self) -> np.ndarray:
        """[N] int64, 0 to classes - 1."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """The RGB picture. Raises BadImage with its name, MachineError when its storage fails."""
        ...


class Splits(NamedTuple):
    """What a data set has for training and validation."""

    train: Source
    val: Source
    class_names: tuple[str, ...]
    note: str = ""
    """How the two parts were found, where the data does not say it."""


@dataclass(frozen=True)
class FileSource:
    """Encoded picture files on disk."""

    paths: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """See Source."""
        return decode(read_picture(self.paths[index]), self.paths[index])

    def part(self, indices: np.ndarray) -> FileSource:
        """Some of the pictures."""
        return FileSource([self.paths[int(i)] for i in indices], self.labels[indices])


@dataclass(frozen=True)
class EncodedSource:
    """Encoded pictures in memory."""

    files: Sequence[bytes]
    labels: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Image.Image:
        """See Source."""
        return decode(self.files[index], f"{self.name} picture {index}")


@dataclass(frozen=True)
class Subset:
    """Some pictures of another source, with labels of their own."""

    source: Source
    indices: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        """See Source."""
        return self.source.read(int(self.indices[index]))


@dataclass(frozen=True)
class PixelSource:
    """Raw pixels in memory, [N, H, W, 3] uint8."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Image.Image:
        """See Source."""
        return Image.fromarray(self.pixels[index])


def open_data(data: Data) -> Splits:
    """Opens the data set of a recipe; only names and labels are read. Raises UserError with what is missing."""
    splits = _open(data)
    splits = splits if data.classes is None else _only(splits, data.classes)
    for part, source in (("training", splits.train), ("validation", splits.val)):
        if not len(source):
            raise UserError(f"data.{'classes' if data.classes else 'dir'}: leaves no {part} pictures")
    return splits


def _open(data: Data) -> Splits:
    if data.source == "digits":
        return _digits()
    if data.dir is None:
        raise UserError(f"data.dir is missing: name the folder of the {data.source} data set with --data_dir")
    root = user_path(data.dir, "data.dir")
    if not root.is_dir():
        raise UserError(f"data.dir: no folder {root}{_near_folder(root)}")
    return _folder(root, data) if data.source == "folder" else _cifar(root, data.source)


def _only(splits: Splits, names: tuple[str, ...]) -> Splits:
    """The pictures of some classes, labelled by their place in `names`."""
    problems = [
        f"data.classes: no class {n!r}; {nearest(n, splits.class_names)}" for n in names if n not in splits.class_names
    ]
    if not names or len(set(names)) < len(names):
        problems.append(f"data.classes: expected different class names, got {list(names)}")
    if problems:
        raise UserError(problems)
    place = np.full(len(splits.class_names), -1)
    place[[splits.class_names.index(n) for n in names]] = np.arange(len(names))

    def part(source: Source) -> Subset:
        indices = np.flatnonzero(place[source.labels] >= 0)
        return Subset(source, indices, place[source.labels[indices]])

    note = f"{len(names)} of {len(splits.class_names)} classes"
    return Splits(part(splits.train), part(splits.val), names, "; ".join(filter(None, (splits.note, note))))


def _near_folder(root: Path) -> str:
    siblings = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
    return f"; {nearest(root.name, siblings)} (in {root.parent})" if siblings else ""


def _folder(root: Path, data: Data) -> Splits:
    train, val = root / "train", root / "val"
    if train.is_dir() and val.is_dir():
        names, pictures = read_classes(train)
        val_names, val_pictures = read_classes(val)
        if names != val_names:
            odd = sorted(set(names) ^ set(val_names))
            raise UserError(
                f"{root}: train/ and val/ have different classes; only in one of them: {', '.join(odd[:10])}"
            )
        return Splits(pictures, val_pictures, names)
    if data.val_fraction is None or val.is_dir():
        raise UserError(
            f"{root}: expected the folders train/ and val/ with a folder per class;"
            " to split one folder of classes, set data.val_fraction (for example 0.2)"
        )
    names, pictures = read_classes(train if train.is_dir() else root)
    held_out = split_by_class(pictures.labels, data.val_fraction, data.split_seed)
    note = f"{data.val_fraction:.0%} of each class held out for validation, seed {data.split_seed}"
    return Splits(pictures.part(np.flatnonzero(~held_out)), pictures.part(np.flatnonzero(held_out)), names, note)


def read_classes(root: Path) -> tuple[tuple[str, ...], FileSource | PackedSource]:
    """(class names, pictures) of a folder of class folders, or of what scripts/to_mindrecord.py made of one."""
    if is_packed(root):
        return open_packed(root)
    names, paths, labels = list_classes(root)
    return names, FileSource(paths, labels)


def list_classes(root: Path) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """(class names, picture paths, labels) of a folder of class folders, in the order of their names."""
    names = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not names:
        raise UserError(f"{root}: expected a folder per class, found none")
    paths: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, name in enumerate(names):
        found = sorted(str(p) for p in (root / name).rglob("*") if is_picture(p))
        paths += found
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    if empty:
        raise UserError(
            f"{root / name}: a class folder without pictures ({', '.join(SUFFIXES)})" for name in empty[:10]
        )
    return names, paths, np.array(labels, np.int64)


def is_picture(path: Path) -> bool:
    """By its ending; hidden files, such as macOS's `._name.jpg`, are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def split_by_class(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """[N] bool, True for the held-out pictures: of each class the given share, at least one, never all.

    Raises UserError for a class with a single picture.
    """
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UserError(f"data.val_fraction: class number {label} has one picture; a split needs two")
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held_out[stream(seed, Purpose.SPLIT, index=int(label)).permutation(members)[:count]] = True
    return held_out


def _cifar(root: Path, source: str) -> Splits:
    """The published binary version: records of labels and 3072 bytes, red, green, blue planes of 32 x 32."""
    if source == "cifar10":
        folder, names_file = _inside(root, "cifar-10-batches-bin"), "batches.meta.txt"
        train, test, label_bytes = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"], 1
    else:
        folder, names_file = _inside(root, "cifar-100-binary"), "fine_label_names.txt"
        train, test, label_bytes = ["train.bin"], ["test.bin"], 2
    missing = [name for name in (*train, *test, names_file) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: expected the binary version of {source}, missing are {', '.join(missing)}")
    names = tuple((folder / names_file).read_text().split())
    records = [_cifar_records([folder / f for f in part], label_bytes, names) for part in (train, test)]
    return Splits(records[0], records[1], names)


def _inside(root: Path, name: str) -> Path:
    return root / name if (root / name).is_dir() else root


def _cifar_records(files: list[Path], label_bytes: int, names: tuple[str, ...]) -> PixelSource:
    record = label_bytes + 3072
    parts = []
    for file in files:
        raw = np.fromfile(file, np.uint8)
        if not len(raw) or len(raw) % record:
            raise UserError(f"{file}: {len(raw)} bytes are not a whole number of records of {record} bytes")
        parts.append(raw.reshape(-1, record))
    rows = np.concatenate(parts)
    labels = rows[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= len(names):
        raise UserError(f"{files[0].parent}: label {labels.max()} but only {len(names)} class names")
    return PixelSource(np.ascontiguousarray(rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels)


def _digits() -> Splits:
    """scikit-learn's 1,797 handwritten digits as PNG files in memory, 8 x 8 pixels of 17 grey levels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    labels = np.asarray(digits.target, np.int64)
    files = [_png(np.rint(picture * 255 / 16).astype(np.uint8)) for picture in digits.images]
    train, test = train_test_split(np.arange(len(files)), test_size=DIGITS_TEST, random_state=0, stratify=labels)
    parts = [EncodedSource([files[i] for i in part], labels[part], "digits") for part in (train, test)]
    return Splits(parts[0], parts[1], tuple(str(d) for d in range(10)))


def _png(grey: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()
