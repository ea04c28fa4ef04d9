"""An ONNX graph written node by node. Shapes and constants are known when it is written; the batch is fixed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

OPSET = 17
"""The first with LayerNormalization as one node."""
IR_VERSION = 8
"""The one that belongs to this opset, so that runtimes from 2022 on read the file."""


class Graph:
    """Nodes in the order they are added; every method returns the name of the tensor it makes."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        """A constant tensor; the same name stands for the same values."""
        self.constants.setdefault(name, value)
        return name

    def integers(self, *values: int) -> str:
        """A constant list of int64: shapes, positions."""
        return self.constant(f"int64({','.join(map(str, values))})", np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant float32 scalar."""
        return self.constant(f"float32({value:.9g})", np.array(value, np.float32))

    def add(self, op: str, *inputs: str, into: str | None = None, **attributes: Any) -> str:
        """A node with one output; `into` names it."""
        name = into or f"{op}_{len(self.nodes)}"
        return self._append(op, inputs, [name], attributes)[0]

    def split(self, x: str, *widths: int) -> list[str]:
        """x in parts along its last axis."""
        names = [f"Split_{len(self.nodes)}_{k}" for k in range(len(widths))]
        return self._append("Split", (x, self.integers(*widths)), names, {"axis": -1})

    def _append(self, op: str, inputs: tuple[str, ...], outputs: list[str], attributes: dict[str, Any]) -> list[str]:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{len(self.nodes)}", **attributes))
        return outputs

    def reshape(self, x: str, *shape: int) -> str:
        """x in another shape."""
        return self.add("Reshape", x, self.integers(*shape))

    def cut(self, x: str, start: int, stop: int) -> str:
        """x[:, start:stop]."""
        return self.add("Slice", x, self.integers(start), self.integers(stop), self.integers(1))

    def gelu(self, x: str, approximate: str) -> str:
        """`none`: x (1 + erf(x / sqrt 2)) / 2, in the form runtimes know and fuse; `tanh`: its tanh form."""
        if approximate == "none":
            inner = self.add("Erf", self.add("Div", x, self.number(math.sqrt(2))))
        else:
            cube = self.add("Mul", self.add("Mul", self.add("Mul", x, x), x), self.number(0.044715))
            inner = self.add("Tanh", self.add("Mul", self.add("Add", x, cube), self.number(math.sqrt(2 / math.pi))))
        return self.add("Mul", self.add("Mul", x, self.add("Add", inner, self.number(1))), self.number(0.5))

    def model(self, name: str, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> Any:
        """The finished onnx.ModelProto, checked; inputs and outputs are float32 tensors of these shapes."""
        from onnx import TensorProto, checker, helper, numpy_helper

        first, last = (
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in part.items()]
            for part in (inputs, outputs)
        )
        constants = [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in self.constants.items()]
        graph = helper.make_graph(self.nodes, name, first, last, constants)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mindcv_crossvit")
        checker.check_model(model, full_check=True)
        return model
