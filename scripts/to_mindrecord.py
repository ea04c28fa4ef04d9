"""Pack a folder of class folders into MindRecord files, which every recipe then reads in its place.

    python scripts/to_mindrecord.py /path/to/imagenet /path/to/packed
    python train.py --config configs/crossvit_15_ascend.yaml --data_dir /path/to/packed

train/ and val/ become train/ and val/; a folder of classes without them becomes one pack. The pictures keep their bytes
and their order, so that training and evaluation see what they saw in the folder. Beside label, name and picture
(`image`) there is a CRC-32 of each picture; the class names are in every file. mindspore.dataset.MindDataset reads
the files, too. A stopped run goes on when started again; files whose pictures changed are made anew. `--check` packs
nothing and reads every picture of a pack. Ends with code 2 when something is missing or damaged.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit.data.images import BadImage
from mindcv_crossvit.data.packed import (
    CONTENTS,
    INDEX,
    PackedFile,
    damage,
    index_sha256,
    is_packed,
    open_file,
    open_packed,
    read_contents,
)
from mindcv_crossvit.data.sources import list_classes
from mindcv_crossvit.errors import MOST_NAMED, UserError, run_main
from mindcv_crossvit.files import replacing

SCHEMA = {
    "label": {"type": "int64"},
    "name": {"type": "string"},
    "crc32": {"type": "int64"},
    "image": {"type": "bytes"},
}
PAGE, LARGEST_PAGE = 1 << 25, 1 << 28
AT_ONCE = 64
"""Pictures handed to MindSpore at a time."""
UNFINISHED = ".unfinished"


class Picture(NamedTuple):
    """A picture to pack; name: CLASS/FILE."""

    path: Path
    name: str
    label: int
    size: int
    changed: int


def main(argv: list[str] | None = None) -> int:
    """Packs, or checks a pack."""
    parser = argparse.ArgumentParser(description="Pack a folder of class folders into MindRecord files.")
    parser.add_argument("source", metavar="FOLDER", type=Path, help="class folders, or train/ and val/ with such")
    parser.add_argument("target", metavar="PACKED", type=Path, nargs="?", help="gets the MindRecord files")
    parser.add_argument("--file-size", type=float, default=1024, metavar="MB", help="megabytes a file, about")
    parser.add_argument("--check", action="store_true", help="read every picture of the pack FOLDER, pack nothing")
    arguments = parser.parse_args(argv)
    if arguments.check == bool(arguments.target):
        parser.error("give FOLDER and PACKED, or --check and a pack")
    if not arguments.source.is_dir():
        raise UserError(f"{arguments.source}: no such folder")
    parts = [name for name in ("train", "val") if (arguments.source / name).is_dir()] or [""]
    for part in parts:
        if arguments.check:
            check(arguments.source / part)
        else:
            pack(arguments.source / part, arguments.target / part, arguments.file_size * 1e6)
    return 0


def check(folder: Path) -> None:
    """Reads every picture of a pack. Raises UserError with those that are damaged."""
    if not is_packed(folder):
        raise UserError(f"{folder}: has no {CONTENTS}: not a pack")
    names, source = open_packed(folder)
    problems = []
    for index in range(len(source)):
        try:
            source.encoded(index)
        except BadImage as error:
            problems.append(str(error))
    if problems:
        raise UserError(problems[:MOST_NAMED])
    print(f"{folder}: {len(source):,} pictures in {len(names):,} classes, in {len(source.files)} files, all as packed")


def pack(source: Path, target: Path, file_bytes: float) -> None:
    """Packs the class folders of `source`. Raises UserError for what cannot be read or written."""
    names, pictures = find(source)
    target.mkdir(parents=True, exist_ok=True)
    there = read_contents(target)[1] if is_packed(target) else []
    groups = {f"{k:05d}.mindrecord": group for k, group in enumerate(grouped(pictures, file_bytes))}
    made_of = {file: fingerprint(names, group) for file, group in groups.items()}
    done = {e.file: e for e in there if e.source_sha256 == made_of.get(e.file) and not damage(target, e)}
    try:
        for file, group in groups.items():
            if file not in done:
                list_contents(target, len(pictures), done)
                write(target, file, names, group)
                path = target / file
                done[file] = PackedFile(file, len(group), path.stat().st_size, index_sha256(path), made_of[file])
        list_contents(target, len(pictures), done)
        for surplus in {entry.file for entry in there} - set(groups):
            for ending in ("", INDEX):
                (target / f"{surplus}{ending}").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{target}: {error}; run again to go on") from error
    print(f"{target}: {len(pictures):,} pictures in {len(names):,} classes, in {len(groups)} files")


def find(source: Path) -> tuple[tuple[str, ...], list[Picture]]:
    """(class names, pictures in the order in which the folder is read). Raises UserError for sizes it cannot take."""
    names, paths, labels = list_classes(source)
    pictures, problems = [], []
    for path, label in zip(map(Path, paths), labels, strict=True):
        try:
            stat = path.stat()
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
            continue
        if not 0 < stat.st_size < LARGEST_PAGE - 64:
            problems.append(f"{path}: {stat.st_size:,} bytes; MindRecord takes 1 to {LARGEST_PAGE - 65:,}; remove it")
        name = os.fsencode(path.relative_to(source)).decode("utf-8", "replace")
        pictures.append(Picture(path, name, int(label), stat.st_size, stat.st_mtime_ns))
    if problems:
        raise UserError(problems[:MOST_NAMED])
    return names, pictures


def grouped(pictures: list[Picture], file_bytes: float) -> list[list[Picture]]:
    """The pictures of each file, in order: at least one, else no more bytes than asked for."""
    groups: list[list[Picture]] = []
    room = 0.0
    for picture in pictures:
        if not groups or picture.size > room:
            groups.append([])
            room = file_bytes
        groups[-1].append(picture)
        room -= picture.size
    return groups


def fingerprint(names: tuple[str, ...], group: list[Picture]) -> str:
    """What a file is made from, as a hash of names, sizes and times of change."""
    rows = [(p.name, p.label, p.size, p.changed) for p in group]
    return hashlib.sha256(json.dumps([names, rows]).encode()).hexdigest()


def list_contents(target: Path, total: int, done: dict[str, PackedFile]) -> None:
    """Writes mindrecord.json, whole or not at all: how many pictures there are to be, and the finished files."""
    files = [done[file]._asdict() for file in sorted(done)]
    with replacing(target / CONTENTS) as fresh:
        fresh.write_text(json.dumps({"pictures": total, "files": files}, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {sum(e.pictures for e in done.values()):,} of {total:,} pictures are packed", flush=True)


def write(target: Path, file: str, names: tuple[str, ...], group: list[Picture]) -> None:
    """One MindRecord file, read back before it is put in place. Raises UserError when MindSpore cannot write it."""
    from mindspore.mindrecord import FileWriter

    folder = target / UNFINISHED  # the index knows the file's name: it is written under its own
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    checksums: list[int] = []
    try:
        writer = FileWriter(str(folder / file), shard_num=1)
        writer.set_page_size(max(PAGE, 1 << (max(p.size for p in group) + 64).bit_length()))
        writer.add_schema(SCHEMA, json.dumps({"class_names": names}))
        writer.add_index(["label", "name", "crc32"])
        pictures = iter(group)
        while rows := [row(p) for p in islice(pictures, AT_ONCE)]:
            checksums += [r["crc32"] for r in rows]
            writer.write_raw_data(rows)
        writer.commit()
    except RuntimeError as error:
        raise UserError(f"{folder / file}: MindSpore could not write it: {error}") from error
    verify(folder / file, names, group, checksums)
    mask = os.umask(0)
    os.umask(mask)
    for ending in (INDEX, ""):
        os.chmod(folder / f"{file}{ending}", 0o666 & ~mask)  # MindSpore lets only the owner read
        os.replace(folder / f"{file}{ending}", target / f"{file}{ending}")
    folder.rmdir()


def row(picture: Picture) -> dict:
    """A picture as MindSpore takes it. Raises OSError."""
    data = picture.path.read_bytes()
    if len(data) != picture.size:
        raise OSError(f"{picture.path} changed while it was packed")
    return {"label": picture.label, "name": picture.name, "crc32": zlib.crc32(data), "image": data}


def verify(path: Path, names: tuple[str, ...], group: list[Picture], checksums: Iterable[int]) -> None:
    """Reads a file as training will. Raises UserError when it does not give the pictures in their order."""
    found, source = open_file(path)
    expected = [(p.name, p.label, c) for p, c in zip(group, checksums, strict=True)]
    stored = [(source.name(i), int(source.labels[i]), zlib.crc32(source.encoded(i))) for i in range(len(source))]
    if found != names or stored != expected:
        raise UserError(f"{path}: MindSpore wrote other rows than it was given")


if __name__ == "__main__":
    run_main(main)
