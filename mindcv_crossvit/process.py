"""What a process does about its parent, its children and signals; the rest of it reads /proc (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
LAUNCHER = "CROSSVIT_LAUNCHER"
"""Environment variable with the process id of msrun, where the supervisor started it."""


def die_with_parent(parent: int) -> None:
    """Ends this process with SIGKILL when its parent ends (Linux): msrun and SIGKILL would leave it running.

    parent: the process id the parent must have; when it ended before this call, this process ends in here.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_launcher() -> None:
    """The same for a process that msrun started; nothing for another."""
    if "MS_ROLE" not in os.environ:
        return
    parent = os.getppid()
    die_with_parent(int(os.environ.get(LAUNCHER, parent)))
    if LAUNCHER not in os.environ and "RANK_SIZE" in os.environ and not _is_msrun(parent):
        os.kill(os.getpid(), signal.SIGKILL)  # msrun ended before this call; somebody else adopted this process


def _is_msrun(pid: int) -> bool:
    """By its command; what cannot be read is taken for it."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return True
    return any(Path(word).name == "msrun" or "mindspore.parallel.cluster" in word for word in words)


@dataclass(frozen=True)
class Status:
    """ended: how a process ended, empty while it runs. stopped: it exists and does not run (SIGSTOP)."""

    ended: str
    stopped: bool


def status(pid: int) -> Status:
    """What became of a process."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return Status("is gone without a word: killed, perhaps for want of memory", False)
    if values[0] in "ZX":  # its parent has not asked yet; the last value is what it will be told
        return Status(how_ended(os.waitstatus_to_exitcode(int(values[-1]))), False)
    return Status("", values[0] in "Tt")


def how_ended(code: int) -> str:
    """An exit code in words; negative for a signal."""
    if code >= 0:
        return f"ended with code {code}"
    killed = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{killed}"


def become_reaper() -> None:
    """Makes orphans among this process's descendants its children, so that none can be lost."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> set[int]:
    """The processes below this one, those that have ended and are not asked for left out."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            values = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if values[0] not in "ZX":
                children.setdefault(int(values[1]), []).append(int(path.parent.name))
    found, waiting = set(), [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def end_descendants(first: int, then: list[int], seconds: float = 2.0) -> None:
    """No process below this one lives on: `first` and `then` are killed, the others have `seconds` to clean up."""
    for pid in (first, *then):
        if pid in descendants():
            _kill(pid)
    deadline = time.monotonic() + seconds
    while left := descendants():
        if time.monotonic() > deadline:
            for pid in left:
                _kill(pid)
        _reap()
        time.sleep(0.05)
    _reap()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_signals_held() -> Iterator[None]:
    """Both signals wait meanwhile, also in processes that are started: these must not end before they ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """For a process whose parent decides: a terminal sends them to all processes at once."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class StopRequest:
    """Remembers a SIGTERM or SIGINT, so that the loop can finish its update and save; a second one ends the process."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> StopRequest:
        """Takes over both signals; only in the main thread."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
            _only_once(number)
        return self

    def _on_signal(self, number: int, _frame: object) -> None:
        self.asked = True
        for again in STOP_SIGNALS:
            signal.signal(again, signal.SIG_DFL)
        said = f"{signal.Signals(number).name}: finishing this update, then saving; once more to stop at once\n"
        with contextlib.suppress(OSError):
            os.write(2, said.encode())  # print may be what was interrupted, which would be an error


def _only_once(number: int) -> None:
    """Makes the kernel forget a signal's handler when it comes: the same signal again ends the process at once.

    Python calls its handlers between two steps of its own, and compiling a graph can be one step of many minutes.
    """
    libc = ctypes.CDLL(None)
    now = (ctypes.c_void_p * 64)()  # larger than any struct sigaction, which begins with the handler
    if not hasattr(libc, "sysv_signal") or libc.sigaction(number, None, now):
        return
    libc.sysv_signal.argtypes, libc.sysv_signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.sysv_signal(number, now[0])


class StopCount:
    """Counts SIGTERM and SIGINT; only in the main thread."""

    def __init__(self) -> None:
        self.asked = 0
        self._event = threading.Event()
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.asked += 1
        self._event.set()

    def wait(self, seconds: float) -> None:
        """Until the time is over or a signal has come."""
        self._event.wait(seconds)
