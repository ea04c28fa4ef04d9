"""The memory of a run, counted from a model's numbers; the method is written down in docs/MEMORY.md.

State (parameters, gradients, moments, moving average, accumulation buffers), and the larger of two: what a step's
forward pass keeps for the gradient, or what an evaluation has at once. On the CPU MindSpore and its compiled graphs
come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from .catalog import family_of
from .family import Config

FLOAT = 4
WORK_SPACE = 1.04
CPU_PROCESS = 430e6
CPU_GRAPH = 1.75e6
CPU_EVALUATION = 0.2e6
"""Bytes of MindSpore in a process; of a compiled graph with gradients, and of one without, for each tensor of the
model's parameters. Measured with MindSpore 2.10."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a device, or of a process on the CPU.

    step, evaluation: activations of the two, None where they cannot be counted. program: MindSpore and compiled graphs.
    """

    state: float
    step: float | None
    evaluation: float | None
    program: float

    @property
    def total(self) -> float:
        """All of it that could be counted; a step and an evaluation have the same memory in turn."""
        return self.state + max(self.step or 0, self.evaluation or 0) + self.program


@dataclass(frozen=True)
class Load:
    """What a device holds.

    pictures: of a micro-batch. evaluated: pictures of an evaluation's batch. tensors: of the model's parameters. held:
    numbers in parameters, moments and moving average. trained: numbers that have a gradient. accumulates: whether
    gradients of several micro-batches are added up.
    """

    pictures: int
    evaluated: int
    tensors: int
    held: int
    trained: int
    accumulates: bool


def training_memory(config: Config | None, load: Load, on_cpu: bool) -> Memory:
    """The memory of a training run that validates; config: None for a model whose activations cannot be counted."""
    # Accumulation: a micro-batch's gradients, the sum before it, the sum after it, and the mean.
    state = FLOAT * (load.held + load.trained * (4 if load.accumulates else 1))
    graphs = load.tensors * (CPU_GRAPH * (1 + load.accumulates) + CPU_EVALUATION)
    program = CPU_PROCESS + graphs if on_cpu else 0.0
    if config is None:
        return Memory(state, None, None, program)
    family = family_of(config)
    step = FLOAT * WORK_SPACE * load.pictures * family.saved_activations(config)
    return Memory(state, step, FLOAT * load.evaluated * family.alive_activations(config), program)
