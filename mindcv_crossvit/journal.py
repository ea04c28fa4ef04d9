"""What a run writes down: its folder, its log lines, its metrics. Only rank 0 writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError, user_path
from .files import replacing, sync
from .recipe import Recipe
from .versions import versions

METRICS = "metrics.jsonl"
CHECKPOINTS, SET_ASIDE = "checkpoints", "set-aside"
"""The run folder's folder of checkpoints, and that one's of those which a run that went back left behind."""


class NotSaved(Exception):
    """Something of the run folder could not be written, and the run was not to go on without; what was there is."""


def choose_folder(recipe: Recipe, resume: str | None = None) -> Path:
    """The run folder: run.output, or runs/NAME; the newest numbered one to resume, a free number for a new run.

    resume: `auto`, or the checkpoint of a run, which goes on in its own folder. Raises UserError when a given folder
    has a run and it is not resumed, or not that one, or cannot be written to.
    """
    output = recipe.run.output and user_path(recipe.run.output, "run.output")
    if output:
        user_path(str(output / METRICS), "run.output")
    if resume not in (None, "auto"):
        folder = run_of(user_path(resume, "--resume"))
        if output and output.resolve() != folder.resolve():
            raise UserError(
                f"run.output: {output}, but --resume goes on with the run in {folder}: leave --output out,"
                " or copy that folder and resume the copy"
            )
    elif output:
        folder = output
        if has_run(folder) and not resume:
            raise UserError(
                f"run.output: {folder} already has a run; go on with --resume auto, or name another --output"
            )
    else:
        taken = []
        while has_run(_numbered(recipe.name, len(taken))):
            taken.append(_numbered(recipe.name, len(taken)))
        folder = taken[-1] if resume and taken else _numbered(recipe.name, len(taken))
    check_writable(folder, "run.output" if resume in (None, "auto") else "--resume")
    return folder


def run_of(path: Path) -> Path:
    """The run folder that a checkpoint's path belongs to, by its place; a folder is one itself."""
    folder = path if path.is_dir() else path.parent
    for name in (SET_ASIDE, CHECKPOINTS):
        if folder.absolute().name == name and not (folder / METRICS).exists():
            folder = folder.parent
    return folder


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run: its metrics, or checkpoints."""
    return (folder / METRICS).exists() or any((folder / CHECKPOINTS).glob("step-*"))


def _numbered(name: str, count: int) -> Path:
    return Path("runs") / (name if count == 0 else f"{name}-{count + 1}")


def check_writable(folder: Path, said: str) -> None:
    """Refuses a folder that cannot be made or written to. Raises UserError that begins with `said`, the option."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{said}: {place} is a file, not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{said}: no write access to {place}")


class Journal:
    """Speaks to the terminal and to the run folder.

    folder: None to write nothing. speaks: False on ranks that only compute.
    """

    def __init__(self, folder: Path | None, speaks: bool = True):
        self.folder, self.speaks = folder, speaks
        self._live = speaks and sys.stdout.isatty()
        self._begun = time.perf_counter()
        self._owed: dict[str, str] = {}
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.output: {folder} cannot be made: {error.strerror}") from error

    @property
    def seconds(self) -> float:
        """Seconds since this journal was opened."""
        return time.perf_counter() - self._begun

    def say(self, line: str) -> None:
        """One line on the terminal and in log.txt."""
        if self.speaks:
            with contextlib.suppress(OSError):  # standard output may be a file on a full disk
                print(f"\r\033[K{line}" if self._live else line, flush=True)
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def show(self, line: str) -> None:
        """A line that is overwritten by the next one; only on a terminal."""
        if self._live:
            with contextlib.suppress(OSError):
                print(f"\r\033[K{line}", end="", flush=True)

    def record(self, **values: Any) -> None:
        """One line of metrics.jsonl."""
        self._append(METRICS, json.dumps(values) + "\n")

    def _append(self, name: str, text: str) -> OSError | None:
        """Adds to a file; what cannot be written is kept and written with the next line that can be."""
        if self.folder is None:
            return None
        path, owed, size = self.folder / name, self._owed.pop(name, "") + text, None
        try:
            size = path.stat().st_size if path.exists() else 0
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(owed)
        except OSError as error:
            self._owed[name] = owed
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(path, size)  # half a line
            if text and owed == text:  # said once
                with contextlib.suppress(OSError):
                    said = f"{path} cannot be written, its lines are kept in memory: {error}"
                    print(said, file=sys.stderr, flush=True)
            return error
        return None

    def settle(self) -> None:
        """Puts what was recorded on the disk, so that no checkpoint has metrics which are lost. Raises OSError."""
        if error := self._append(METRICS, ""):
            raise error
        if self.folder is not None:
            sync(self.folder / METRICS)

    def write(self, name: str, text: str) -> None:
        """A whole file of the run folder. Raises NotSaved."""
        if self.folder is not None:
            with written(self.folder / name) as fresh:
                fresh.write_text(text, encoding="utf-8", errors="backslashreplace")

    def forget_after(self, update: int) -> None:
        """Drops the metrics of updates later than `update`: a resumed run records them again. Raises NotSaved.

        Says which ones before it are missing.
        """
        if self.folder is None:
            return
        path = self.folder / METRICS
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [(line, found) for line in lines if (found := _update_of(line)) <= update]
        if lines:
            with written(path) as fresh:
                fresh.write_text("".join(f"{line}\n" for line, _ in kept), encoding="utf-8")
                sync(fresh)
        if missing := sorted({*range(1, update + 1)} - {found for _, found in kept}):
            self.say(f"note      {METRICS} lacks {len(missing):,} updates, the first of them {missing[0]:,}")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name to write a file of the run folder under, see files.replacing. Raises NotSaved."""
    try:
        with replacing(path) as fresh:
            yield fresh
    except OSError as error:
        raise NotSaved(f"{path} cannot be written: {error.strerror or error}; make room, then --resume auto") from error


def _update_of(line: str) -> float:
    try:
        return float(json.loads(line)["update"])
    except (ValueError, KeyError, TypeError):  # a line cut short by a kill
        return float("inf")


def manifest(device: str, world: int, counts: dict[str, int], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Where a run came from: code, versions, machine, data, command."""
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": git_state(),
        "versions": versions(),
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "device": device, "ranks": world},
        "data": {**counts, "classes": len(class_names), "class_names_sha256": names_hash(class_names)},
    }


def names_hash(class_names: tuple[str, ...]) -> str:
    """SHA-256 of the class names in their order."""
    return hashlib.sha256("\n".join(class_names).encode()).hexdigest()


def git_state() -> dict[str, Any]:
    """Commit of the code and whether it was changed; empty outside a git checkout."""

    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parent
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}
