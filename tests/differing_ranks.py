"""Run by msrun in a test: rank 1 changes one parameter, which the comparison must name on every rank."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindcv_crossvit import runtime

if __name__ == "__main__":
    process = runtime.start("CPU")
    import numpy as np
    from mindspore import Parameter, Tensor

    parameters = [Parameter(Tensor(np.full((3, 2), k, np.float32)), name=f"p{k}") for k in range(3)]
    parameters[2].set_data(Tensor(np.full((3, 2), process.rank, np.float32)))
    process.broadcast(parameters)
    process.check_same(parameters, "after the broadcast")
    if process.rank == 1:
        parameters[1].set_data(Tensor(np.full((3, 2), 1 + 1e-6, np.float32)))
    try:
        process.check_same(parameters, "now")
    except RuntimeError as error:
        print(f"said: {error}", flush=True)
