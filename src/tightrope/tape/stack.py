"""Where a mode stands on torch's stack of function modes.

The recorder comes and goes in the middle of a script, between the entering and leaving of the script's own
modes. A mode that leaves takes the top of the stack with it, whichever that is; so the recorder stands at the
bottom, above a default device.
"""

from __future__ import annotations

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext


def holds(mode: TorchFunctionMode) -> bool:
    """Whether a mode sees the next call."""
    return any(other is mode for other in _get_current_function_mode_stack())


def insert(mode: TorchFunctionMode) -> None:
    """Put a mode below all others but a default device."""
    present = list(_get_current_function_mode_stack())
    below = 1 if present and isinstance(present[0], DeviceContext) else 0
    _replace(len(present), [*present[:below], mode, *present[below:]])


def remove(mode: TorchFunctionMode) -> bool:
    """Take a mode off, wherever it stands; whether it stood anywhere."""
    present = list(_get_current_function_mode_stack())
    if not holds(mode):
        return False
    _replace(len(present), [other for other in present if other is not mode])
    return True


def _replace(count: int, modes: list[TorchFunctionMode]) -> None:
    for _ in range(count):
        _pop_mode()
    for mode in modes:
        _push_mode(mode)
