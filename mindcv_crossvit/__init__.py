"""CrossViT for MindSpore: models, recipes and the training that goes with them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import mindcv_bridge
from .models.catalog import list_models

# Threads that wait by spinning take the time of those that work; read when an OpenMP library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from .models.registry import create_model
    from .weights.load import load_weights

__version__ = "0.1.0"
__all__ = ["create_model", "list_models", "load_weights"]

mindcv_bridge.install()


def __getattr__(name: str) -> Any:
    """Imported on first use: recipes and data workers must start without MindSpore."""
    if name == "create_model":
        from .models.registry import create_model

        return create_model
    if name == "load_weights":
        from .weights.load import load_weights

        return load_weights
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
