"""The checkpoints of one run in its folder: which are kept, which is the newest, what becomes of those left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import replacing, sync
from ..journal import CHECKPOINTS, SET_ASIDE
from .checkpoint import SUFFIX, Checkpoint, read_checkpoint, write_checkpoint

Say = Callable[[str], None]


class CheckpointFolder:
    """`step-N`, the newest `keep` of them, and the names `last` and `best`.

    All of them belong to one course of the run: when it goes on from an earlier one, the later ones are set aside.
    """

    def __init__(self, root: Path, keep: int = 2):
        self.root, self.keep, self.place = root, keep, root / CHECKPOINTS
        self.last, self.best = (root / f"{name}{SUFFIX}" for name in ("last", "best"))

    def steps(self) -> list[Path]:
        """The kept checkpoints, oldest first."""
        return sorted(self.place.glob(f"step-*{SUFFIX}"))

    def save(self, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, points `last` (and `best`) to it and removes the oldest beyond `keep`. Raises OSError.

        meta: it is the best so far when its `best_update` is its `update`.
        """
        path = self._step(meta["update"])
        self._prepare()
        write_checkpoint(path, tensors, meta)
        for name in (self.last, self.best) if meta["best_update"] == meta["update"] else (self.last,):
            _point(name, path)
        for old in self.steps()[: -self.keep]:
            if old != path:
                old.unlink()
        return path

    def newest_whole(self, say: Say = print) -> Checkpoint | None:
        """The newest checkpoint that is whole, None without any; damaged ones are named and passed over.

        Raises UserError, naming all of them, when none is whole.
        """
        damaged = []
        for path in self._newest_first():
            try:
                found = read_checkpoint(path)
            except UserError as error:
                damaged.append(str(error))
                continue
            for problem in damaged:
                say(f"passed over: {problem}")
            return found
        if damaged:
            raise UserError(
                [*damaged, f"{self.root}: has checkpoints, but none is whole; to begin anew, name another --output"]
            )
        return None

    def begin(self, resumed: Checkpoint, say: Say) -> None:
        """Makes the folder that of a run which goes on from one of its checkpoints. Raises OSError.

        Later checkpoints are set aside, which is said; `last` and `best` are again what they were after that update,
        whether the run went back or was killed before it had named them.
        """
        mine = self._step(resumed.meta["update"])
        here = replace(resumed, path=mine)
        aside = [path for path in self.steps() if path > mine]
        self._prepare()
        if not _is(mine, resumed):
            if mine.exists():
                self._set_aside(mine)
            _point(mine, resumed.path)
        for path in aside:
            self._set_aside(path)
        if aside:
            names = ", ".join(path.stem for path in aside)
            say(f"set aside {names}: later than update {resumed.meta['update']:,}, now in {self.place / SET_ASIDE}")
        if not _is(self.last, here):
            self._keep_file(self.last)
            _point(self.last, mine)
        self._name_best(here, say)

    def _name_best(self, here: Checkpoint, say: Say) -> None:
        update, score = here.meta["best_update"], here.meta["best_top1"]
        step = self._step(update)
        places = [self.best, step, *self._aside().glob(f"{step.stem}*{SUFFIX}")]
        found = next((path for path in places if _is_best(path, update, score)), None)
        if found == self.best:
            return
        self._keep_file(self.best)
        if found:
            _point(self.best, found)
            return
        self.best.unlink(missing_ok=True)
        if update:
            say(f"note      the best so far, {score:.2f} % after update {update:,}, is gone; the next better is kept")

    def _newest_first(self) -> list[Path]:
        """Every file once: `last` and `best` count where they are more than names of a step."""
        steps, found = self.steps()[::-1], []
        for path in [*steps[:1], self.last, *steps[1:], self.best]:
            if path.exists() and not any(path.samefile(other) for other in found):
                found.append(path)
        return found

    def _prepare(self) -> None:
        self.place.mkdir(exist_ok=True)
        for folder in (self.root, self.place):
            for cut in folder.glob(".*.tmp"):  # left by a process killed while it wrote
                cut.unlink()

    def _keep_file(self, name: Path) -> None:
        """Sets a file aside that is to lose its only name."""
        if name.exists() and name.stat().st_nlink == 1:
            self._set_aside(name)

    def _set_aside(self, path: Path) -> None:
        self._aside().mkdir(parents=True, exist_ok=True)
        target, number = self._aside() / path.name, 1
        while target.exists():
            number += 1
            target = target.with_name(f"{path.stem}-{number}{SUFFIX}")
        os.replace(path, target)
        sync(path.parent)

    def _aside(self) -> Path:
        return self.place / SET_ASIDE

    def _step(self, update: int) -> Path:
        return self.place / f"step-{update:09d}{SUFFIX}"


def _is(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether a file is this checkpoint, under another name or as a copy."""
    with contextlib.suppress(OSError, UserError):
        return path.samefile(checkpoint.path) or read_checkpoint(path).checksum == checkpoint.checksum
    return False


def _is_best(path: Path, update: int, score: float) -> bool:
    with contextlib.suppress(UserError):
        meta = read_checkpoint(path).meta
        return (meta["update"], meta.get("best_update"), meta.get("best_top1")) == (update, update, score)
    return False


def _point(name: Path, target: Path) -> None:
    """Makes `name` a hard link to `target` (a copy where links are not possible), replacing what it was at once."""
    with replacing(name) as fresh:
        fresh.unlink(missing_ok=True)  # a copy must not be written through an old link
        try:
            os.link(target, fresh)
        except OSError:
            shutil.copyfile(target, fresh)
            sync(fresh)
