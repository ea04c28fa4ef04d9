"""train.py with a rank that raises twice: rank 1 before it joins the others, and, started again, in update 4."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from mindcv_crossvit import runtime
from mindcv_crossvit.errors import run_main


def once(what: str) -> bool:
    """Whether this is rank 1 and it happens for the first time."""
    mark = Path(os.environ["FAULTS"]) / what
    if runtime.is_scheduler() or runtime.launched_rank() != 1 or mark.exists():
        return False
    mark.touch()
    return True


def main() -> int:
    if once("before"):
        raise FileNotFoundError("the disk of the pictures is not there")
    if not runtime.is_scheduler():
        from mindcv_crossvit.training import loop

        update = loop._update

        def failing(t, *rest):
            if t.state.update == 3 and once("after"):
                raise ValueError("a number that cannot be")
            return update(t, *rest)

        loop._update = failing
    return train.main()


if __name__ == "__main__":
    run_main(main)
