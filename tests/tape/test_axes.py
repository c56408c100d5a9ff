"""Roles travel through operations: judged by tensors whose elements say which sample, site and channel they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.roles import Axes, Role
from tightrope.tape import Recorder, Tape, Value
from tightrope.tape.axes import infer, of_source
from tightrope.tape.tape import Entry

SIZES = {Role.SAMPLE: 3, Role.SITE: 4, Role.CHANNEL: 5}
STEP = {Role.SAMPLE: 10_000, Role.SITE: 100, Role.CHANNEL: 1}


class Axial:
    """An observer that infers the axes of every value, as a forecast does."""

    def __init__(self) -> None:
        self.axes: dict[int, Axes] = {}
        self.last = -1

    def on_value(self, tape: Tape, value: Value, tensor: Tensor, entry: Entry | None) -> None:
        if entry is None:
            self.axes[value.id] = of_source(tape, value)
        elif value.id == entry.outputs[0]:
            for number in entry.inputs:
                if tape.values[number].producer is None:
                    self.axes[number] = of_source(tape, tape.values[number], entry)
            self.axes.update(zip(entry.outputs, infer(tape, entry, self.axes), strict=True))
        self.last = value.id

    def on_gradient(self, value: Value, gradient: Tensor) -> None:
        pass

    def on_backward(self, tape: Tape) -> None:
        pass


def axes_after(function: Callable[..., Tensor], *inputs: Tensor) -> Axes:
    """Axes of a function's result."""
    observer = Axial()
    body = nn.Module()
    body.forward = function  # type: ignore[assignment]
    with Recorder(observer):
        result = body(*inputs)
    found = observer.axes[observer.last]
    assert found.shape == tuple(result.shape)
    return found


def coded() -> Tensor:
    """x[n, s, k] = 10000 n + 100 s + k."""
    grids = [torch.arange(size, dtype=torch.float64) * STEP[role] for role, size in SIZES.items()]
    return grids[0][:, None, None] + grids[1][:, None] + grids[2]


def roles_of(y: Tensor) -> list[set[Role]]:
    """Which roles really vary along each dimension of a rearranged coded tensor."""
    digits = {Role.SAMPLE: y // 10_000, Role.SITE: y % 10_000 // 100, Role.CHANNEL: y % 100}
    return [{role for role, d in digits.items() if bool((d.amax(i) != d.amin(i)).any())} for i in range(y.ndim)]


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda x: x.permute(2, 0, 1),
    "permute list": lambda x: torch.permute(x, (1, 2, 0)),
    "transpose": lambda x: x.transpose(-1, 0),
    "mT": lambda x: x.mT,
    "movedim": lambda x: x.movedim(0, -1),
    "movedim several": lambda x: torch.movedim(x, (0, 1), (2, 0)),
    "flatten all": lambda x: x.flatten(),
    "flatten sites": lambda x: x.flatten(1),
    "merge batch and time": lambda x: x.reshape(12, 5),
    "merge and split": lambda x: x.reshape(12, 5).view(3, 4, 5),
    "split heads": lambda x: x.repeat(1, 1, 2).view(3, 4, 2, 5).transpose(1, 2),
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1),
    "unflatten": lambda x: x.flatten(0, 1).unflatten(0, (3, 4)),
    "select site": lambda x: x.select(1, 2),
    "index site": lambda x: x[:, 0],
    "index ellipsis": lambda x: x[..., 0],
    "slice": lambda x: x[:, 1:3],
    "slice with new dimension": lambda x: x[:, None, :, 1:],
    "index from behind": lambda x: x[:, -1],
    "chunk": lambda x: x.chunk(2, dim=1)[0],
    "split": lambda x: x.split([2, 3], dim=-1)[1],
    "unbind": lambda x: x.unbind(1)[1],
    "cat sites": lambda x: torch.cat([x, x + 400], 1),
    "cat batch": lambda x: torch.cat([x, x + 30_000], 0),
    "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(0),
    "narrow": lambda x: x.narrow(2, 1, 3),
    "mean over sites": lambda x: x.mean(1),
    "mean over channels, kept": lambda x: x.mean(-1, keepdim=True),
    "sum over batch": lambda x: x.sum(0) % 10_000,
    "maximum over sites": lambda x: x.amax(dim=1),
    "arithmetic": lambda x: x * 1.0 + 0.0,
    "clone": lambda x: x.clone().contiguous(),
    "masked": lambda x: x.masked_fill(torch.zeros(4, 5, dtype=torch.bool), 0.0),
    "repeat interleave": lambda x: x.repeat_interleave(2, dim=1),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name: str) -> None:
    move = MOVES[name]
    found = axes_after(move, coded())
    real = roles_of(move(coded()))
    for dim, roles in enumerate(real):
        held = {axis.role for axis in found.dims[dim] if axis.size > 1}
        assert roles <= held, f"{name}: dimension {dim} varies with {roles}, said to hold {held}"
        assert held <= roles or len(roles) == 0, f"{name}: dimension {dim} is said to hold {held}, is {roles}"


