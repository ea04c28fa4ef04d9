"""A small schema: dataclass fields with a meaning, a unit and a range, filled from plain values.

Every problem is collected, none is raised: a user sees all of them at once.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from .errors import nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What values a setting may have beyond its type."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def describe(self) -> str:
        """In words, for messages."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        parts = [
            f"{word} {value:,}" if isinstance(value, int) else f"{word} {value:g}"
            for word, value in (
                ("from", self.at_least),
                ("above", self.above),
                ("to", self.at_most),
                ("below", self.below),
            )
            if value is not None
        ]
        return " ".join(parts)

    def allows(self, value: Any) -> bool:
        """Whether a value, or each entry of a tuple, is within."""
        if isinstance(value, tuple):
            return all(self.allows(v) for v in value)
        if self.choices:
            return value is None or value in self.choices  # null only gets here where the type allows it
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return True
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def meaning(doc: str, **limits: Any) -> dict[str, Any]:
    """A field's metadata: a one-line meaning, unit included, and limits, see Limits."""
    return {"doc": doc, "limits": Limits(**limits)}


def setting(default: Any, doc: str, *, auto: str = "", machine: bool = False, **limits: Any) -> Any:
    """A dataclass field with a default, a meaning and limits.

    auto: how the word `auto` is answered from the data, for settings that may be left to it; see adapt.
    machine: it says where and how a run is done; another value trains the same, but for rounding. See departures.
    """
    return field(default=default, metadata={**meaning(doc, **limits), "auto": auto, "machine": machine})


def internal(default: Any) -> Any:
    """A dataclass field that is not a setting."""
    return field(default=default, metadata={"internal": True})


def settings_of(cls: Any) -> list[Field[Any]]:
    """The fields a user may set."""
    return [f for f in fields(cls) if not f.metadata.get("internal")]


def keys_with(mark: str, cls: Any, where: str = "") -> list[str]:
    """Dotted keys of the settings with a mark: `auto` or `machine`."""
    found, types_by_name = [], typing.get_type_hints(cls)
    for info in settings_of(cls):
        section = section_type(types_by_name[info.name])
        if section:
            found += keys_with(mark, section, _join(where, info.name))
        elif info.metadata.get(mark):
            found.append(_join(where, info.name))
    return found


def check_value(cls: Any, key: str, value: Any) -> Any:
    """A plain value as a section's setting takes it; key: dotted. Raises ValueError with what was expected."""
    name = key.rpartition(".")[2]
    info, kind = next(f for f in fields(cls) if f.name == name), typing.get_type_hints(cls)[name]
    ok, converted = convert(value, kind)
    if not (ok and info.metadata["limits"].allows(converted)):
        raise ValueError(f"{key}: expected {describe(kind, info.metadata['limits'])}, got {value!r}")
    return converted


def fill(
    cls: type[T], values: Any, problems: list[str], kinds: Mapping[str, type] | None = None, where: str = ""
) -> T | None:
    """An instance of the dataclass from a mapping; None after adding to `problems` what is wrong.

    kinds: subclasses to be used for sections, by their keys. where: the dotted key of this section, empty for all.
    """
    if not isinstance(values, Mapping):
        problems.append(f"{where or 'the recipe'}: expected a section with keys, got {values!r}")
        return None
    before = len(problems)
    types_by_name = {**typing.get_type_hints(cls), **(kinds or {})}
    known = {f.name: f for f in settings_of(cls)}
    for key in values:
        if key not in known:
            problems.append(f"unknown key {_join(where, key)}; {nearest(key, known)}")
    arguments: dict[str, Any] = {}
    for name, info in known.items():
        arguments[name] = _value(info, types_by_name[name], values, problems, _join(where, name))
    return cls(**arguments) if len(problems) == before else None


def _value(info: Field[Any], kind: Any, values: Mapping[str, Any], problems: list[str], key: str) -> Any:
    section = section_type(kind)
    if info.name not in values:
        if section and info.default is MISSING:
            return fill(section, {}, problems, where=key)
        if info.default is MISSING:
            problems.append(f"{key} is missing: {info.metadata['doc']}")
        return None if info.default is MISSING else info.default
    given = values[info.name]
    if section:
        return None if given is None and _optional(kind) else fill(section, given, problems, where=key)
    auto, limits = info.metadata.get("auto"), info.metadata["limits"]
    if auto and given == "auto":
        return info.default
    ok, value = convert(given, kind)
    if ok and limits.allows(value):
        return value
    expected = describe(kind, limits) + (" or auto" if auto else "")
    hint = f"; {nearest(given, limits.choices)}" if limits.choices and isinstance(given, str) else ""
    problems.append(f"{key}: expected {expected}, got {given!r}{hint}")
    return None


def convert(given: Any, kind: Any) -> tuple[bool, Any]:
    """(fits, value) of a plain value for a type: bool, int, float, str, tuples of them, and `X | None`."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(kind) if a is not type(None)]
        if given is None:
            return len(options) < len(typing.get_args(kind)), None
        return next(((True, v) for ok, v in (convert(given, o) for o in options) if ok), (False, None))
    if origin is tuple:
        return _convert_tuple(given, typing.get_args(kind))
    if kind is float:
        fits = isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
        return fits, float(given) if fits else None
    if kind is int:
        return isinstance(given, int) and not isinstance(given, bool), given
    return isinstance(given, kind), given


def _convert_tuple(given: Any, kinds: tuple[Any, ...]) -> tuple[bool, Any]:
    if not isinstance(given, (list, tuple)):
        return False, None
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(given)
    if len(kinds) != len(given):
        return False, None
    pairs = [convert(v, k) for v, k in zip(given, kinds, strict=True)]
    return all(ok for ok, _ in pairs), tuple(v for _, v in pairs)


def describe(kind: Any, limits: Limits) -> str:
    """What a setting takes, in plain words: 'a whole number from 1 or null'."""
    options = [a for a in (typing.get_args(kind) if _optional(kind) else (kind,)) if a is not type(None)]
    words = (
        limits.describe() if limits.choices else " ".join(filter(None, (describe_type(options[0]), limits.describe())))
    )
    return f"{words} or null" if _optional(kind) else words


def describe_type(kind: Any) -> str:
    """A type in plain words."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(a) for a in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list, each {describe_type(args[0])}"
        return f"a list of {len(args)}, each {describe_type(args[0])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    return words.get(kind, str(kind))


def section_type(kind: Any) -> Any:
    """The dataclass behind the type of a section, also behind `Section | None`; None for a plain value."""
    options = [a for a in (typing.get_args(kind) or (kind,)) if is_dataclass(a)]
    return options[0] if options else None


def _optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
