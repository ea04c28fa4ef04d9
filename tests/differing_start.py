"""train.py with a rank 1 that finds the newest checkpoint damaged and has a validation picture less."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import train
from mindcv_crossvit import runtime
from mindcv_crossvit.data.sources import Subset
from mindcv_crossvit.errors import UserError, run_main
from mindcv_crossvit.training import checkpoint_folder

if __name__ == "__main__":
    if runtime.launched_rank() == 1 and not runtime.is_scheduler():
        read, open_data = checkpoint_folder.read_checkpoint, train.open_data

        def torn(path: Path):
            if path.stem in ("step-000000010", "last"):
                raise UserError(f"{path}: damaged")
            return read(path)

        def fewer(data):
            found = open_data(data)
            some = np.arange(len(found.val) - 1)
            return found._replace(val=Subset(found.val, some, found.val.labels[some]))

        checkpoint_folder.read_checkpoint, train.open_data = torn, fewer
    run_main(train.main)
