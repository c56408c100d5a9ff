"""Which `DataLoader` a script's batches come from, and where it was built."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader

from tightrope.tape.source import Location, locate


class Loaders:
    """Context manager that remembers the loader whose iteration began last while autograd was on."""

    def __init__(self) -> None:
        self._built: weakref.WeakKeyDictionary[Any, Location] = weakref.WeakKeyDictionary()
        self._latest: weakref.ref[Any] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Loaders:
        enter = self._open.enter_context
        enter(mock.patch.object(DataLoader, "__init__", self._constructor(DataLoader.__init__)))
        enter(mock.patch.object(DataLoader, "__iter__", self._iteration(DataLoader.__iter__)))
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    @property
    def latest(self) -> Any | None:
        """The loader; None when there is none any more."""
        return self._latest() if self._latest is not None else None

    def built(self, loader: Any) -> Location | None:
        """The line on which a loader was built, if that was watched."""
        return self._built.get(loader) if loader is not None else None

    def _constructor(self, plain: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(plain)
        def init(loader: Any, *args: Any, **kwargs: Any) -> None:
            plain(loader, *args, **kwargs)
            self._built[loader] = locate(sys._getframe(1), skip=loader)

        return init

    def _iteration(self, plain: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        @functools.wraps(plain)
        def iterate(loader: Any) -> Iterator[Any]:
            if torch.is_grad_enabled():
                self._latest = weakref.ref(loader)
            return plain(loader)

        return iterate


__all__ = ["Loaders"]
