"""Which model weights belong to, from their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..models.catalog import FAMILIES, VARIANTS, parameter_shapes, resolve
from ..models.family import Shapes
from ..training.checkpoint import Checkpoint
from .names import OFFICIAL
from .read import Weights


@dataclass(frozen=True)
class Variant:
    """A model's name, what differs from it (`img_size`, `numerics`, `fusion`, ...), and its classes."""

    name: str
    overrides: dict[str, Any]
    num_classes: int


def find_variant(weights: Weights, wanted: str | None = None) -> Variant:
    """The released model whose parameters these are, perhaps for another picture size or with another fusion.

    wanted: the name of the model that a recipe has, for two that have the same tensors: those of CabViT-P as released
        are DeiT-Ti's, which is found otherwise.
    Raises UserError with the nearest one when there is none, and when two fusions have the same shapes.
    """
    given: Shapes = {n: t.shape for n, t in weights.tensors.items()}
    head = given.get("head.0.weight") or given.get("head.weight") or ()
    classes = head[0] if len(head) == 2 else 0
    special = {"numerics": weights.numerics} if weights.numerics not in (None, OFFICIAL) else {}
    models = [(family, name, config) for family in FAMILIES for name, config in family.variants.items()]
    candidates: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in VARIANTS]
    candidates += [(name, size) for family, name, config in models if (size := family.size_of(config, given))]
    preferred = resolve(wanted) if wanted else None
    candidates.sort(key=lambda candidate: candidate[0] != preferred)
    differences = {}
    for name, overrides in candidates:
        config = VARIANTS[name]
        changes = {key: value for key, value in {**overrides, **special}.items() if hasattr(config, key)}
        needed = parameter_shapes(config.with_overrides(changes), classes)
        wrong = [n for n in {*given, *needed} if given.get(n) != needed.get(n)]
        if not wrong:
            if changes.get("fusion") == "class_token":
                raise UserError(
                    f"{weights.path}: tensors of {name} with fusion class_token or pairwise, which look the same; the"
                    " checkpoint of a run says which"
                )
            return Variant(name, changes, classes)
        differences[name] = min(differences.get(name, wrong), wrong, key=len)
    nearest = min(differences, key=lambda n: len(differences[n]))
    wrong = sorted(differences[nearest])
    raise UserError(
        f"{weights.path}: no model of this suite has these shapes; the nearest is {nearest}, where {len(wrong)} tensors"
        f" differ, first {', '.join(wrong[:3])}"
    )


def as_checkpoint(weights: Weights, class_names: Sequence[str] = (), wanted: str | None = None) -> Checkpoint:
    """Weights of another origin as a checkpoint of the released model they belong to, to be scored and asked.

    class_names: where there are as many as the heads have outputs, these; else the outputs' numbers. Pictures are
    prepared as the official evaluation does. wanted: see find_variant, which raises UserError.
    """
    variant = find_variant(weights, wanted)
    model = {"name": variant.name, **variant.overrides}
    fitting = len(class_names) == variant.num_classes
    crop_fraction = 1.0 if variant.name.endswith("_384") else 0.875
    meta = {
        "model": model,
        "class_names": list(class_names) if fitting else [str(k) for k in range(variant.num_classes)],
        "recipe": {"name": variant.name, "model": model, "evaluate": {"crop_fraction": crop_fraction}},
        "update": 0,
        "best_top1": None,
        "converted_from": {"file": weights.path.name, "kind": weights.kind},
    }
    return Checkpoint(weights.path, {f"model.{n}": t for n, t in weights.tensors.items()}, meta)
