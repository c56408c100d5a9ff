"""Roles follow the elements of a tensor through moves, judged on tensors whose elements carry their role."""

from __future__ import annotations

import pytest
import torch

from tightrope.roles import Axes, Axis, Role, broadcast, default_axes

S, T, C = Role.SAMPLE, Role.SITE, Role.CHANNEL


def axes(*dims: tuple[Role, int] | list[tuple[Role, int]]) -> Axes:
    return Axes(tuple(tuple(Axis(*a) for a in (d if isinstance(d, list) else [d])) for d in dims))


TOKENS = axes((S, 4), (T, 6), (C, 10))


def strides_of(role: Role, layout: Axes) -> torch.Tensor:
    """A tensor of this layout whose elements are the position along one role."""
    flat = [axis for dim in layout.dims for axis in dim]
    x = torch.zeros([axis.size for axis in flat], dtype=torch.int64)
    count = 1
    for place in reversed(range(len(flat))):
        if flat[place].role is role:
            steps = torch.arange(flat[place].size) * count
            x = x + steps.reshape([-1 if i == place else 1 for i in range(len(flat))])
            count *= flat[place].size
    return x.reshape(layout.shape)


@pytest.mark.parametrize(
    "shape",
    [(24, 10), (4, 60), (240,), (4, 6, 2, 5), (4, 2, 3, 10), (2, 2, 6, 10), (4, 1, 6, 10), (4, 6, 10), (2, 12, 10)],
)
@pytest.mark.parametrize("role", list(Role))
def test_reshape_keeps_every_position_of_every_role(shape: tuple[int, ...], role: Role) -> None:
    moved = TOKENS.reshape(shape)
    assert moved.shape == shape
    assert torch.equal(strides_of(role, TOKENS).reshape(shape), strides_of(role, moved))


def test_reshape_and_back_gives_the_same_roles() -> None:
    assert TOKENS.reshape((24, 10)).reshape((4, 6, 10)) == TOKENS
    assert TOKENS.reshape((4, 60)).reshape((4, 6, 10)) == TOKENS


def test_a_boundary_inside_two_axes_still_gives_the_shape() -> None:
    assert axes((S, 4), (C, 9)).reshape((6, 6)).shape == (6, 6)


def test_permute() -> None:
    assert TOKENS.permute((2, 0, 1)) == axes((C, 10), (S, 4), (T, 6))


def test_drop_and_resize() -> None:
    assert TOKENS.drop([-1]) == axes((S, 4), (T, 6))
    assert TOKENS.resize(1, 3) == axes((S, 4), (T, 3), (C, 10))
    assert TOKENS.resize(-1, 3, T) == axes((S, 4), (T, 6), (T, 3))
    assert TOKENS.resize(0, 1).shape == (1, 6, 10)


def test_count_and_has_look_into_merged_dimensions() -> None:
    merged = TOKENS.reshape((24, 10))
    assert merged.count(S) == 4
    assert merged.count(T) == 6
    assert merged.has(0, S)
    assert merged.has(0, T)
    assert not merged.has(1, S)
    assert merged.role(0) is T  # the longest axis speaks for the dimension


def test_broadcast_fills_missing_dimensions_and_prefers_samples() -> None:
    bias = axes((C, 10))
    positions = axes((T, 6), (C, 10))
    assert broadcast(TOKENS, bias) == TOKENS
    assert broadcast(bias, TOKENS) == TOKENS
    assert broadcast(positions, TOKENS) == TOKENS
    column, row = axes((S, 4), []), axes([], (S, 4))
    assert broadcast(column, row) == axes((S, 4), (S, 4))


@pytest.mark.parametrize(
    ("shape", "samples", "expected"),
    [
        ((8, 5), 8, [S, C]),
        ((8, 7, 5), 8, [S, T, C]),
        ((8, 3, 7, 5), 8, [S, C, T, T]),
        ((8, 3, 2, 7, 5), 8, [S, C, T, T, T]),
        ((5,), None, [C]),
        ((6, 5), None, [T, C]),
        ((), 8, []),
    ],
)
def test_default_roles(shape: tuple[int, ...], samples: int | None, expected: list[Role]) -> None:
    found = default_axes(shape, samples)
    assert found.shape == shape
    assert [found.role(i) for i in range(len(shape))] == expected


def test_describe_names_the_roles() -> None:
    assert TOKENS.describe() == "sample 4 x site 6 x channel 10"
    assert TOKENS.reshape((24, 10)).describe() == "sample 4·site 6 x channel 10"
