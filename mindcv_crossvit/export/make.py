"""From a checkpoint to an exported file that is known to give its logits, or to no file at all."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.pictures import PictureReader
from ..inference import CheckpointPredictor, padded
from ..models.catalog import family_of
from .facts import MINDIR, Exported, beside, named_version, need, write_facts
from .run import ExportedModel

_ROWS = 3
"""Random pictures compared at the least."""
_SAID = {"random": "random input", "pictures": "real pictures"}


class Differs(Exception):
    """The exported file does not give the checkpoint's logits."""


@dataclass(frozen=True)
class Request:
    """What to export.

    predictor: the checkpoint's model in float32, with the weights that are wanted. meta: see facts.describe.
    allowed: the largest difference of a logit. pictures: files of real pictures to compare on, besides random input.
    """

    predictor: CheckpointPredictor
    meta: dict[str, Any]
    target: Path
    allowed: float
    pictures: Sequence[Path] = ()

    @property
    def rows(self) -> int:
        """Pictures that are compared at once."""
        return max(_ROWS, self.meta["batch"] or 0)

    def batches(self) -> Iterator[list[np.ndarray]]:
        """The real pictures, normalised, 1 to `rows` at a time; those that cannot be read are said."""
        if self.pictures:
            reader = PictureReader(self.pictures, self.predictor.preprocessing.transform(), print)
            for batch in reader.batches(self.rows):
                yield [picture.pixels for picture in batch]


def export(request: Request, write: Callable[[Path, Request], str]) -> Exported:
    """Writes the target with `write`, checks it, and puts it and its facts in place.

    Raises Differs, leaving neither file, when a logit differs by more than is allowed.
    """
    target = request.target
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        fresh = Path(folder) / target.name
        runtime = write(fresh, request)
        exported = write_facts(fresh, request.meta)
        check = compare(request, ExportedModel(exported, runtime))
        exported = write_facts(fresh, {**request.meta, "check": check})
        os.replace(fresh, target)
        os.replace(beside(fresh), beside(target))
    return Exported(target, exported.meta)


def writer(target: Path) -> Callable[[Path, Request], str]:
    """What writes a file of the target's kind and returns the name of what runs it."""
    return _write_mindir if target.suffix.lower() == MINDIR else _write_onnx


def _write_onnx(path: Path, request: Request) -> str:
    model = request.predictor.model
    tensors = {p.name: p.asnumpy() for p in model.get_parameters()}
    family = importlib.import_module(f".{family_of(model.config).name}_onnx", __package__)
    need("onnx").save(family.onnx_model(model.config, tensors, request.meta["batch"]), str(path))
    return "onnxruntime"


def _write_mindir(path: Path, request: Request) -> str:
    import mindspore as ms

    size = request.predictor.preprocessing.image_size
    images = ms.Tensor(shape=[None, 3, size, size], dtype=ms.float32)
    ms.export(request.predictor.model, images, file_name=str(path), file_format="MINDIR")
    path.chmod(0o644)  # MindSpore makes it readable by nobody else
    return "mindspore"


def compare(request: Request, exported: ExportedModel) -> dict[str, Any]:
    """The largest differences of the logits, on random and on real pictures. Raises Differs."""
    size = exported.preprocessing.image_size
    random = np.random.default_rng(0).standard_normal((request.rows, 3, size, size), np.float32)
    expected = request.predictor.logits(random)
    one = exported.logits(random[:1])  # a batch of another size
    found = {"random": max(_largest(expected, exported.logits(random)), _largest(expected[:1], one))}
    count = 0
    for batch in request.batches():
        images = padded(batch, request.rows)
        expected = request.predictor.logits(images)[: len(batch)]
        difference = _largest(expected, exported.logits(images[: len(batch)]))
        found["pictures"] = max(found.get("pictures", 0.0), difference)
        count += len(batch)
    for name, difference in found.items():
        if not difference <= request.allowed:
            raise Differs(
                f"{exported.runtime}'s logits differ from the checkpoint's by up to {difference:.1e} on {_SAID[name]},"
                f" and {request.allowed:g} is allowed (--check)"
            )
    return {**found, "count": count, "allowed": request.allowed, "runtime": named_version(exported.runtime)}


def _largest(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest absolute difference; infinite where shapes differ or a value is not a number."""
    if expected.shape != found.shape:
        return float("inf")
    difference = np.abs(expected.astype(np.float64) - found).max(initial=0)
    return float(difference) if np.isfinite(difference) else float("inf")
