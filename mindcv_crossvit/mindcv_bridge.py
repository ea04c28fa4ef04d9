"""Our models in MindCV's registry: CrossViT under timm's names (`crossvit_15_240`), which MindCV does not use.

MindCV is not imported for it: whichever of the two packages is imported second brings the models in.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .models.catalog import VARIANTS

_MODULE = "mindcv.models"


def timm_name(name: str) -> str:
    """`crossvit_15` -> `crossvit_15_240`, `crossvit_15_dagger_384` -> `crossvit_15_dagger_408`; others as they are."""
    if not name.startswith("crossvit"):
        return name
    return f"{name.removesuffix('_384')}_408" if name.endswith("_384") else f"{name}_240"


def install() -> None:
    """Registers the models now if MindCV is loaded, else as soon as it is."""
    if _MODULE in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterMindCV) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterMindCV())


def _register() -> None:
    from mindcv.models.registry import register_model

    module = ModuleType("mindcv_crossvit.models.mindcv_names")
    sys.modules[module.__name__] = module
    module.__dict__["__all__"] = []
    for name in VARIANTS:
        register_model(_entrypoint(name, module.__name__))


def _entrypoint(name: str, module: str) -> Any:
    def build(pretrained: bool = False, num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> Any:
        if pretrained:
            raise ValueError(f"{timm_name(name)}: no weights are published; load them with ckpt_path")
        if in_channels != 3:
            raise ValueError(f"{timm_name(name)}: takes pictures of 3 channels, not {in_channels}")
        from .models.registry import create_model

        return create_model(name, num_classes, **kwargs)

    build.__name__ = build.__qualname__ = timm_name(name)
    build.__module__ = module
    build.__doc__ = f"{name} of mindcv_crossvit, with the official numerics unless told otherwise."
    return build


class _AfterMindCV(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets Python load `mindcv.models` as always and registers our models right after."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Only `mindcv.models` is ours to find."""
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        self._real = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the real loader does."""
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """The module itself, then the registration."""
        self._real.exec_module(module)
        _register()
