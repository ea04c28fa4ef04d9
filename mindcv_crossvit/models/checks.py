"""What the configurations of all families ask of their values, without MindSpore."""

from __future__ import annotations

from typing import Any


def is_count(value: Any) -> bool:
    """Whether it is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def frozen(value: Any) -> Any:
    """The same with tuples for lists, at every depth."""
    return tuple(frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def indivisible(name: str, value: int, by_name: str, by: int, where: str = "") -> str:
    """The problem of a size that is not a multiple of another, with the nearest that are; empty when it is one."""
    if value % by == 0:
        return ""
    near = max(value // by, 1) * by
    return f"{name} {value}{where} is not divisible by its {by_name} {by} (nearest: {near}, {near + by})"
