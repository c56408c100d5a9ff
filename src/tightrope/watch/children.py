"""What watches a script stays behind when the script forks: nothing is watched in a loader's worker."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Leaving(Protocol):
    """What is told that it is in a child process now."""

    def leave_child(self) -> None:
        """Stop at once, and leave everything as a script that is not watched has it."""


_watching: weakref.WeakSet[Leaving] = weakref.WeakSet()


def guard(watcher: Leaving) -> None:
    """Tell `watcher` in every process that is forked from now on."""
    _watching.add(watcher)


def release(watcher: Leaving) -> None:
    """Tell it no more."""
    _watching.discard(watcher)


def _in_child() -> None:
    for watcher in _watching:
        watcher.leave_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
