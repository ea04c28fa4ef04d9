"""Pictures packed into MindRecord files by scripts/to_mindrecord.py, read by index and without MindSpore.

A MindRecord file is a header (its length in 8 bytes, then JSON) and pages of equal size behind `header_size` bytes. A
picture lies in a page as 8 bytes of length and its bytes. An SQLite file beside it says where, and has the columns that
were declared an index: here label, name and crc32. The class names are in the header, in the schema's description.
`mindrecord.json` lists the files of a pack, in order, with the checksums of their indices.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from ..errors import UserError
from .images import BadImage, decode
from .storage import LARGEST, patiently

CONTENTS = "mindrecord.json"
INDEX = ".db"
_OPEN_FILES = 256
_COLUMNS = "label_0, crc32_0, page_id_blob, page_offset_blob, page_offset_blob_end"


class PackedFile(NamedTuple):
    """An entry of mindrecord.json; SHA-256 of the index, and of names, sizes and times of the packed files."""

    file: str
    pictures: int
    bytes: int
    index_sha256: str
    source_sha256: str


@dataclass(frozen=True)
class PackedSource:
    """Encoded pictures in MindRecord files, [N] each but `files`.

    file: which of `files`. row: number within it. start: first byte. size: bytes. crc32: of those bytes.
    """

    files: Sequence[str]
    labels: np.ndarray
    file: np.ndarray
    row: np.ndarray
    start: np.ndarray
    size: np.ndarray
    crc32: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """See Source."""
        data = self.encoded(index)
        try:
            return decode(data, "")
        except BadImage as error:
            raise BadImage(self.name(index), error.reason) from error

    def encoded(self, index: int) -> bytes:
        """The bytes of the picture's file. Raises BadImage when they are not those that were packed; MachineError."""
        path, size = self.files[int(self.file[index])], int(self.size[index])
        if not 0 < size <= LARGEST:
            raise BadImage(self.name(index), f"{path} is damaged: a picture of {size:,} bytes")
        data = patiently(lambda: _pread(path, size, int(self.start[index])), path)
        if zlib.crc32(data) != self.crc32[index]:
            raise BadImage(self.name(index), f"{path} is damaged: other bytes than were packed")
        return data

    def name(self, index: int) -> str:
        """CLASS/FILE, as it was packed; asked for when something is wrong."""
        path, row = self.files[int(self.file[index])], int(self.row[index])
        try:
            return _query(path, f"select name_0 from indexes where row_id = {row}")[0][0]
        except (sqlite3.Error, IndexError):  # there is something to say without it
            return f"{path}, row {row}"

    def part(self, indices: np.ndarray) -> PackedSource:
        """Some of the pictures."""
        columns = ("labels", "file", "row", "start", "size", "crc32")
        return replace(self, **{name: getattr(self, name)[indices] for name in columns})


@lru_cache(_OPEN_FILES)
def _opened(path: str) -> FileIO:
    """Kept open for the next picture; each process has its own, and a file closes when it is dropped."""
    return FileIO(path)


def _pread(path: str, size: int, start: int) -> bytes:
    try:
        return os.pread(_opened(path).fileno(), size, start)
    except OSError:
        _opened.cache_clear()  # a handle of a server that was away stays stale
        raise


def _query(path: str, question: str) -> list[Any]:
    """Asks the index of a file; it may lie on a medium that cannot be written to. Raises sqlite3.Error."""
    connection = sqlite3.connect(f"file:{quote(path + INDEX)}?mode=ro&immutable=1", uri=True)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()


def is_packed(folder: Path) -> bool:
    """Whether a folder holds a pack."""
    return (folder / CONTENTS).is_file()


def open_packed(folder: Path) -> tuple[tuple[str, ...], PackedSource]:
    """(class names, pictures in their order). Raises UserError for a pack that is unfinished or has other files."""
    total, entries = read_contents(folder)
    packed = sum(entry.pictures for entry in entries)
    if packed != total or not entries:
        raise UserError(
            f"{folder}: {packed:,} of {total:,} pictures are packed; run scripts/to_mindrecord.py again to finish"
        )
    problems = [problem for entry in entries if (problem := damage(folder, entry))]
    if problems:
        raise UserError(f"{problem}; copy the pack again or make it anew" for problem in problems[:10])
    parts = [open_file(folder / entry.file) for entry in entries]
    names = parts[0][0]
    if odd := [entry.file for entry, (other, _) in zip(entries, parts, strict=True) if other != names]:
        raise UserError(f"{folder}: {', '.join(odd)} is of a pack with other classes")
    return names, _joined([source for _, source in parts])


def read_contents(folder: Path) -> tuple[int, list[PackedFile]]:
    """(pictures a pack is to have, its finished files). Raises UserError when the list cannot be read."""
    try:
        listed = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        files = [PackedFile(**entry) for entry in listed["files"]]
        if odd := [f.file for f in files if Path(f.file).name != f.file]:
            raise ValueError(f"names {odd[0]!r}, which is not in its folder")
        return int(listed["pictures"]), files
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONTENTS}: is not the list of a pack: {error!r}") from error


def damage(folder: Path, entry: PackedFile) -> str:
    """What is wrong with a file of a pack; empty when it has its size and its index."""
    path = folder / entry.file
    try:
        size, digest = path.stat().st_size, index_sha256(path)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    if size != entry.bytes:
        return f"{path}: {size:,} bytes, expected {entry.bytes:,}"
    return "" if digest == entry.index_sha256 else f"{path}{INDEX}: its checksum differs from that in {CONTENTS}"


def index_sha256(path: Path) -> str:
    """SHA-256 of the SQLite file beside a MindRecord file."""
    return hashlib.sha256(Path(f"{path}{INDEX}").read_bytes()).hexdigest()


def open_file(path: Path) -> tuple[tuple[str, ...], PackedSource]:
    """(class names, pictures) of one MindRecord file. Raises UserError for one of another kind."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        names = tuple(json.loads(header["schema"][0]["desc"])["class_names"])
        rows = _query(str(path), f"select {_COLUMNS} from indexes order by row_id")
        labels, crc32, page, start, end = np.array(rows, np.int64).reshape(-1, 5).T
        start = header["header_size"] + page * header["page_size"] + start + 8
        size = end + header["header_size"] + page * header["page_size"] - start
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error, sqlite3.Error) as error:
        raise UserError(f"{path}: is not a MindRecord file of scripts/to_mindrecord.py: {error!r}") from error
    zeros = np.zeros(len(labels), np.int32)
    row = np.arange(len(labels), dtype=np.int32)
    return names, PackedSource((str(path),), labels.copy(), zeros, row, start, size, crc32.copy())


def _joined(parts: list[PackedSource]) -> PackedSource:
    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    file = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    others = {name: column(name) for name in ("labels", "row", "start", "size", "crc32")}
    return PackedSource([part.files[0] for part in parts], file=file, **others)
