"""What a benchmark's worker says: others ask it in turn, so that a drifting machine slows all of them alike.

It prints `ready SECONDS` after its first iteration, answers each line N on standard input with N times in seconds and
its peak resident memory in MB, and ends at `q`.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path


def serve(run: Callable[[], object], ready: float) -> None:
    """Answers until `q`; ready: seconds from the program's start to the end of the first iteration."""
    print(f"ready {ready:.2f}", flush=True)
    for line in sys.stdin:
        if line.strip() == "q":
            return
        print(*(f"{s:.6f}" for s in timed(run, int(line))), peak_mb(), flush=True)


def timed(run: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` iterations."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


def peak_mb() -> int:
    """Peak resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM"))
