"""The memory of a training step, counted from a model's numbers.

What is counted: a number of 4 bytes for each parameter and its gradient, moments, moving average and accumulation
buffer; and the activations that one picture's forward pass keeps for the gradient, times the pictures a device holds.
`composed` keeps them as `saved_activations` counts them; a step's peak on the CPU was 1.04 times that, above the state,
for every model and batch measured (crossvit_9 with 4 and 16 pictures, crossvit_15 with 4). MindSpore itself and a
compiled step come on top there. For other devices and half precision it is the same count, and not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from .crossvit_config import CrossViTConfig

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
    config: CrossViTConfig | None, pictures: int, held: int, trained: int, accumulates: bool, on_cpu: bool
) -> Memory:
    """The memory of a training step.

    pictures: a device has at once. held: numbers in parameters, moments and moving average. trained: numbers that have
    a gradient. accumulates: whether gradients of several micro-batches are added up.
    """
    state = FLOAT * (held + trained * (1 + accumulates))
    activations = FLOAT * WORK_SPACE * pictures * saved_activations(config) if config else None
    program = (CPU_PROCESS + CPU_GRAPH * (1 + accumulates)) if on_cpu else 0.0
    return Memory(state, activations, program)


def saved_activations(config: CrossViTConfig) -> int:
    """Numbers that one image's forward pass must keep for the gradient, at least.

    Counted per block and token: both norms' outputs and normalised inputs (4 C), q, k and v (3 C), the attention's
    probabilities (heads x tokens) and output (C), the residual stream (2 C), and the hidden layer before and after
    its GELU. What a backend keeps besides, and its work space, come on top.
    """
    total = 0
    for triple in config.depth:
        for i in range(2):
            n, c = config.tokens[i], config.embed_dim[i]
            total += triple[i] * n * (10 * c + 2 * config.hidden_dim[i] + config.num_heads[i] * n)
        total += _saved_by_fusion(config)
    return total


def _saved_by_fusion(config: CrossViTConfig) -> int:
    """Of one encoder. A projection keeps its norm's output and normalised input, and its GELU's output, per token."""
    tokens, dims, common = config.tokens, config.embed_dim, config.embed_dim[1]
    if config.fusion == "cross_attention":
        return sum(4 * n * c for n, c in zip(tokens, dims, strict=True))  # norm, keys and values
    if config.fusion == "all_attention":
        projections = sum(n * 3 * (c + common) for n, c in zip(tokens, dims, strict=True))
        joint = sum(tokens)
        return projections + joint * (8 * common + config.num_heads[1] * joint)
    return tokens[0] * 3 * (dims[0] + common) if config.fusion == "pairwise" else 0
