"""How fast pictures are prepared: per second and per CPU second, for training and for evaluation, without MindSpore.

    python scripts/bench_input.py /path/to/pictures
    python scripts/bench_input.py /path/to/pictures --workers 1 2 4 8 --config configs/crossvit_18_ascend.yaml

The pictures are prepared as the recipe says, RandAugment, erasing and mixing included, by the loader that training
uses. FOLDER is anything a recipe reads: class folders, train/ and val/, or a pack. CPU seconds are those of the workers
and of this process. The last line is JSON. On a machine with other work only pictures per CPU second mean something.
--serve WORKERS makes it a worker that others may ask in turn for training batches, see worker.py.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from worker import serve

from mindcv_crossvit.data.loader import Loader
from mindcv_crossvit.data.pixels import compiled
from mindcv_crossvit.data.sources import Splits, open_data
from mindcv_crossvit.data.transforms import EvalTransform, Normalise, TrainTransform
from mindcv_crossvit.data.views import EvalView, Job, Order, TrainView, View, eval_jobs, train_jobs
from mindcv_crossvit.errors import run_main
from mindcv_crossvit.recipe import Recipe
from mindcv_crossvit.recipe_file import load_recipe

STARTED = time.perf_counter()
CLOCK = 1 / os.sysconf("SC_CLK_TCK")  # seconds in which CPU time is counted


def main(argv: list[str] | None = None) -> int:
    """Measures each number of workers, or serves."""
    arguments = parse(argv)
    changes = [f"data.dir={json.dumps(str(arguments.folder))}", "data.source=folder"]
    recipe = load_recipe(arguments.config, changes)
    whole = (arguments.folder / "train").is_dir() and (arguments.folder / "val").is_dir()
    data = open_data(recipe.data if whole else load_recipe(arguments.config, [*changes, "data.val_fraction=0.2"]).data)
    views = make_views(recipe, data, arguments.batch)
    if arguments.serve is not None:
        with Loader(views, arguments.serve) as loader:
            batches = loader.batches("train", endless(views, "train"))
            next(batches)
            serve(lambda: next(batches), time.perf_counter() - STARTED)
        return 0
    by = "pixels.cc" if compiled() else "Pillow"
    print(
        f"{len(data.train):,} training and {len(data.val):,} validation pictures, batches of {arguments.batch}, by {by}"
    )
    print(f"{'workers':>8}{'training':>14}{'per CPU s':>12}{'evaluation':>14}{'per CPU s':>12}   pictures per second")
    found = []
    for workers in arguments.workers:
        with Loader(views, workers) as loader:
            row = {name: measure(loader, name, endless(views, name), arguments) for name in views}
        found.append({"workers": workers, **row})
        numbers = [row[name][key] for name in views for key in ("per_second", "per_cpu_second")]
        print(f"{workers:8}{numbers[0]:14.1f}{numbers[1]:12.1f}{numbers[2]:14.1f}{numbers[3]:12.1f}", flush=True)
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "batch": arguments.batch, "by": by, "rows": found}))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description="Pictures per second and per CPU second of the data pipeline.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="class folders, train/ and val/, or a pack")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "crossvit_15_ascend.yaml", help="the recipe")
    parser.add_argument("--workers", type=int, nargs="+", default=range(cores + 1), help="0 to the number of cores")
    parser.add_argument("--batch", type=int, default=64, help="pictures of a batch (64)")
    parser.add_argument("--batches", type=int, default=20, help="batches measured (20)")
    parser.add_argument("--serve", type=int, metavar="WORKERS", help="answer on standard input instead")
    return parser.parse_args(argv)


def make_views(recipe: Recipe, data: Splits, batch: int) -> dict[str, View]:
    """Training and evaluation as the recipe has them; a mixing group is not larger than the batch."""
    size, normalise = recipe.model.image_size, Normalise(recipe.data.mean, recipe.data.std)
    train = TrainView(
        source=data.train,
        transform=TrainTransform(size, recipe.augment, normalise),
        num_classes=len(data.class_names),
        smoothing=recipe.loss.label_smoothing,
        mix=recipe.mix,
        group=min(recipe.mix.group, batch),
        batch=batch,
        seed=recipe.run.seed,
        skip_bad=False,
    )
    return {
        "train": train,
        "val": EvalView(data.val, EvalTransform(size, recipe.evaluate.crop_fraction, normalise), batch, False),
    }


def endless(views: dict[str, View], name: str) -> Iterator[Job]:
    """The jobs of a view, without end, whole batches only."""
    view = views[name]
    assert isinstance(view, (TrainView, EvalView))
    if isinstance(view, TrainView):
        order = Order(view.seed, len(view.source), view.batch, max(len(view.source) // view.batch, 1))
        return train_jobs(order, view.batch, 0, 1, 0, 2**31)
    jobs = [job for job in eval_jobs(len(view.source), view.batch, 0, 1) if len(job.indices) == view.batch]
    return itertools.cycle(jobs or eval_jobs(len(view.source), view.batch, 0, 1))


def measure(loader: Loader, name: str, jobs: Iterator[Job], arguments: argparse.Namespace) -> dict[str, float]:
    """Pictures per second and per CPU second of a steady pipeline: as many batches are ahead at the end as before."""
    batches = loader.batches(name, jobs)
    for _ in range(3):
        next(batches)
    begun, cpu = time.perf_counter(), cpu_seconds()
    pictures = sum(len(next(batches).job.indices) for _ in range(arguments.batches))
    seconds, cpu = time.perf_counter() - begun, cpu_seconds() - cpu
    batches.close()  # type: ignore[attr-defined]
    return {"per_second": pictures / seconds, "per_cpu_second": pictures / max(cpu, CLOCK)}


def cpu_seconds() -> float:
    """CPU seconds so far of this process and of the worker processes that it started."""
    from psutil import Process

    pids = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
    times = [Process(pid).cpu_times() for pid in pids if pid is not None]
    return sum(t.user + t.system for t in times)


if __name__ == "__main__":
    run_main(main)
