"""Run a training job, say which rank failed and why, and start it again from its last whole checkpoint.

    python scripts/supervise.py --restarts 3 -- python train.py --config configs/digits.yaml
    python scripts/supervise.py --restarts 3 --logs logs -- msrun --worker_num 8 python train.py \
        --config configs/crossvit_15_ascend.yaml --data_dir /path/to/imagenet

scripts/launch.sh calls it with msrun's flags. Its exit code is the job's: 0 done, 2 user error, 3 diverged, 4 stopped
on request, 7 a checkpoint could not be written; none of these is started again. 1: failed too often, or the other
machines did not come. What begins with errors.run_main, as all scripts of this suite, says where it is; another command
says nothing and must end within --start seconds.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit import cli
from mindcv_crossvit.errors import run_main
from mindcv_crossvit.job import read_job
from mindcv_crossvit.supervisor import supervise
from mindcv_crossvit.verdict import Limits


def main() -> int:
    """Supervises the command after `--`."""
    a = cli.supervise_arguments()
    limits = Limits(restarts=a.restarts, backoff=a.backoff, start=a.start, compile=a.compile, hang=a.hang)
    return supervise(read_job(a.command), limits, Path(a.logs))


if __name__ == "__main__":
    run_main(main)
