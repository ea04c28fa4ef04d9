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
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import UserError, user_path
from .recipe import Recipe

METRICS = "metrics.jsonl"


def choose_folder(recipe: Recipe, resume: bool) -> Path:
    """The run folder: run.output, or runs/NAME; the newest numbered one to resume, a free number for a new run.

    Raises UserError when a given folder already has a run and it is not resumed, or cannot be written to.
    """
    if recipe.run.output:
        folder = user_path(recipe.run.output, "run.output")
        user_path(str(folder / METRICS), "run.output")
        if (folder / METRICS).exists() and not resume:
            raise UserError(
                f"run.output: {folder} already has a run; go on with --resume auto, or name another --output"
            )
    else:
        taken = []
        while _numbered(recipe.name, len(taken)).joinpath(METRICS).exists():
            taken.append(_numbered(recipe.name, len(taken)))
        folder = taken[-1] if resume and taken else _numbered(recipe.name, len(taken))
    check_writable(folder, "run.output")
    return folder


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
            print(f"\r\033[K{line}", end="", flush=True)

    def record(self, **values: Any) -> None:
        """One line of metrics.jsonl."""
        self._append(METRICS, json.dumps(values) + "\n")

    def _append(self, name: str, text: str) -> None:
        """Adds to a file; what cannot be written is kept and written with the next line that can be."""
        if self.folder is None:
            return
        path, owed = self.folder / name, self._owed.pop(name, "") + text
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(owed)
        except OSError as error:
            self._owed[name] = owed
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            if owed == text:  # said once
                print(f"{path} cannot be written, its lines are kept in memory: {error}", file=sys.stderr, flush=True)

    def write(self, name: str, text: str) -> None:
        """A whole file of the run folder."""
        if self.folder is not None:
            (self.folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def forget_after(self, update: int) -> None:
        """Drops the metrics of updates later than `update`: a resumed run records them again."""
        if self.folder is None or not (path := self.folder / METRICS).exists():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _update_of(line) <= update]
        fresh = path.with_suffix(".tmp")
        fresh.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(fresh, path)


def _update_of(line: str) -> float:
    try:
        return json.loads(line)["update"]
    except (ValueError, KeyError, TypeError):  # a line cut short by a kill
        return float("inf")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("mindspore", "numpy", "pillow", "safetensors")
    return {"python": platform.python_version(), **{n: _version(n) for n in names}, "mindcv_crossvit": _own_version()}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _own_version() -> str:
    from . import __version__

    return __version__


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


class Chrono:
    """Counts pictures and seconds of training, and those of them spent waiting for data.

    The first update, which compiles, evaluating and saving are left out.
    """

    def __init__(self) -> None:
        self.seconds, self.waited, self.images, self.compile_seconds, self._mark = 0.0, 0.0, 0, 0.0, 0.0

    def start(self) -> None:
        """An update begins."""
        self._mark = time.perf_counter()

    def stop(self, images: int, waited: float = 0.0) -> None:
        """`images` pictures were trained on since start, after `waited` seconds for data."""
        elapsed = time.perf_counter() - self._mark
        if not self.compile_seconds:
            self.compile_seconds = elapsed
            return
        self.seconds += elapsed
        self.waited += waited
        self.images += images

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting for data, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0


def duration(seconds: float) -> str:
    """4210 -> '1 h 10 m'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} m" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"
