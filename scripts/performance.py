"""Measures what docs/PERFORMANCE.md says, into docs/performance.json, and writes the page.

    CROSSVIT_PEER_PYTHON=/path/to/python python scripts/performance.py               everything, about an hour
    CROSSVIT_PEER_PYTHON=/path/to/python python scripts/performance.py input floor   these parts again

Peers are measured in turn with this project, in one run; CROSSVIT_PEER_PYTHON is a Python with what
scripts/bench_peer.py needs. Nothing else should run on the machine meanwhile.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import numpy as np
from alternate import Result, alternate
from PIL import Image

DATA = ROOT / "docs" / "performance.json"
MODELS = ("crossvit_9", "crossvit_15", "crossvit_15_dagger")
BATCHES = (8, 32)
OURS = ("composed", "native")
BASE = "crossvit_9"
INPUT = 64
"""Pictures of a batch of the input pipeline."""
CURVES = {
    "batch": [(f"{b}", b, {}) for b in (1, 4, 8, 16, 32)],
    "pixels": [
        (f"{small}", 8, {"img_size": [small, large]})
        for small, large in ((120, 112), (180, 160), (240, 224), (312, 288), (408, 384))
    ],
    "encoders": [(f"{k}", 8, {"depth": [[1, 3, 0]] * k}) for k in (1, 2, 3, 4, 6)],
}
"""Of each curve five points: (name, pictures, changes of crossvit_9)."""


def ours(model: str, batch: int, what: str, ops: str, changes: dict[str, Any] | None = None) -> list[str]:
    """A worker of this project."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "bench_model.py"),
        model,
        str(batch),
        what,
        "--serve",
        "--ops",
        ops,
    ]
    return command + [
        part for key, value in (changes or {}).items() for part in ("--set", f"{key}={json.dumps(value)}")
    ]


def peer(*arguments: object, python: str | None = None) -> list[str]:
    """A worker of a peer."""
    python = python or os.environ["CROSSVIT_PEER_PYTHON"]
    return [python, str(ROOT / "scripts" / "bench_peer.py"), *map(str, arguments)]


def plain(result: Result) -> dict[str, float]:
    """A result as it is kept."""
    values = {"best": result.best, "median": result.median, "cpu": result.cpu, "ready": result.ready}
    return {**{k: round(v, 5) for k, v in values.items()}, "peak": result.peak}


def measure_models(work: Path) -> list[dict[str, Any]]:
    """Forward pass and training step of each model and batch, timm's beside ours; MindCV's where it has the model."""
    rows = []
    for model in MODELS:
        for batch in BATCHES:
            for what in ("forward", "train"):
                commands = {"timm": peer("model", f"{model}_240", batch, what)}
                commands |= {ops: ours(model, batch, what, ops) for ops in OURS}
                if batch == BATCHES[0] and not model.endswith("dagger"):
                    commands["mindcv"] = peer("mindcv", model, batch, what, python=sys.executable)
                results = alternate(list(commands.values()), 6, 2 if batch == BATCHES[0] else 1, work)
                found = {name: plain(r) for name, r in zip(commands, results, strict=True)}
                rows.append({"model": model, "batch": batch, "what": what, "results": found})
                print(model, batch, what, {k: round(v["best"], 3) for k, v in found.items()}, flush=True)
    return rows


def measure_exported(work: Path) -> list[dict[str, Any]]:
    """Our ONNX files beside timm's export, in OpenVINO and onnxruntime."""
    from mindcv_crossvit import create_model
    from mindcv_crossvit.export.crossvit_onnx import onnx_model

    rows = []
    for name in MODELS:
        model = create_model(name)
        tensors = {p.name: p.asnumpy() for p in model.get_parameters()}
        mine, theirs = work / f"{name}.onnx", work / f"{name}.timm.onnx"
        mine.write_bytes(onnx_model(model.config, tensors, BATCHES[0]).SerializeToString())
        subprocess.run(peer("export", f"{name}_240", BATCHES[0], theirs), check=True, cwd=work, capture_output=True)
        for runtime in ("openvino", "onnxruntime"):
            commands = [peer("onnx", file, BATCHES[0], 240, runtime) for file in (theirs, mine)]
            timm, own = (plain(r) for r in alternate(commands, 12, 2, work))
            rows.append({"model": name, "runtime": runtime, "results": {"timm": timm, "ours": own}})
            print(name, runtime, timm["best"], own["best"], flush=True)
    return rows


def measure_graphs(work: Path) -> list[dict[str, Any]]:
    """Kernels of a compiled training step, see graph_size.py."""
    from dataclasses import asdict

    import graph_size

    rows = []
    for model, precision in (("crossvit_9", "O0"), *((m, "O2") for m in ("crossvit_9", "crossvit_15", "crossvit_18"))):
        sizes = {who: asdict(size) for who, size in graph_size.measure(model, precision).items()}
        rows.append({"model": model, "precision": precision, "sizes": sizes})
        print(model, precision, {who: size["kernels"] for who, size in sizes.items()}, flush=True)
    return rows


