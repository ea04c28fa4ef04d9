"""Reads a pickle without running it: numbers, texts and containers are built, and named things only from a list.

A pickle is a program for a small stack machine. Python's own machine imports and calls what the program names. This
one, of the format described in Python's `pickletools`, knows only the instructions below; `pickletools` splits the
bytes into instructions and runs nothing.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

Allowed = Mapping[str, Callable[..., Any] | None]
"""`module.name` to the function of ours that stands for it; None where it may be named, not called."""

_LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING"} | {
    *("BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(Exception):
    """The pickle names something that is not on the list; the text is its name."""


@dataclass(frozen=True)
class Named:
    """An allowed thing that a pickle named, `torch.FloatStorage` for example."""

    name: str


@dataclass(frozen=True)
class Inert:
    """Stands for an object of a known class whose contents nobody here needs."""

    name: str


def read_pickle(file: BinaryIO, allowed: Allowed, persistent: Callable[[Any], Any]) -> Any:
    """The object of the pickle at the file's position, which ends behind it.

    persistent: what a persistent id (of a tensor's storage) stands for.
    Raises Refused, with its name, for anything not allowed, and ValueError for a pickle that is not whole.
    """
    machine = _Machine(allowed, persistent)
    try:
        for instruction, argument, _ in pickletools.genops(file):
            if instruction.name == "STOP":
                return machine.stack.pop()
            machine.do(instruction.name, argument)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, RecursionError) as error:
        raise ValueError(f"its pickle cannot be read: {error}") from error
    raise ValueError("its pickle has no end")


def plain_dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    """A dict of (key, value) pairs; keys must be plain, so that hashing them costs nothing."""
    found = {}
    for key, value in items:
        if not (key is None or isinstance(key, (str, int, float, bytes))):
            raise ValueError(f"a {type(key).__name__} as the key of a dict")
        found[key] = value
    return found


class _Machine:
    def __init__(self, allowed: Allowed, persistent: Callable[[Any], Any]):
        self.allowed, self.persistent = allowed, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(self.stack) < count:
                raise ValueError(f"{name} of {len(self.stack)} items")
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif hasattr(self, f"_{name.lower()}"):
            getattr(self, f"_{name.lower()}")(argument)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"the pickle instruction {name}")

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _tuple(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(tuple(items))

    def _list(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(plain_dict(zip(items[::2], items[1::2], strict=True)))

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._marked())

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self, _: Any) -> None:
        self._update(self._marked())

    def _update(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError(f"sets items of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(plain_dict(zip(items[::2], items[1::2], strict=True)))

    def _global(self, argument: str) -> None:
        self._name(argument.replace(" ", ".", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(f"{module}.{name}")

    def _name(self, name: str) -> None:
        if name not in self.allowed:
            raise Refused(name)
        self.stack.append(Named(name))

    def _reduce(self, _: Any) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        if not isinstance(what, Named) or not isinstance(arguments, tuple):
            raise ValueError(f"calls a {type(what).__name__}")
        function = self.allowed[what.name]
        if function is None:
            raise Refused(f"a call of {what.name}")
        self.stack.append(function(*arguments))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        """The attributes of an object: of a namespace, or of an ordered dict, where they are versions. Not needed."""
        self.stack.pop()
        if not isinstance(self.stack[-1], (Inert, dict)):
            raise ValueError(f"sets attributes of a {type(self.stack[-1]).__name__}")

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))
