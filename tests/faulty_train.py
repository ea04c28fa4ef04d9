"""train.py with a rank 1 that has every fault of FAULTS once, in this order, each in a start of its own.

It raises before it joins; keeps other parameters than rank 0 sends; raises in update 4; takes long to compile and later
sleeps in its step, in update 5; loses its data worker in update 6; changes a parameter after update 7.
"""

import multiprocessing
import os
import signal
import sys
import time
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


def spoil() -> None:
    """Puts the faults of a rank that has joined into the collectives, the loop and the step."""
    from mindcv_crossvit.training import loop, step

    broadcast, update, apply = runtime.Runtime.broadcast, loop._update, step.TrainStep.apply

    def deaf(process, parameters):
        parameters = list(parameters)
        first, spoiled = parameters[0], once("deaf")
        own = first + 1e-6
        broadcast(process, parameters)
        if spoiled:
            first.set_data(own)

    def failing(t, *rest):
        number = t.state.update + 1
        if number == 4 and once("raises"):
            raise ValueError("a number that cannot be")
        if number == 6 and once("worker"):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        found = update(t, *rest)
        if number == 7 and once("drift"):
            first = t.state.parameters()[0]
            first.set_data(first + 1e-6)
        return found

    def sleeping(self, *rest):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 1 and (Path(os.environ["FAULTS"]) / "raises").exists() and once("compiles"):
            time.sleep(15)
        elif (Path(os.environ["FAULTS"]) / "compiles").exists() and self.calls == 3 and once("sleeps"):
            time.sleep(60)
        return apply(self, *rest)

    runtime.Runtime.broadcast, loop._update, step.TrainStep.apply = deaf, failing, sleeping


def main() -> int:
    if once("before"):
        raise FileNotFoundError("the disk of the pictures is not there")
    if not runtime.is_scheduler():
        spoil()
    return train.main()


if __name__ == "__main__":
    run_main(main)
