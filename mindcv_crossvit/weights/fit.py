"""Whether weights fit a model, from the shapes of its parameters alone, and what has to be done to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..models.interpolation import cubic_matrix
from .names import MINDCV, OFFICIAL
from .read import Weights

_MISMATCH = {
    MINDCV: "MindCV's weights need its numerics (bilinear resize, tanh GELU, other epsilons), and the model has the"
    " official ones; build it with model.numerics=mindcv",
    OFFICIAL: "weights for the official numerics, and the model has MindCV's; build it with model.numerics=official",
}
_NAMED = 3


@dataclass
class Report:
    """What became of every tensor: names as in the model, or as in the file for what is left over.

    loaded: as they were. resized: position embeddings, (name, tokens before, tokens after). fresh: parameters of the
    heads that keep their initial values because the file has another class count or no head. skipped: of another
    shape. missing: not in the file. left_over: not in the model.
    """

    path: Path
    kind: str
    numerics: str | None
    notes: tuple[str, ...] = ()
    loaded: list[str] = field(default_factory=list)
    resized: list[tuple[str, int, int]] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def lines(self) -> list[tuple[str, str]]:
        """(topic, sentence) for each thing a user should know; loaded tensors by number, all others by name."""
        numerics = f", {self.numerics} numerics" if self.numerics else ""
        found = [("weights", f"{self.path}: {self.kind}{numerics}"), *(("note", note) for note in self.notes)]
        found.append(("loaded", f"{len(self.loaded)} tensors as they are"))
        found += [("resized", f"{n}: {a} tokens to {b}, bicubic") for n, a, b in self.resized]
        for topic, names in (
            ("fresh", self.fresh),
            ("skipped", self.skipped),
            ("missing", self.missing),
            ("left over", self.left_over),
        ):
            if names:
                found.append((topic, f"{len(names)}: {', '.join(names)}"))
        return found

    def __str__(self) -> str:
        return "\n".join(f"{topic:<9} {text}" for topic, text in self.lines())


@dataclass(frozen=True)
class Fit:
    """Tensors by the model's names, each of its parameter's shape, and the report."""

    tensors: dict[str, np.ndarray]
    report: Report


def fit(
    weights: Weights,
    shapes: Mapping[str, tuple[int, ...]],
    numerics: str | None = OFFICIAL,
    *,
    new_head: bool = False,
    partial: bool = False,
    without: tuple[str, ...] = (),
) -> Fit:
    """The weights as a model with parameters of these shapes takes them.

    Position embeddings of another picture size are resized (bicubic, the class token's kept).
    numerics: the model's, `official` or `mindcv`; None for a model of another family.
    new_head: a head with another class count, or none, in the file stays as the model has it.
    partial: some tensors may be missing, of another shape or left over. A file of which nothing fits is refused.
    without: layers (`head`, ...) that the model does not have and the file may.
    Raises UserError with everything that does not fit.
    """
    report = Report(weights.path, weights.kind, weights.numerics, weights.notes)
    tensors: dict[str, np.ndarray] = {}
    heads: list[str] = []
    for name, shape in shapes.items():
        given = weights.tensors.get(name)
        if given is None:
            (report.fresh if new_head and is_head(name) else report.missing).append(name)
        elif given.shape == shape and _is_weight(given, weights):
            tensors[name] = given
            report.loaded.append(name)
        elif _can_be_resized(name, given.shape, shape):
            tensors[name] = resize_positions(given, shape[1])
            report.resized.append((name, given.shape[1], shape[1]))
        elif is_head(name) and len(given.shape) == len(shape) and given.shape[1:] == shape[1:]:
            report.fresh.append(name)
            heads.append(f"{given.shape[0]} classes in the file, {shape[0]} in the model")
        else:
            report.skipped.append(f"{name} ({_form(given)}, the model's is {list(shape)})")
    report.left_over = [n for n in weights.tensors if n not in shapes]
    problems = _problems(report, numerics, [] if new_head else heads, partial, without)
    if problems:
        raise UserError(f"{weights.path}: {problem}" for problem in problems)
    return Fit(tensors, report)


def _problems(
    report: Report, numerics: str | None, heads: list[str], partial: bool, without: tuple[str, ...]
) -> list[str]:
    if numerics and report.numerics and numerics != report.numerics:
        return [_MISMATCH[report.numerics]]
    if not report.loaded and not report.resized:
        return [f"nothing in it fits this model: {len(report.left_over)} tensors{_names(report.left_over)}"]
    problems = [f"its head does not fit: {heads[0]}; ask for a new head to begin with a fresh one"] if heads else []
    if not partial:
        strange = [name for name in report.left_over if name.partition(".")[0] not in without]
        for what, names in (
            ("missing", report.missing),
            ("of another shape", report.skipped),
            ("left over", strange),
        ):
            if names:
                problems.append(f"fits this model only in part: {what} are {len(names)} tensors{_names(names)}")
    return problems


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a classifier head."""
    return name.startswith("head.")


def resize_positions(pos_1nc: np.ndarray, tokens: int) -> np.ndarray:
    """[1, 1 + G*G, C] -> [1, tokens, C]: the class token's as it is, the others' G x G grid bicubically.

    Without a class token, [1, G*G, C] in the same way. Both counts must be of one kind, see _can_be_resized.
    The same as PyTorch's interpolate(mode="bicubic", align_corners=False); products in float64.
    """
    extra = _class_tokens(tokens) or 0
    cls_11c, grid_1pc = pos_1nc[:, :extra], pos_1nc[:, extra:]
    old, new = math.isqrt(grid_1pc.shape[1]), math.isqrt(tokens - extra)
    matrix = cubic_matrix(old, new).astype(np.float64)
    grid_hwc = grid_1pc.reshape(old, old, -1).astype(np.float64)
    resized = np.einsum("hwc,hy,wx->yxc", grid_hwc, matrix, matrix, optimize=True)
    return np.concatenate([cls_11c, resized.reshape(1, new * new, -1).astype(np.float32)], 1)


def _can_be_resized(name: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if name.partition(".")[0] != "pos_embed" or len(given) != 3 or given[::2] != wanted[::2]:
        return False
    extra = _class_tokens(given[1])
    return extra is not None and extra == _class_tokens(wanted[1])


def _class_tokens(tokens: int) -> int | None:
    """Tokens beside a square grid, 1 or 0: no two squares from 1 on are neighbours. None where there is no grid."""
    for extra in (1, 0):
        if tokens > extra and math.isqrt(tokens - extra) ** 2 == tokens - extra:
            return extra
    return None


def _is_weight(tensor: np.ndarray, weights: Weights) -> bool:
    """The suite's models have floating-point parameters only."""
    return tensor.dtype.kind == "f" or weights.numerics is None


def _form(tensor: np.ndarray) -> str:
    return f"{list(tensor.shape)}" + ("" if tensor.dtype.kind == "f" else f" of {tensor.dtype}")


def _names(names: Iterable[str]) -> str:
    names = list(names)
    return f", first {'; '.join(names[:_NAMED])}" if names else ""
