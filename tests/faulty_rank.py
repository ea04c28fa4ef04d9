"""Run by msrun, or alone, in tests of the supervisor: a rank that fails when told to.

FAULT: `before` raises before joining, `late` sleeps before it, `after` raises after it, `hang` sleeps while the others
wait for it, `idle` lets all sleep after joining, `user` is a user error, `code N` ends all with code N. The fault is
rank 1's, or the only rank's; `stopped` is the scheduler's, which stops itself. When it happens, FAULT_MARK is made.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindcv_crossvit import runtime
from mindcv_crossvit.errors import UserError, run_main


def fault_is(name: str) -> bool:
    """Whether this fault was asked for and is this process's."""
    mine = runtime.launched_rank() == 1 or not runtime.launched_world()
    if os.environ["FAULT"] != name or (runtime.is_scheduler() if name != "stopped" else not runtime.is_scheduler()):
        return False
    if name not in ("idle", "stopped") and not mine:
        return False
    if "FAULT_MARK" in os.environ:
        Path(os.environ["FAULT_MARK"]).touch()
    return True


def main() -> int:
    """Joins, waits for the others, ends."""
    print("arguments:", *sys.argv[1:], "timeout:", os.environ.get("HCCL_EXEC_TIMEOUT"), flush=True)
    if os.environ["FAULT"].startswith("code"):
        return int(os.environ["FAULT"].split()[1])
    if fault_is("user"):
        raise UserError("a word in the recipe is wrong: " + "图" * 500)
    if fault_is("before"):
        raise FileNotFoundError("no such picture: a.png")
    if fault_is("late"):
        time.sleep(60)
    if fault_is("stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)
    process = runtime.start("CPU")
    if fault_is("after"):
        raise ValueError("the data end here")
    if fault_is("hang") or fault_is("idle"):
        time.sleep(60)
    import numpy as np

    process.gather(np.zeros(1, np.float32))
    return 0


if __name__ == "__main__":
    run_main(main)
