"""What check_env.py has two ranks do: join, and add up a vector.

msrun --worker_num 2 --local_worker_num 2 --join True python scripts/all_reduce.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit import runtime
from mindcv_crossvit.errors import run_main


def main() -> int:
    """Raises RuntimeError when the sum over the ranks is not what it must be."""
    process = runtime.start("auto")
    if not process.sums():
        raise RuntimeError("the all-reduce gave another sum")
    return 0


if __name__ == "__main__":
    run_main(main)
