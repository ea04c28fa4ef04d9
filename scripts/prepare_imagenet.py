"""Turn the official ImageNet-1k archives into train/ and val/ with a folder per class.

    python scripts/prepare_imagenet.py /path/to/archives /path/to/imagenet

The first folder holds the three archives as published: ILSVRC2012_img_train.tar (a tar per class),
ILSVRC2012_img_val.tar (50,000 pictures) and ILSVRC2012_devkit_t12.tar.gz (the classes, and the validation labels).
A class folder is named by its WordNet id. What is there already, at its full size, is not written again, so a stopped
run goes on when started again. At the end every class is counted against the development kit. Nothing is written but
pictures with names as expected: a member of any other name or kind ends the run.
"""

import argparse
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit.errors import MOST_NAMED, UserError, run_main

TRAIN, VAL, KIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
META, LABELS = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
PICTURE = re.compile(r"\w+\.JPEG", re.ASCII)
HALF_WRITTEN = ".part"


class Kit(NamedTuple):
    """What the development kit says: training pictures per class, and the class of each validation picture."""

    train: dict[str, int]
    val: list[str]


def main(argv: list[str] | None = None) -> int:
    """Extracts, counts and says so."""
    parser = argparse.ArgumentParser(description="Turn the official ImageNet archives into class folders.")
    parser.add_argument("archives", metavar="ARCHIVES", type=Path, help="folder of the three archives")
    parser.add_argument("target", metavar="FOLDER", type=Path, help="gets train/ and val/")
    arguments = parser.parse_args(argv)
    missing = [name for name in (TRAIN, VAL, KIT) if not (arguments.archives / name).is_file()]
    if missing:
        raise UserError(f"{arguments.archives}: expected the official archives, missing are {', '.join(missing)}")
    kit = read_kit(arguments.archives / KIT)
    try:
        extract_val(arguments.archives / VAL, arguments.target / "val", kit)
        extract_train(arguments.archives / TRAIN, arguments.target / "train", kit)
    except OSError as error:
        raise UserError(f"{arguments.target}: could not be written: {error}; run again to go on") from error
    problems = count(arguments.target / "train", kit.train) + count(arguments.target / "val", Counter(kit.val))
    if problems:
        raise UserError(problems[:MOST_NAMED])
    print(f"train     {sum(kit.train.values()):,} pictures in {len(kit.train):,} classes, as the development kit says")
    print(f"val       {len(kit.val):,} pictures in {len(set(kit.val)):,} classes")
    return 0


@contextmanager
def opened(path: Path, file: Any = None) -> Iterator[tarfile.TarFile]:
    """A tar archive, itself or inside another. Raises UserError when it is damaged or cut short."""
    try:
        with tarfile.open(path, fileobj=file) as archive:
            yield archive
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{path}: damaged or cut short: {error}") from error


def read_kit(path: Path) -> Kit:
    """Classes and labels out of the development kit; nothing of it is written to disk."""
    from scipy.io import loadmat

    found: dict[str, bytes] = {}
    with opened(path) as archive:
        for member in archive:
            name = next((n for n in (META, LABELS) if member.isreg() and member.name.endswith(f"/{n}")), None)
            if name:
                found[name] = contents(archive, member)
    if missing := {META, LABELS} - set(found):
        raise UserError(f"{path}: expected {', '.join(sorted(missing))} in it")
    try:
        synsets = loadmat(BytesIO(found[META]), squeeze_me=True)["synsets"]
        leaves = [s for s in synsets if s["num_children"] == 0]
        ids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in leaves}
        train = {str(s["WNID"]): int(s["num_train_images"]) for s in leaves}
        val = [ids[int(line)] for line in found[LABELS].split()]
    except Exception as error:  # loadmat raises what it likes
        raise UserError(f"{path}: {META} and {LABELS} do not say the classes: {error!r}") from error
    if odd := [name for name in train if not re.fullmatch(r"n\d+", name)]:
        raise UserError(f"{path}: {META} names classes that are no WordNet ids: {', '.join(odd[:MOST_NAMED])}")
    return Kit(train, val)


def contents(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a regular member. Raises tarfile.ReadError when there are fewer than promised."""
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} ends after {len(data)} of {member.size} bytes")
    return data


def pictures(path: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a flat archive of pictures. Raises UserError for any other member."""
    for member in archive:
        if not member.isreg() or not PICTURE.fullmatch(member.name):
            raise UserError(f"{path}: {member.name!r} is not a picture as expected (NAME.JPEG, a plain file); stopped")
        yield member


def place(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Writes a picture under a fresh name and renames; not when it is there at its full size."""
    target = folder / member.name
    if target.is_file() and target.stat().st_size == member.size:
        return
    fresh = target.with_name(f".{member.name}{HALF_WRITTEN}")
    fresh.write_bytes(contents(archive, member))
    os.replace(fresh, target)


def extract_val(path: Path, folder: Path, kit: Kit) -> None:
    """The flat validation archive: picture k belongs to the class on line k of the labels."""
    names = {f"ILSVRC2012_val_{k:08d}.JPEG": label for k, label in enumerate(kit.val, 1)}
    for name in sorted(set(kit.val)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with opened(path) as archive:
        for member in pictures(path, archive):
            if member.name not in names:
                raise UserError(f"{path}: {member.name!r} has no label: there are {len(names):,}; stopped")
            place(archive, member, folder / names[member.name])


def extract_train(path: Path, folder: Path, kit: Kit) -> None:
    """The training archive: an archive per class."""
    with opened(path) as outer:
        for done, member in enumerate(outer, 1):
            name = member.name.removesuffix(".tar")
            if not member.isreg() or name not in kit.train or member.name == name:
                raise UserError(f"{path}: {member.name!r} is not CLASS.tar of a class of the kit; stopped")
            (folder / name).mkdir(parents=True, exist_ok=True)
            with opened(path / member.name, outer.extractfile(member)) as inner:
                for picture in pictures(path / member.name, inner):
                    place(inner, picture, folder / name)
            print(f"train     {done} of {len(kit.train)}  {name}", flush=True)


def count(folder: Path, expected: dict[str, int]) -> list[str]:
    """What differs between the class folders and the expected counts; half-written files are cleared away."""
    problems = []
    there = {p.name for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else set()
    for name in sorted(there - set(expected)):
        problems.append(f"{folder / name}: not a class of the development kit")
    for name, number in expected.items():
        files = list((folder / name).iterdir()) if name in there else []
        for half in (f for f in files if f.name.endswith(HALF_WRITTEN)):
            half.unlink()
        found = sum(PICTURE.fullmatch(f.name) is not None for f in files)
        if found != number:
            problems.append(f"{folder / name}: {found:,} pictures, the development kit says {number:,}")
    return problems


if __name__ == "__main__":
    run_main(main)
