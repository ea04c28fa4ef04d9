"""What a rank prepares with a real loader. Run by msrun, or alone, in test_shares.py; used in rank_cases.py, too.

Arguments: updates from and to, then the numbers of workers to do it with, one after the other. Of each it prints a line
`with WORKERS`, and then of each row `row EPOCH ROW PICTURE COPY CHECKSUM`, of pixels and targets.
"""

import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindcv_crossvit import runtime

SETTINGS = ["batch.global_batch=64", "batch.largest_per_device=16", "mix.group=32", "augment.repeats=3"]


def prepare(process: runtime.Runtime, start: int, stop: int, workers: int) -> list[str]:
    """A line for each row of this rank."""
    from mindcv_crossvit import build
    from mindcv_crossvit.data.sources import open_data
    from mindcv_crossvit.data.views import Order, train_jobs
    from mindcv_crossvit.plan import make_plan
    from mindcv_crossvit.recipe_file import load_recipe

    recipe = load_recipe(Path(__file__).with_name("tiny.yaml"), [*SETTINGS, f"data.workers={workers}"])
    data = open_data(recipe.data)
    p = make_plan(recipe, data, process.world)
    order = Order(recipe.run.seed, p.train_images, p.global_batch, p.steps_per_epoch, recipe.augment.repeats, p.group)
    lines = []
    with build.build_loader(recipe, {"train": build.train_view(recipe, data, p)}) as loader:
        jobs = train_jobs(order, p.per_device, process.rank, process.world, start, stop)
        for job, arrays, _ in loader.batches("train", jobs):
            rows = zip(job.rows, job.indices, job.copies, arrays["images"], arrays["targets"], strict=True)
            for row, index, copy, image, target in rows:
                crc = zlib.crc32(target.tobytes(), zlib.crc32(image.tobytes()))
                lines.append(f"row {job.epoch} {row} {index} {copy} {crc}")
    return lines


def main(start: int, stop: int, *workers: int) -> None:
    """Joins, prepares, prints."""
    process = runtime.start("CPU")
    lines = [line for count in workers for line in (f"with {count}", *prepare(process, start, stop, count))]
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
