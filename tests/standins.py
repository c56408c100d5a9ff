"""Stand-ins for packages that a library wants to import but that a test does not need."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from enum import Enum
from typing import Any


class _Anything(types.ModuleType):
    """A module whose every attribute exists: classes that do nothing, or modules below it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made: Any = type(name, (), {"__init__": lambda self, *args, **kwargs: None, "__call__": lambda self, x: x})
        setattr(self, name, made)
        return made


def torchvision() -> None:
    """Make `import timm` work where torchvision is not installed."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    names = (
        "torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops",
        "torchvision.ops.misc", "torchvision.models", "torchvision.models.feature_extraction", "torchvision.datasets",
        "torchvision.datasets.folder", "torchvision.transforms.v2", "torchvision.utils",
    )  # fmt: skip
    for name in names:
        module = _Anything(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    modes = Enum(
        "InterpolationMode",
        {m: m.lower() for m in ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")},
    )
    for name in ("torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name].InterpolationMode = modes  # type: ignore[attr-defined]
    sys.modules["torchvision"].__version__ = "0.0"  # type: ignore[attr-defined]
