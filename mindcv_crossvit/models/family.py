"""What the suite knows of a family of models without MindSpore, so that no other part asks which family it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Shapes = dict[str, tuple[int, ...]]
C = TypeVar("C")


class Config(Protocol):
    """A model's numbers: a frozen dataclass whose fields are the official constructor's arguments."""

    @property
    def img_size(self) -> Any:
        """The official constructor's: pixels, or pixels of each branch."""
        ...

    @property
    def input_size(self) -> int:
        """Pixels of the model's square input."""
        ...

    def with_overrides(self: C, overrides: Mapping[str, Any]) -> C:
        """A copy with some arguments replaced; lists become tuples. Raises ValueError on an impossible result."""
        ...


def no_other_size(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """For families whose weights do not tell the picture size."""
    return None


def no_attention(config: Any) -> bool:
    """For families without class tokens that read another branch."""
    return False


@dataclass(frozen=True)
class Family:
    """One family. Its Cells are in models/<name>.py, `create(config, op, num_classes, drop_path_rate, seed)`; its
    ONNX graph, where there is one, in export/<name>_onnx.py, `onnx_model(config, tensors, batch)`.

    config: the dataclass. variants: the suite's names of the released models.
    parameter_shapes: (config, classes) -> the shape of every tensor of its weights, by official name.
    macs: (config, classes) -> multiply-accumulates of one picture, as the papers count "FLOPs".
    saved_activations: config -> numbers that one picture's forward pass keeps for the gradient.
    alive_activations: config -> numbers that it has at once, at the most, where nothing is kept.
    sized: (config, pixels) -> the value of `img_size` for an input of about so many pixels.
    size_of: (config, shapes of weights) -> the overrides that weights tell: the picture size they were made for, ...
    layers: config -> layers of layer-wise learning-rate decay, see training/groups.py.
    attends: config -> whether attention maps can be drawn.
    branches: the names of the branches that have heads of their own, where there are several.
    """

    name: str
    config: type
    variants: Mapping[str, Any]
    parameter_shapes: Callable[[Any, int], Shapes]
    macs: Callable[[Any, int], int]
    saved_activations: Callable[[Any], int]
    alive_activations: Callable[[Any], int]
    sized: Callable[[Any, int], Any]
    layers: Callable[[Any], int]
    size_of: Callable[[Any, Mapping[str, tuple[int, ...]]], dict[str, Any] | None] = no_other_size
    attends: Callable[[Any], bool] = no_attention
    branches: tuple[str, ...] = ()
