"""The exceptions that tightrope raises.

    TightropeError
    ├── InputError      what the user handed over cannot be worked with (script, factory, batch, option)
    ├── RecordError     the training step could not be recorded
    └── RegistryError   two definitions claim the same name, or one is malformed

Every message has three parts: what was asked, what was found, what to do.
"""

from __future__ import annotations


class TightropeError(Exception):
    """Base of all errors that tightrope raises on purpose.

    Args:
        asked: what the user asked for, as a clause ("check a model").
        found: what was found instead, with module path, op, shape, dtype and file:line where known.
        remedy: what to do about it, in the imperative.
    """

    def __init__(self, asked: str, found: str, remedy: str) -> None:
        super().__init__(f"{asked}: {found}. {remedy}")
        self.asked, self.found, self.remedy = asked, found, remedy


class InputError(TightropeError):
    """What the user handed over cannot be worked with."""


class RecordError(TightropeError):
    """The training step could not be recorded."""


class RegistryError(TightropeError):
    """Two definitions claim the same name, or one is malformed."""
