"""Pictures without labels, as a user names them: files and folders; read one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import MOST_NAMED, MachineError, UserError, nearest
from .images import BadImage
from .sources import SUFFIXES, FileSource, is_picture
from .transforms import EvalTransform


class Picture(NamedTuple):
    """A picture that was read: its file, the square the model sees, and that normalised, float32 [3, S, S]."""

    path: Path
    square: Image.Image
    pixels: np.ndarray


def find_pictures(named: Sequence[str]) -> list[Path]:
    """The picture files behind files and folders, each once, in the order given; a folder's own ones sorted.

    A file is taken whatever its ending. Raises UserError for everything that is not there and folders without pictures.
    """
    found: dict[Path, None] = {}
    problems = []
    for name in named:
        path = Path(name)
        inside = sorted(p for p in path.rglob("*") if is_picture(p) and p.is_file()) if path.is_dir() else [path]
        if not path.exists():
            problems.append(f"{name}: no such picture or folder{_near(path)}")
        elif not inside:
            problems.append(f"{name}: a folder without pictures ({', '.join(SUFFIXES)})")
        found |= dict.fromkeys(inside)
    if problems:
        raise UserError(problems[:MOST_NAMED])
    return list(found)


def _near(path: Path) -> str:
    beside = [p.name for p in path.parent.iterdir() if p.is_dir() or is_picture(p)] if path.parent.is_dir() else []
    return f"; {nearest(path.name, beside)}" if beside else ""


class PictureReader:
    """Reads pictures in order; those that cannot be read are said and counted in `unreadable`."""

    def __init__(self, paths: Sequence[Path], transform: EvalTransform, say: Callable[[str], None]):
        self.paths, self.transform, self.say = paths, transform, say
        self.unreadable = 0

    def batches(self, size: int) -> Iterator[list[Picture]]:
        """1 to `size` pictures at a time. Raises UserError at the end when not one could be read."""
        batch: list[Picture] = []
        source = FileSource([str(p) for p in self.paths], np.empty(0, np.int64))
        for index, path in enumerate(self.paths):
            try:
                square = self.transform.square(source.read(index))
            except (BadImage, MachineError) as error:
                self.unreadable += 1
                self.say(f"not read: {error}")
                continue
            batch.append(Picture(path, square, self.transform.normalise(square)))
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch
        if self.unreadable == len(self.paths):
            raise UserError(f"not one of the given pictures can be read ({self.unreadable} tried)")
