"""train.py whose rank 1 has pictures that are not numbers in update 7, and only there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from mindcv_crossvit import runtime
from mindcv_crossvit.errors import run_main


def main() -> int:
    if runtime.launched_rank() == 1 and not runtime.is_scheduler():
        from mindcv_crossvit.training import loop

        apply = loop._apply

        def spoilt(t, inputs, lr):
            images = inputs.images * float("nan") if t.state.update == 6 else inputs.images
            return apply(t, inputs._replace(images=images), lr)

        loop._apply = spoilt
    return train.main()


if __name__ == "__main__":
    run_main(main)
