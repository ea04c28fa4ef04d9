"""Run by msrun, or alone, in tests of the supervisor: a rank that fails when told to.

FAULT: `before` raises before joining, `late` sleeps before it, `after` raises after it, `code N` ends with code N.
The fault is rank 1's, or the only rank's.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindcv_crossvit import runtime
from mindcv_crossvit.errors import UserError, run_main


def main() -> int:
    """Joins, waits for the others, ends."""
    fault, mine = os.environ["FAULT"], runtime.launched_rank() == 1 or not runtime.launched_world()
    print("arguments:", *sys.argv[1:], flush=True)
    if fault == "code 2":
        raise UserError("a word in the recipe is wrong")
    if fault.startswith("code"):
        return int(fault.split()[1])
    if mine and fault == "before" and not runtime.is_scheduler():
        raise FileNotFoundError("no such picture: a.png")
    if mine and fault == "late" and not runtime.is_scheduler():
        time.sleep(60)
    process = runtime.start("CPU")
    if mine and fault == "after":
        raise ValueError("the data end here")
    import numpy as np

    process.gather(np.zeros(1, np.float32))
    return 0


if __name__ == "__main__":
    run_main(main)
