"""The names that the official code, timm and MindCV give to the same tensors. The values lie alike in all three.

| official                                | timm          | MindCV                                             |
|-----------------------------------------|---------------|----------------------------------------------------|
| `pos_embed.0`, `cls_token.0`            | `pos_embed_0` | as official                                        |
| `blocks.0.` / `blocks.K.`, K > 0        | as official   | `0.` / `0.blocks.0.K.`: its list renames as it grows |
| `fusion.I.`, where L = 0                | as official   | `fusion.I.0.`                                      |
| `weight`, `bias` of a norm              | as official   | `gamma`, `beta`                                    |

That is CrossViT's. The other families' official names are the suite's own; timm, which has DeiT, uses the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OFFICIAL, TIMM, MINDCV, SUITE, OTHER = "official", "timm", "mindcv", "suite", "other"
_TOKENS = re.compile(r"^(pos_embed|cls_token)([._])([01])$")
_ENCODER = re.compile(r"^(?:0\.)?blocks\.(?:0\.)?(\d+)\.(?=(?:blocks|projs|fusion|revert_projs)\.)")
_FIRST_ENCODER = re.compile(r"^0\.(?=(?:blocks|projs|fusion|revert_projs)\.)")
_FUSION = re.compile(r"(\.fusion\.[01]\.)0\.")
_BUFFER = re.compile(
    r"^layers\.\d+\.blocks\.\d+\.(?:attn\.biases|attn\.relative_position_index|attn_mask)$|^.*\.num_batches_tracked$"
)
_OF_OTHERS = {
    "crossformer": {"layers.0.blocks.0.attn.pos.pos_proj.weight"},
    "deit": {"cls_token", "pos_embed", "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight"},
    "cabvit": {"layer_2.blocks.0.attention_biases"},
}
"""Names that tell the other families' weights."""
_NORM = {"gamma": "weight", "beta": "bias"}


def family(names: Iterable[str]) -> str:
    """Whose names these are: OFFICIAL, TIMM or MINDCV for a CrossViT, OFFICIAL for the suite's other families.

    OTHER for anything else.
    """
    names = list(names)
    marks = {m[2] for m in map(_TOKENS.match, names) if m}
    if not marks:
        return OFFICIAL if other_family(names) else OTHER
    if "_" in marks:
        return TIMM
    return MINDCV if any(n.endswith((".gamma", ".beta")) for n in names) else OFFICIAL


def other_family(names: Iterable[str]) -> str | None:
    """The suite's family, other than CrossViT, whose official names are among these; None where there is none."""
    given = set(names)
    return next((family for family, marks in _OF_OTHERS.items() if marks <= given), None)


def numerics_of(kind: str) -> str | None:
    """The numerics that weights with these names were trained with; None for what is no model of the suite."""
    return {OTHER: None, MINDCV: MINDCV}.get(kind, OFFICIAL)


def to_official(names: Iterable[str]) -> dict[str, str]:
    """Each name's official one; names of another family of models stay as they are. Raises ValueError for a clash."""
    names = list(names)
    kind = family(names)
    if kind == TIMM:
        found = {n: _TOKENS.sub(r"\1.\3", n) for n in names}
    elif kind == MINDCV:
        found = {n: _from_mindcv(n) for n in names}
        if not any(re.search(r"\.fusion\.[01]\.1\.", n) for n in names):  # L = 0: one block, stored bare
            found = {n: _FUSION.sub(r"\1", o) for n, o in found.items()}
    else:
        return {n: n for n in names}
    if len(set(found.values())) < len(found):
        raise ValueError("two of its tensors have the same official name")
    return found


def is_buffer(name: str) -> bool:
    """Whether a tensor is no weight: a table in older CrossFormer checkpoints, which follows from the sizes, or the
    counter of batches that PyTorch's batch norms have."""
    return bool(_BUFFER.match(name))


def to_timm(name: str) -> str:
    """timm's name for an official one."""
    return _TOKENS.sub(r"\1_\3", name)


def _from_mindcv(name: str) -> str:
    name = _ENCODER.sub(r"blocks.\1.", name) if _ENCODER.match(name) else _FIRST_ENCODER.sub("blocks.0.", name)
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_NORM[last]}" if last in _NORM else name
