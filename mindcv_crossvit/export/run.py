"""An exported file as a model: the same pictures in, the same logits out, by whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from ..inference import CheckpointPredictor, Preprocessing, padded, preprocessing_of
from ..models.catalog import family_of
from ..recipe import Recipe
from ..training.checkpoint import Checkpoint, read_checkpoint
from ..training.start import resolve
from ..weights.read import read_weights
from ..weights.variant import as_checkpoint
from .crossvit_onnx import INPUT
from .facts import MINDIR, Exported, is_exported, need, read_exported

Run = Callable[[np.ndarray], np.ndarray]


class ExportedModel:
    """A Predictor, see inference; facts: what the file is. Logits of a batch are the file's own, at any batch size."""

    def __init__(self, exported: Exported, runtime: str):
        self.class_names: tuple[str, ...] = exported.class_names
        self.preprocessing: Preprocessing = exported.preprocessing
        self.facts: dict[str, Any] = exported.meta
        self.runtime = runtime
        self._run: Run = RUNTIMES[runtime](exported.path)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 [B, 3, S, S] -> float32 [B, classes]; in parts of the file's batch, the last one padded."""
        batch = self.facts["batch"]
        if batch is None:
            return self._run(images)
        parts = [images[k : k + batch] for k in range(0, len(images), batch)]
        full = [part if len(part) == batch else padded(list(part), batch) for part in parts]
        return np.concatenate([self._run(part) for part in full])[: len(images)]


def open_exported(path: Path, runtime: str | None = None) -> ExportedModel:
    """Opens an exported file with its facts.

    runtime: `onnxruntime` or `openvino` for .onnx, the first that is installed when None; .mindir is run by MindSpore,
    whose device must be set. Raises UserError for a missing file, facts or package.
    """
    exported = read_exported(path)
    return ExportedModel(exported, choose_runtime(path, runtime))


def choose_runtime(path: Path, runtime: str | None) -> str:
    """What runs a file. Raises UserError when the one named cannot, or none is installed."""
    known = ("mindspore",) if path.suffix.lower() == MINDIR else ("onnxruntime", "openvino")
    if runtime is not None and runtime not in known:
        raise UserError(f"--runtime {runtime}: {path.name} is run by {' or '.join(known)}; {nearest(runtime, known)}")
    chosen = runtime or next((name for name in known if find_spec(name)), known[0])
    if chosen != "mindspore":  # which is always there, and imported late
        need(chosen)
    return chosen


def _onnxruntime(path: Path) -> Run:
    runtime = need("onnxruntime")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises kinds of its own
        raise UserError(f"{path}: onnxruntime cannot read it: {error}") from error
    return lambda images: session.run(None, {INPUT: images})[0]


def _openvino(path: Path) -> Run:
    runtime = need("openvino")
    try:
        # without the hint it takes bfloat16 where the processor has it
        compiled = runtime.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise UserError(f"{path}: openvino cannot read it: {error}") from error
    return lambda images: np.array(compiled([images])[0])


def _mindspore(path: Path) -> Run:
    from mindspore import Tensor, load, nn

    try:
        graph = nn.GraphCell(load(str(path)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path}: MindSpore cannot read it: {str(error).splitlines()[0]}") from error
    return lambda images: graph(Tensor(images)).asnumpy()


RUNTIMES: dict[str, Callable[[Path], Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "mindspore": _mindspore,
}


def read_trained(
    path: Path, runtime: str | None, class_names: tuple[str, ...] = (), model: str | None = None
) -> Checkpoint | Exported:
    """A checkpoint, weights of another origin as one, or an exported file's facts; a run folder is its last checkpoint.

    runtime: see open_exported. class_names, model: for weights of another origin, which have no classes and perhaps the
    tensors of several models, see as_checkpoint.
    Raises UserError, also where the runtime does not fit the file.
    """
    if is_exported(path):
        exported = read_exported(path)
        choose_runtime(path, runtime)
        return exported
    if runtime is not None:
        raise UserError(f"--runtime {runtime}: is for ONNX files, and {path} is none")
    weights = read_weights(resolve(path))
    return read_checkpoint(weights.path) if weights.meta else as_checkpoint(weights, class_names, model)


def trained_preprocessing(trained: Checkpoint | Exported) -> Preprocessing:
    """What the pictures of either must go through."""
    return trained.preprocessing if isinstance(trained, Exported) else preprocessing_of(trained)


def needs_mindspore(trained: Checkpoint | Exported) -> bool:
    """Whether MindSpore runs it; False for ONNX."""
    return not isinstance(trained, Exported) or trained.path.suffix.lower() == MINDIR


def open_predictor(
    trained: Checkpoint | Exported, part: str, runtime: str | None
) -> ExportedModel | CheckpointPredictor:
    """Either as a Predictor; part: a checkpoint's weights, `model` or `ema`."""
    if isinstance(trained, Exported):
        return ExportedModel(trained, choose_runtime(trained.path, runtime))
    return CheckpointPredictor(trained, part)


def check_branch(trained: Checkpoint | Exported, recipe: Recipe, branch: str | None) -> None:
    """Refuses a branch (validate.py --branch) that what was given does not have. Raises UserError."""
    if branch is None:
        return
    if isinstance(trained, Exported):
        raise UserError(
            f"--branch {branch}: {trained.path} gives the mean of the branches' logits; score the checkpoint"
        )
    config = recipe.model.config()
    known = family_of(config).branches if config else ()
    if not known:
        raise UserError(f"--branch {branch}: {recipe.model.name} has one head; branches with heads has CrossViT")
    if branch not in known:
        raise UserError(f"--branch {branch}: expected {' or '.join(known)}; {nearest(branch, known)}")


def every_logits(
    trained: Checkpoint | Exported, recipe: Recipe, runtime: str | None, branch: str | None = None
) -> Iterator[tuple[str, Run]]:
    """(which weights, images to logits) of a checkpoint's weights and moving average, or of an exported file.

    A checkpoint's model is built by the recipe. branch: the logits of this branch's head alone, see check_branch.
    Each must be used before the next is asked for.
    """
    if isinstance(trained, Exported):
        yield "model", open_predictor(trained, "model", runtime).logits
        return
    from ..build import build_model
    from ..evaluation import scoring
    from ..training.state import load_model

    model: Any = build_model(recipe, len(trained.meta["class_names"]))
    scored = model.of_branch(branch) if branch else model
    for part in ("model", "ema") if trained.part("ema") else ("model",):
        load_model(model, trained, part)
        with scoring(scored) as logits:
            yield part, logits
