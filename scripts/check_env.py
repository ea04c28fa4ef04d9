"""Check a machine before a run: versions, devices, two ranks that add up, room for checkpoints, speed of the input.

python scripts/check_env.py --config configs/digits.yaml
python scripts/check_env.py --config configs/crossvit_15_ascend.yaml --data_dir /path/to/imagenet --output /path/to/run

One line per check: ok, note or FAILED. Exit code 0 when none failed, else 1. What is said of Ascend was not run here.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from math import prod
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

try:
    from mindcv_crossvit import cli
    from mindcv_crossvit.data.sources import Splits, open_data
    from mindcv_crossvit.errors import Problem, UserError, run_main
    from mindcv_crossvit.job import free_port
    from mindcv_crossvit.journal import check_writable
    from mindcv_crossvit.models.catalog import parameter_shapes
    from mindcv_crossvit.recipe import Recipe
except ImportError as error:
    sys.exit(f"FAILED  {error}: install the packages of requirements.txt")

TESTED = {
    ("2.7.0", "3.10", "1.26.4"),
    ("2.10.0", "3.10", "1.26.4"),
    ("2.10.0", "3.11", "1.26.4"),
    ("2.10.0", "3.12", "1.26.4"),
}
"""(MindSpore, Python, numpy) run by this project, on CPUs."""
DOCUMENTED = {"2.7.0": ("8.2.RC1", "25.2.0"), "2.7.1": ("8.3.RC1", "25.3.RC1"), "2.7.2": ("8.5.0", "")}
"""MindSpore: (CANN, driver and firmware). The first two from MindSpore Transformers' installation guides r1.6.0 and
r1.7.0 (https://www.mindspore.cn/mindformers/docs/en/r1.7.0/installation.html), the last from ascend-deployer's
version_match.json. None of them was run here; of 2.10.0 no document was found."""
ASCEND = Path("/usr/local/Ascend")
VERSION_FILES = {
    "driver": ("driver/version.info",),
    "firmware": ("firmware/version.info",),
    "CANN": ("ascend-toolkit/latest/version.cfg", "cann/version.cfg", "nnae/latest/version.cfg"),
}
ALL_REDUCE = ROOT / "scripts/all_reduce.py"
SEE = "from mindcv_crossvit import runtime; print(*runtime.seen_devices())"
SECONDS = 10.0
PROBE = 1 << 20
"""Bytes written to the run folder to see whether they can be."""
ASSUMED_CLASSES = 1000
Line = tuple[str, str]
OK, NOTE, FAILED = "ok", "note", "FAILED"


def versions() -> list[Line]:
    """MindSpore, Python and numpy against what was tested."""
    python, mindspore, numpy = "{}.{}".format(*sys.version_info[:2]), _installed("mindspore"), _installed("numpy")
    said = f"Python {python}, MindSpore {mindspore or 'not installed'}, numpy {numpy or 'not installed'}"
    if (mindspore, python, numpy) in TESTED:
        return [(OK, f"{said}: tested (on CPUs)")]
    known = "; ".join(f"MindSpore {m}, Python {p}, numpy {n}" for m, p, n in sorted(TESTED))
    lines = [(NOTE if mindspore else FAILED, f"{said}: not a tested combination; tested are {known}")]
    if not numpy.startswith("1."):
        lines.append((FAILED, f"numpy {numpy or 'not installed'}: below 2 needed, MindSpore is built for numpy 1"))
    return lines


def seen(root: Path = Path("/")) -> list[Line]:
    """The devices as MindSpore sees them, beside those of the driver; asked in a process of its own."""
    done = subprocess.run([sys.executable, "-c", SEE], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return [(FAILED, f"MindSpore cannot be used: {(done.stderr.splitlines() or ['it ended without a word'])[-1]}")]
    ascend, cpu = map(int, done.stdout.split()[-2:])
    cards = len(_cards(root))
    said = f"MindSpore sees {ascend} Ascend cards" if ascend or cards else f"MindSpore sees the CPU ({cpu} device)"
    return [(OK, said) if ascend == cards else (FAILED, f"{said}, the driver shows {cards}")]


def _cards(root: Path) -> list[Path]:
    return sorted((root / "dev").glob("davinci[0-9]*"))


def devices(root: Path = Path("/")) -> list[Line]:
    """Cards, and their software against what is documented for the MindSpore installed."""
    cards = _cards(root)
    if not cards:
        return [(NOTE, f"no Ascend cards (/dev/davinci*): runs on the CPU, {os.cpu_count()} cores")]
    found = {name: _version_in(root, files) for name, files in VERSION_FILES.items()}
    said = f"{len(cards)} Ascend cards; " + ", ".join(f"{n} {v or 'not found'}" for n, v in found.items())
    mindspore = _installed("mindspore")
    if mindspore not in DOCUMENTED:
        return [(NOTE, f"{said}; no documented combination for MindSpore {mindspore} is known here")]
    cann, driver = DOCUMENTED[mindspore]
    wanted = {"CANN": cann, **({"driver": driver, "firmware": driver} if driver else {})}
    wrong = [f"{n} {v}" for n, v in wanted.items() if found[n].upper() != v.upper()]
    return [
        (NOTE if wrong else OK, said + (f"; documented for MindSpore {mindspore}: {', '.join(wrong)}" if wrong else ""))
    ]


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _version_in(root: Path, files: tuple[str, ...]) -> str:
    for name in files:
        path = root / ASCEND.relative_to("/") / name
        if path.is_file() and (found := re.search(r"(?i)version=\[?([^\]\s:]*:)?([\w.]+)", path.read_text())):
            return found[2]
    return ""


def two_ranks() -> list[Line]:
    """Two ranks that join and add up a vector."""
    with tempfile.TemporaryDirectory() as logs:
        words = [sys.executable, ROOT / "scripts/supervise.py", "--restarts", 0, "--start", 90, "--logs", logs, "--"]
        words += ["msrun", "--worker_num", 2, "--local_worker_num", 2, "--master_port", free_port()]
        words += ["--cluster_time_out", 90, "python", ALL_REDUCE]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        began = time.perf_counter()
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, env={**os.environ, "PATH": path})
        if done.returncode == 0:
            return [(OK, f"two ranks joined and added up in {time.perf_counter() - began:.0f} s")]
        why = [line for line in done.stdout.splitlines() if "FAILED" in line] or done.stderr.splitlines()[-1:]
        return [(FAILED, f"two ranks did not add up: {why[0] if why else done.stdout[-200:]}")]


def room(recipe: Recipe, classes: int | None) -> list[Line]:
    """Write access to the run folder, by writing, and room for its checkpoints, one of which is being written.

    classes: of the data, None where it cannot be opened.
    """
    folder = Path(recipe.run.output or "runs").expanduser()
    check_writable(folder, "run folder")
    place = folder
    while not place.exists():
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"run folder: {place} cannot be written to: {error.strerror}") from error
    free, lines = shutil.disk_usage(place).free, [(OK, f"{folder} can be written to")]
    config = recipe.model.config()
    if config is None:
        size = f"{free / 1e9:,.1f} GB free; the size of its checkpoints is not known for a model of MindCV"
        return [*lines, (NOTE, size)]
    given = classes or recipe.model.num_classes or ASSUMED_CLASSES
    count = sum(prod(shape) for shape in parameter_shapes(config, given).values())
    each = 4 * count * (1 + (2 if recipe.optimizer.name == "adamw" else 1) + bool(recipe.ema.decay))
    needed, kept = each * (recipe.checkpoint.keep + 2), recipe.checkpoint.keep
    text = f"checkpoints of {each / 1e6:,.1f} MB: {needed / 1e9:.2f} GB for {kept}, the best and a new"
    text += "" if classes else f" (for {given:,} classes)"
    return [*lines, (OK if free > needed else FAILED, f"{text}; {free / 1e9:,.1f} GB free")]


def speed(recipe: Recipe, data: Splits) -> list[Line]:
    """Pictures a second of the input alone, as the recipe prepares them on one device."""
    from mindcv_crossvit import build
    from mindcv_crossvit.adapt import adapt
    from mindcv_crossvit.data.views import Order, train_jobs
    from mindcv_crossvit.plan import make_plan

    recipe, _ = adapt(recipe, data, False)
    p = make_plan(recipe, data, 1)
    order = Order(recipe.run.seed, p.train_images, p.global_batch, p.steps_per_epoch, recipe.augment.repeats, p.group)
    with build.build_loader(recipe, {"train": build.train_view(recipe, data, p)}) as loader:
        batches = loader.batches("train", train_jobs(order, p.per_device, 0, 1, 0, p.total_steps))
        next(batches)  # the workers have started
        began, count = time.perf_counter(), 0
        for _ in batches:
            count += p.per_device
            if time.perf_counter() - began > SECONDS:
                break
        rate = count / (time.perf_counter() - began)
        batches.close()  # type: ignore[attr-defined]
    return [(OK, f"input: {rate:,.0f} pictures a second with {recipe.data.workers} workers for one device")]


def main() -> int:
    """Runs every check and prints the page."""
    arguments = cli.check_arguments()
    recipe = cli.recipe_of(arguments)
    worst, data = 0, None

    def show(check: Callable[[], list[Line]]) -> None:
        nonlocal worst
        try:
            lines = check()
        except Problem as error:
            lines = [(FAILED, problem) for problem in error.problems]
        except Exception as error:  # the next check may say why
            lines = [(FAILED, f"{type(error).__name__}: {error}")]
        for word, text in lines:
            worst |= word == FAILED
            print(f"{word:<7} {text}", flush=True)

    def opened() -> list[Line]:
        nonlocal data
        data = open_data(recipe.data)
        return [(OK, f"data: {len(data.train):,} training and {len(data.val):,} validation pictures")]

    show(versions)
    show(devices)
    show(seen)
    show(two_ranks)
    show(opened)
    show(lambda: room(recipe, len(data.class_names) if data else None))
    if data is not None:
        there = data
        show(lambda: speed(recipe, there))
    return int(worst)


if __name__ == "__main__":
    run_main(main)
