"""What a process does about its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ends this process with SIGKILL when its parent ends (Linux): msrun and SIGKILL would leave it running."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), signal.SIGKILL)


class StopRequest:
    """Remembers a SIGTERM or SIGINT, so that the loop can finish its update and save; a second one ends the process."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> StopRequest:
        """Takes over both signals; only in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _frame: object) -> None:
        self.asked = True
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_DFL)
        name = signal.Signals(number).name
        print(f"{name}: finishing this update, then saving; once more to stop at once", file=sys.stderr, flush=True)
