"""What the supervisors of a job on several machines tell each other: a file each, in a folder that all of them see.

A machine whose file does not change is not heard of: an old one, of a job before this, counts as none. Where the folder
is not shared nobody is heard of, and only MindSpore's own timeouts tell a machine that another one has failed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import printable
from .files import replacing


@dataclass(frozen=True)
class News:
    """Of a machine: the number of its attempt, from 1; how that ended, None while it runs, and why; whether the machine
    starts the job again."""

    attempt: int
    code: int | None = None
    cause: str = ""
    again: bool = True


class Peers:
    """The files `node-N.json` in `folder`; this machine is `node`."""

    def __init__(self, folder: Path, node: int, others: Iterable[int]):
        self._mine = folder / f"node-{node}.json"
        self._others = {k: folder / f"node-{k}.json" for k in others}
        self._old = {k: _text(path) for k, path in self._others.items()}

    def tell(self, news: News) -> None:
        """Says how this machine fares; without others nothing is written."""
        if not self._others:
            return
        with contextlib.suppress(OSError), replacing(self._mine) as fresh:  # not worth a run
            fresh.write_text(json.dumps({**asdict(news), "at": time.time()}), encoding="utf-8")  # never what was there

    def hear(self) -> dict[int, News]:
        """What the other machines said last, since this began."""
        found = {}
        for node, path in self._others.items():
            text = _text(path)
            if text != self._old[node]:
                with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                    said = {"code": None, **json.loads(text)}
                    code = None if said["code"] is None else int(said["code"])
                    found[node] = News(int(said["attempt"]), code, printable(said["cause"]), bool(said["again"]))
        return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
