"""Which parameters are decayed, and how much slower the early layers learn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from mindspore import Parameter, ParameterTuple, nn

from ..errors import UserError, nearest

_STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")


class Group(NamedTuple):
    """Parameters that share weight decay and a factor on the learning rate."""

    decayed: bool
    lr_scale: float
    parameters: tuple[Parameter, ...]


def decayed(parameters: Sequence[Parameter], rule: str) -> list[bool]:
    """Which parameters get weight decay.

    rule `official`: all but one-dimensional tensors and biases. IBM's skip list names `cls_token` and `pos_embed`, its
    tensors are `cls_token.0` ..., so in the published runs tokens and positions were decayed.
    rule `timm`: tokens and position embeddings are exempt too, as the official code meant it.
    """
    exempt = ("cls_token", "pos_embed") if rule == "timm" else ()
    return [p.ndim > 1 and not p.name.endswith(".bias") and not p.name.startswith(exempt) for p in parameters]


def freeze(parameters: Sequence[Parameter], patterns: Sequence[str]) -> None:
    """Takes the parameters whose names match a pattern (`blocks.0.*`) out of training.

    Raises UserError for a pattern that matches none, and when nothing is left to train.
    """
    names = [p.name for p in parameters]
    unmatched = [pattern for pattern in patterns if not any(fnmatchcase(n, pattern) for n in names)]
    if unmatched:
        parts = {name[: dot.start()] for name in names for dot in re.finditer(r"\.|$", name)}
        raise UserError(
            f"optimizer.freeze: {p!r} matches no parameter; {nearest(p.rstrip('.*'), sorted(parts))}" for p in unmatched
        )
    for parameter in parameters:
        parameter.requires_grad = not any(fnmatchcase(parameter.name, pattern) for pattern in patterns)
    if not any(p.requires_grad for p in parameters):
        raise UserError(f"optimizer.freeze: {', '.join(patterns)} leave nothing to train")


def running_statistics(model: nn.Cell) -> ParameterTuple:
    """The state of a model that follows its batches without a gradient: that of batch norms, MindCV's included."""
    return ParameterTuple([p for p in model.get_parameters() if p.name.endswith(_STATISTICS)])


def layer_of(name: str, encoders: int) -> int:
    """The layer of a parameter for layer-wise decay: 0 the embedding, 1 to K the encoders or stages, K + 1 norm and
    head."""
    encoder = re.match(r"(?:blocks\.|layers\.|layer_)(\d+)\.", name)
    if encoder:
        return int(encoder[1]) + 1
    return 0 if name.startswith(("patch_embed", "pos_embed", "cls_token")) else encoders + 1


def make_groups(parameters: Sequence[Parameter], rule: str, layer_decay: float = 1.0, encoders: int = 0) -> list[Group]:
    """Groups by decay and layer; layer l of K + 1 learns with layer_decay^(K + 1 - l) times the learning rate."""
    found: dict[tuple[bool, float], list[Parameter]] = {}
    for parameter, decays in zip(parameters, decayed(parameters, rule), strict=True):
        scale = 1.0 if layer_decay == 1 else layer_decay ** (encoders + 1 - layer_of(parameter.name, encoders))
        found.setdefault((decays, scale), []).append(parameter)
    return [Group(decays, scale, tuple(members)) for (decays, scale), members in found.items()]
