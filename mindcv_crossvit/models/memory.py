"""The memory of a training step, counted from a model's numbers.

What is counted: a number of 4 bytes for each parameter and its gradient, moments, moving average and accumulation
buffer; and the activations that one picture's forward pass keeps for the gradient, times the pictures a device holds.
`composed` keeps them as each family counts them; a step's peak on the CPU was 1.04 times that, above the state,
for every model and batch measured (crossvit_9 with 4 and 16 pictures, crossvit_15 with 4). MindSpore itself and a
compiled step come on top there; the peak of a whole run of train.py was 1.10 times the plan (crossvit_9, 12 pictures),
and a slow test holds it within 25 % for two models and two batches. For other devices and half precision it is the same
count, and not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from .catalog import family_of
from .family import Config

FLOAT = 4
WORK_SPACE = 1.04
CPU_PROCESS = 430e6
CPU_GRAPH = 400e6
"""Bytes of MindSpore in a process, and of one compiled graph with gradients; measured with MindSpore 2.10."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a device, or of a process on the CPU. activations: None where they cannot be counted."""

    state: float
    activations: float | None
    program: float

    @property
    def total(self) -> float:
        """All of it that could be counted."""
        return self.state + (self.activations or 0) + self.program


def training_memory(
    config: Config | None, pictures: int, held: int, trained: int, accumulates: bool, on_cpu: bool
) -> Memory:
    """The memory of a training step.

    pictures: a device has at once. held: numbers in parameters, moments and moving average. trained: numbers that have
    a gradient. accumulates: whether gradients of several micro-batches are added up.
    """
    state = FLOAT * (held + trained * (1 + accumulates))
    activations = FLOAT * WORK_SPACE * pictures * family_of(config).saved_activations(config) if config else None
    program = (CPU_PROCESS + CPU_GRAPH * (1 + accumulates)) if on_cpu else 0.0
    return Memory(state, activations, program)
