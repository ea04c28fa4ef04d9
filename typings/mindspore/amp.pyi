"""MindSpore, untyped: its own annotations are those of the eager calls and do not fit graph mode."""

from typing import Any

def __getattr__(name: str) -> Any: ...
