"""The law of a parameter: its own numbers, or what its initialiser draws when it has none yet."""

from __future__ import annotations

from tightrope.roles import Axes
from tightrope.rules.state import State
from tightrope.tape.initialisers import draw_of
from tightrope.tape.tape import Value


def weight_state(value: Value, axes: Axes) -> State:
    """The state of a parameter or buffer: exact when it has content, the law of its initialiser on meta.

    Raises:
        NotImplementedError: it has no numbers and its initialiser was not followed.
    """
    content = value.content
    if content is not None and not content.is_meta:
        return State.of_content(axes, content)
    draw = None if content is None else draw_of(content)
    if draw is None:
        raise NotImplementedError(f"{value.name} is on the meta device and its initialiser was not recorded")
    return State.of(axes, draw.mean, residual=draw.variance)
