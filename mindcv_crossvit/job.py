"""The command of a supervised job: one process, or ranks started by msrun; read from the command itself."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import UserError
from .presence import SCHEDULER

_DEFAULTS = {"worker_num": 8, "local_worker_num": 8, "master_port": 8118, "node_rank": -1}
_OWNED = {"log_dir": "supervise.py makes a folder per attempt in --logs", "join": "it is always True here"}


@dataclass(frozen=True)
class Job:
    """What is run.

    words: the command as given. msrun: its msrun, None for a single process. ranks: names of the ranks it starts on
    this machine. node: the number of this machine. others: the other machines by number, such as "ranks 4 to 7 (node
    1)". port: the scheduler's, which is on machine 0.
    """

    words: tuple[str, ...]
    msrun: str | None
    ranks: tuple[str, ...]
    node: int = 0
    others: Mapping[int, str] = field(default_factory=dict)
    port: int = 0

    def command(self, place: Path, folder: str | None) -> list[str]:
        """The command of an attempt: logs go to `place`; after a failure it goes on with the run in `folder`."""
        words = list(self.words)
        if self.msrun:
            at = words.index(self.msrun) + 1
            words[at:at] = ["--log_dir", str(place), "--join", "True"]
        if folder:
            words += [] if _has(words, "--output") else ["--output", folder]
            words += [] if _has(words, "--resume") else ["--resume", "auto"]
        return words

    def log_of(self, name: str, place: Path) -> Path | None:
        """The file msrun sends a process's output to; None for a single process, and for msrun itself."""
        if not self.msrun or name not in (*self.ranks, SCHEDULER):
            return None
        return place / ("scheduler.log" if name == SCHEDULER else f"worker_{name.removeprefix('rank ')}.log")

    def check(self) -> None:
        """Raises UserError when the program is not there or the scheduler's port is taken."""
        if shutil.which(self.words[0]) is None:
            raise UserError(f"{self.words[0]}: no such program")
        if self.msrun and not self.node and not _is_free(self.port):
            raise UserError(
                f"the scheduler (rank 0's machine) cannot have port {self.port}: it is in use, by another job perhaps;"
                f" {free_port()} is free (msrun --master_port, launch.sh --port)"
            )


def read_job(words: list[str]) -> Job:
    """A job from its command. Raises UserError when it cannot be supervised."""
    if not words:
        raise UserError("no command given: supervise.py [options] -- msrun --worker_num 8 ... python train.py ...")
    msrun = next((w for w in words if Path(w).name == "msrun"), None)
    if (given := _value(words, "--resume")) not in (None, "auto"):
        raise UserError(f"--resume {given}: a restart must go on from the newest checkpoint; give --resume auto")
    if msrun is None:
        return Job(tuple(words), None, ("rank 0",))
    options = _options(words[words.index(msrun) + 1 :])
    for name, why in _OWNED.items():
        if name in options:
            raise UserError(f"msrun --{name} is not to be given: {why}")
    try:
        numbers = {name: int(options.get(name, default)) for name, default in _DEFAULTS.items()}
    except ValueError as error:
        raise UserError(f"msrun's options {', '.join(_DEFAULTS)} are whole numbers: {error}") from error
    world, local, node = numbers["worker_num"], numbers["local_worker_num"], numbers["node_rank"]
    if world > local and node < 0:
        raise UserError(f"{world} workers, {local} of them here: several machines need msrun --node_rank")
    node = node if world > local else 0
    first = node * local
    if not 0 < local <= world or first + local > world:
        raise UserError(f"{local} workers from rank {first} on this machine, but {world} altogether")
    ranks = tuple(f"rank {r}" for r in range(first, first + local))
    others = {k: _ranks(at, min(at + local, world) - 1, k) for k, at in enumerate(range(0, world, local)) if k != node}
    return Job(tuple(words), msrun, ranks, node, others, numbers["master_port"])


def _ranks(first: int, last: int, node: int) -> str:
    return f"{f'ranks {first} to' if first < last else 'rank'} {last} (node {node})"


def _options(words: list[str]) -> dict[str, str]:
    """msrun's own options: those before its script."""
    found, rest = {}, list(words)
    while rest and rest[0].startswith("--"):
        name, equals, value = rest.pop(0)[2:].partition("=")
        found[name] = value if equals else rest.pop(0) if rest else ""
    return found


def _has(words: list[str], option: str) -> bool:
    return any(w == option or w.startswith(f"{option}=") for w in words)


def _value(words: list[str], option: str) -> str | None:
    for k, word in enumerate(words):
        if word == option:
            return words[k + 1] if k + 1 < len(words) else ""
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
