"""The law of a parameter: its own numbers, or what its initialiser draws when it has none yet."""

from __future__ import annotations

from torch import Tensor

from tightrope.roles import Axes
from tightrope.rules.state import State
from tightrope.tape.draws import Draw
from tightrope.tape.initialisers import draw_of
from tightrope.tape.tape import Kind, Value


def weight_state(value: Value, axes: Axes, *, by_law: bool = False) -> State:
    """The state of a parameter or buffer: exact when it has content, the law of its initialiser on meta.

    Args:
        value: the parameter or buffer.
        axes: of its dimensions.
        by_law: keep of a parameter's numbers only their moments: the law that they look drawn from.

    Raises:
        NotImplementedError: it has no numbers and its initialiser was not followed.
    """
    content = value.content
    drawn = by_law and value.kind is Kind.PARAMETER
    if content is not None and not content.is_meta and not drawn:
        return State.of_content(axes, content)
    draw = None if content is None else draw_of(content)
    if draw is None and content is not None and not content.is_meta:
        draw = _moments(content.detach().double())
    if draw is None:
        raise NotImplementedError(f"{value.name} is on the meta device and its initialiser was not recorded")
    return State.of(axes, draw.mean, residual=draw.variance)


def _moments(numbers: Tensor) -> Draw:
    """The law that numbers look drawn from; a mean within three standard errors of zero is zero."""
    mean, variance = float(numbers.mean()), float(numbers.var(unbiased=False))
    if mean**2 <= 9 * variance / numbers.numel():
        return Draw(0.0, variance + mean**2)
    return Draw(mean, variance)