def measure_start(work: Path) -> dict[str, Any]:
    """Seconds to the end of the first training step, three times each; ours also with MindSpore's compile cache."""
    commands = {ops: ours(BASE, 8, "train", ops) for ops in OURS}
    commands["mindcv"] = peer("mindcv-train", BASE, 8, "O0", python=sys.executable)
    commands["mindcv model"] = peer("mindcv", BASE, 8, "train", python=sys.executable)
    found: dict[str, Any] = {name: [] for name in commands}
    for _ in range(3):
        for name, command in commands.items():
            found[name].append(round(alternate([command], 1, 1, work)[0].ready, 2))
    cache = ["env", "MS_COMPILER_CACHE_ENABLE=1", f"MS_COMPILER_CACHE_PATH={work / 'cache'}"]
    cached = [*cache, *commands["composed"]]
    found["cached"] = [round(alternate([cached], 1, 1, work)[0].ready, 2) for _ in range(3)]
    return found


def measure_input(work: Path) -> dict[str, Any]:
    """Training batches from 800 photos, timm's loader beside ours; then ours for each number of workers."""
    folder, cores = photos(work / "photos"), len(os.sched_getaffinity(0))

    def own(workers: int) -> list[str]:
        return [sys.executable, str(ROOT / "scripts" / "bench_input.py"), str(folder), "--serve", str(workers)]

    def pillow(workers: int) -> list[str]:
        return ["env", "CROSSVIT_PIXELS=pillow", *own(workers)]

    timm, ours_, ours_pillow = (
        plain(r) for r in alternate([peer("input", folder, INPUT, cores), own(cores), pillow(cores)], 6, 12, work)
    )
    by_workers = {}
    for workers in range(cores + 1):
        result = alternate([own(workers)], 3, 12, work)[0]
        by_workers[workers] = INPUT * len(result.seconds) / sum(result.seconds)
    found = {"timm": timm, "ours": ours_, "pillow": ours_pillow}
    return {**found, "batch": INPUT, "workers": cores, "by_workers": by_workers}


def photos(folder: Path) -> Path:
    """800 parts of scikit-learn's two photographs, 375 to 640 pixels a side, in ten classes."""
    from sklearn.datasets import load_sample_images

    rng, images = np.random.default_rng(0), [Image.fromarray(a) for a in load_sample_images().images]
    for k in range(800):
        width, height = (500, 375) if k % 2 else (int(s) for s in rng.integers(375, 641, 2))
        image = images[int(rng.integers(2))]
        scale = max(width / image.width, height / image.height) * rng.uniform(1, 1.3)
        image = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))))
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        path = folder / str(k % 10) / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.crop((left, top, left + width, top + height)).save(path, quality=int(rng.integers(85, 97)))
    return folder


def measure_curves(work: Path) -> list[dict[str, Any]]:
    """Time and memory against batch, picture size and depth."""
    rows = []
    for curve, points in CURVES.items():
        for name, batch, changes in points:
            for what in ("forward", "train"):
                results = alternate([ours(BASE, batch, what, ops, changes) for ops in OURS], 3, 2, work)
                found = {ops: plain(r) for ops, r in zip(OURS, results, strict=True)}
                rows.append({"curve": curve, "at": int(name), "what": what, "results": found})
                print(curve, name, what, {k: round(v["best"], 3) for k, v in found.items()}, flush=True)
    return rows


def measure_floor(work: Path) -> dict[str, Any]:
    """The rate of matrix products on this machine, of one large one and of those of a model, and what models need."""
    import product_rate

    from mindcv_crossvit.models.catalog import VARIANTS, macs

    return {
        "large": product_rate.rate([(2048, 2048, 2048)]),
        "models": {m: product_rate.rate(product_rate.products(VARIANTS[m], BATCHES[0])) for m in MODELS},
        "macs": {m: macs(VARIANTS[m]) for m in MODELS},
    }


PARTS = {
    "models": measure_models,
    "exported": measure_exported,
    "graphs": measure_graphs,
    "start": measure_start,
    "input": measure_input,
    "curves": measure_curves,
    "floor": measure_floor,
}


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    cpu = next(
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    own = versions(sys.executable, "mindspore", "mindcv", "numpy", "pillow")
    peers = versions(os.environ["CROSSVIT_PEER_PYTHON"], "torch", "timm", "openvino", "onnxruntime")
    cores = len(os.sched_getaffinity(0))
    return {"date": time.strftime("%Y-%m-%d"), "cpu": cpu, "cores": cores, "versions": own | peers}


def versions(python: str, *packages: str) -> dict[str, str]:
    """Versions of packages beside a Python."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    said = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True).stdout
    return dict(zip(packages, said.split(), strict=True))


def main(parts: list[str]) -> int:
    """Measures, keeps what was measured before of other parts, writes the page."""
    import performance_page

    data = json.loads(DATA.read_text()) if DATA.is_file() else {}
    for part in parts or list(PARTS):
        with tempfile.TemporaryDirectory() as folder:
            data[part] = {"machine": machine(), "found": PARTS[part](Path(folder))}
        DATA.write_text(json.dumps(data, indent=1) + "\n")
    performance_page.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
