"""Finds where a script evaluates: regions without gradient, and models that it puts into evaluation mode.

What stands in the script's way is one Python frame around the entering and leaving of `no_grad`, `inference_mode` and
`set_grad_enabled` and around `Module.train`, which asks one flag while nothing is looked for.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import nn

TRIES = 3
"""Fruitless regions at one line after which it is passed by: an update of averaged weights calls no model."""
_DECORATED = "torch.utils._contextlib"


class Regions:
    """Context manager that tells of regions in which a script may evaluate.

    Args:
        begin: called when such a region is entered while `armed`; whether it is followed.
        end: called when it is left; whether it was an evaluation.

    Attributes:
        armed: whether regions are looked for.
    """

    def __init__(self, begin: Callable[[], bool], end: Callable[[], bool]) -> None:
        self.begin, self.end = begin, end
        self.armed = False
        self._inside: object = None
        self._line: tuple[str, int] = ("", 0)
        self._tried: Counter[tuple[str, int]] = Counter()
        self._open = ExitStack()

    def __enter__(self) -> Regions:
        enter = self._open.enter_context
        for kind in (torch.no_grad, torch.inference_mode, torch.set_grad_enabled):
            enter(mock.patch.object(kind, "__enter__", self._entering(kind.__enter__)))
            enter(mock.patch.object(kind, "__exit__", self._leaving(kind.__exit__)))
        enter(mock.patch.object(nn.Module, "train", self._training(nn.Module.train)))
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()
        self.close()

    def close(self) -> None:
        """Whatever region is open ends here: the script trains."""
        if isinstance(self._inside, nn.Module):
            self._leave()

    def _entering(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def enter(context: Any) -> Any:
            result = plain(context)
            if self.armed and self._inside is None and not torch.is_grad_enabled():
                self._enter(context, sys._getframe(1))
            return result

        return enter

    def _leaving(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def leave(context: Any, *exc: Any) -> Any:
            if self._inside is context:
                self._leave()
            return plain(context, *exc)

        return leave

    def _training(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def train(module: nn.Module, mode: bool = True) -> Any:
            if mode:
                self.close()
                return plain(module, mode)
            result = plain(module, mode)
            wanted = self.armed and self._inside is None and torch.is_grad_enabled()
            if wanted and not isinstance(sys._getframe(2).f_locals.get("self"), nn.Module):
                self._enter(module, sys._getframe(1))
            return result

        return train

    def _enter(self, owner: object, frame: FrameType) -> None:
        user = _user(frame)
        if user is None:
            return
        line = (user.f_code.co_filename, user.f_lineno)
        if self._tried[line] < TRIES and self.begin():
            self._inside, self._line = owner, line

    def _leave(self) -> None:
        self._inside = None
        self._tried[self._line] += 0 if self.end() else 1


def _user(frame: FrameType | None) -> FrameType | None:
    """The frame that opened a region; None for one that torch opened for itself."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == _DECORATED:  # the region is a decorated function: it belongs to whoever wrote that
            owner = getattr(frame.f_locals.get("func"), "__module__", None) or ""
            if owner.partition(".")[0] == "torch":
                return None
        elif name != "torch.nn.modules.module":  # Module.eval
            example = name.startswith("tightrope.checks.") and frame.f_code.co_name == "train"  # stands for a script
            return None if name.partition(".")[0] in ("torch", "tightrope") and not example else frame
        frame = frame.f_back
    return None


__all__ = ["Regions"]
