"""Where each process of a run is, told to whoever watches: one line in a file of its own, overwritten as it goes on.

Nothing is written unless the variable CROSSVIT_PRESENCE names a folder; see supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = "CROSSVIT_PRESENCE"
"""Environment variable that names the folder of the files."""
SCHEDULER = "scheduler"
SERVING = "serving"
"""The phase in which the scheduler spends the run."""
BEFORE_JOINING = ("starting", "loading MindSpore", "joining")
"""The phases of a rank that has not yet met the others."""


@dataclass(frozen=True)
class Presence:
    """What a process says of itself.

    name: `rank 3`, or `scheduler`. phase: what it does since `since` (seconds of time.monotonic). update: the update
    it is in. waits: it is where the ranks meet, and may be waiting for the others. folder: the run folder, once chosen.
    code: its exit code, None while it runs; cause: why it is not 0.
    """

    name: str
    pid: int
    phase: str = "starting"
    since: float = 0.0
    update: int | None = None
    waits: bool = False
    folder: str | None = None
    code: int | None = None
    cause: str = ""


_said: dict[str, object] = {}
_file: int | None = None
_longest = 0


def begin() -> None:
    """Opens this process's file, when somebody watches."""
    global _file
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    name = SCHEDULER if os.environ.get("MS_ROLE") == "MS_SCHED" else f"rank {os.environ.get('RANK_ID', '0')}"
    with contextlib.suppress(OSError):
        _file = os.open(Path(folder) / f"{name}.json", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _said.update(name=name, pid=os.getpid())
    mark("starting")


def mark(phase: str | None = None, **facts: object) -> None:
    """Says what this process begins to do, or, without a phase, more of the fields of Presence; some microseconds."""
    global _longest
    if _file is None:
        return
    if phase:
        _said.update(phase=phase, since=time.monotonic())
    _said.update(facts)
    line = json.dumps(_said).encode()
    _longest = max(_longest, len(line))  # nothing of a longer line before it is left behind this one
    with contextlib.suppress(OSError):  # a watcher is not worth a run
        os.pwrite(_file, line.ljust(_longest) + b"\n", 0)


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """As long as it lasts, this process is where the ranks meet: a rank that is not there keeps the others waiting."""
    mark(waits=True)
    try:
        yield
    finally:
        mark(waits=False)


def end(code: int, cause: str = "") -> None:
    """Says that this process ends; of `cause` the first line, where there is one."""
    lines = cause.strip().splitlines()
    mark("ended", code=code, **({"cause": lines[0][:300]} if lines else {}))


def read(folder: Path) -> dict[str, Presence]:
    """What every process in `folder` said last, by name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # being written: whole when asked again
            said = Presence(**json.loads(path.read_text(encoding="utf-8")))
            found[said.name] = said
    return found