S, T, C = Role.SAMPLE, Role.SITE, Role.CHANNEL


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (lambda x: F.conv2d(x, torch.ones(6, 3, 3, 3)), [(2, 3, 8, 8)], [S, C, T, T]),
        (lambda x: F.conv1d(x, torch.ones(6, 3, 3)), [(2, 3, 8)], [S, C, T]),
        (lambda x: F.max_pool2d(x, 2), [(2, 3, 8, 8)], [S, C, T, T]),
        (lambda x: F.adaptive_avg_pool2d(x, 3), [(2, 3, 8, 8)], [S, C, T, T]),
        (lambda x: F.linear(x, torch.ones(7, 5)), [(2, 4, 5)], [S, T, C]),
        (lambda x: x @ torch.ones(5, 7), [(2, 4, 5)], [S, T, C]),
        (lambda q: q @ q.transpose(-1, -2), [(2, 4, 5)], [S, T, T]),
        (lambda q: torch.bmm(q, q.mT).softmax(-1), [(2, 4, 5)], [S, T, T]),
        (lambda q: F.scaled_dot_product_attention(q, q, q), [(2, 4, 5)], [S, T, C]),
        (lambda x: F.layer_norm(x, (5,)), [(2, 4, 5)], [S, T, C]),
        (lambda x: torch.stack([x, x], 1), [(2, 5)], [S, T, C]),
        (lambda x: torch.addmm(torch.ones(7), x, torch.ones(5, 7)), [(2, 5)], [S, C]),
        (lambda x: F.cross_entropy(x, torch.zeros(2, dtype=torch.long), reduction="none"), [(2, 5)], [S]),
        (lambda x: F.mse_loss(x, x * 2), [(2, 5)], []),
    ],
)  # fmt: skip
def test_operations_that_make_dimensions(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], expected: list[Role]
) -> None:
    found = axes_after(function, *(torch.randn(shape) for shape in shapes))
    assert [found.role(i) for i in range(len(found.dims))] == expected


def test_token_indices_are_samples_and_sites() -> None:
    found = axes_after(lambda ids: F.embedding(ids, torch.randn(9, 6)), torch.zeros(2, 7, dtype=torch.long))
    assert [found.role(i) for i in range(3)] == [S, T, C]


def test_positions_have_no_sample() -> None:
    found = axes_after(lambda x: F.embedding(torch.arange(7), torch.randn(9, 6)) + x[:1, :, 0:1], torch.zeros(2, 7, 3))
    assert not any(axis.role is S for dim in found.dims for axis in dim)


@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_know_which_dimension_is_time(batch_first: bool) -> None:
    layer = nn.LSTM(5, 6, batch_first=batch_first)
    found = axes_after(lambda x: layer(x)[0] * 1.0, torch.randn(2, 9, 5))
    assert [found.role(i) for i in range(3)] == ([S, T, C] if batch_first else [T, S, C])


def test_an_unknown_operation_is_read_by_its_sizes() -> None:
    found = axes_after(lambda x: torch.cdist(x, x), torch.randn(3, 4, 5))
    assert found.shape == (3, 4, 4)
    assert found.role(0) is S


def test_a_batch_that_meets_itself_keeps_both_sample_axes() -> None:
    found = axes_after(lambda x: x - x.flatten(), torch.randn(6, 1))
    assert [found.role(i) for i in range(2)] == [S, S]
