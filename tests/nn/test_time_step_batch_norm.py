from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.nn import TimeStepBatchNorm


def drifting(n: int, t: int, c: int = 4) -> Tensor:
    """Sequences whose mean and scale grow with time."""
    steps = torch.arange(1.0, t + 1).view(1, t, 1)
    return torch.randn(n, t, c) * steps + 3 * steps


def by_step(norms: list[nn.BatchNorm1d], x: Tensor) -> Tensor:
    return torch.stack([norm(x[:, t]) for t, norm in enumerate(norms)], 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_is_a_batch_norm_for_each_step(batch_first: bool, momentum: float | None) -> None:
    norms = [nn.BatchNorm1d(4, momentum=momentum).double() for _ in range(5)]
    mine = TimeStepBatchNorm(4, 5, momentum=momentum, batch_first=batch_first).double()

    def run(x: Tensor) -> Tensor:
        return mine(x) if batch_first else mine(x.transpose(0, 1)).transpose(0, 1)

    for _ in range(4):
        x = drifting(8, 5).double()
        y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
        found, expected = run(y), by_step(norms, z)
        (found**3).sum().backward()
        (expected**3).sum().backward()
        assert torch.allclose(found, expected) and torch.allclose(y.grad, z.grad, atol=1e-7)  # type: ignore[arg-type]
    for norm in norms:
        norm.eval()
    mine.eval()
    x = drifting(3, 5).double()
    assert torch.allclose(run(x), by_step(norms, x))
    assert torch.allclose(mine.running_var, torch.stack([norm.running_var for norm in norms]))  # type: ignore[misc]


def test_drift_is_removed_where_pooled_statistics_leave_it() -> None:
    x = drifting(4000, 6)
    own = TimeStepBatchNorm(4, 6)(x).mean((0, 2))
    pooled = nn.BatchNorm1d(4)(x.transpose(1, 2)).mean((0, 1))
    assert own.abs().max().item() < 1e-5 and (pooled.max() - pooled.min()).item() > 1


def test_padding_counts_for_nothing() -> None:
    x = drifting(6, 5).double()
    lengths = torch.tensor([5, 3, 5, 2, 4, 5])
    wild = x.clone()
    for n, length in enumerate(lengths):
        wild[n, length:] = 1e6
    mine, twin = TimeStepBatchNorm(4, 5).double(), TimeStepBatchNorm(4, 5).double()
    found = mine(wild, lengths)
    assert torch.equal(found, twin(x, lengths))
    for t in range(5):
        kept = lengths > t
        assert torch.allclose(found[kept, t], nn.BatchNorm1d(4).double()(x[kept, t]))
        assert torch.all(found[~kept, t] == 0)
    packed = mine.eval()(wild, lengths)
    assert torch.all(packed[3, 2:] == 0)


def test_full_lengths_change_nothing() -> None:
    x = drifting(6, 5)
    assert torch.allclose(TimeStepBatchNorm(4, 5)(x, torch.full((6,), 5)), TimeStepBatchNorm(4, 5)(x), atol=1e-6)


def test_longer_sequences_share_the_last_slot() -> None:
    x = drifting(50, 7).double()
    mine = TimeStepBatchNorm(4, 3, momentum=None).double()
    y = mine(x)
    tail = x[:, 2:].reshape(-1, 4)
    assert torch.allclose(y[:, 2:].reshape(-1, 4), nn.BatchNorm1d(4).double()(tail))
    assert torch.allclose(y[:, 1], nn.BatchNorm1d(4).double()(x[:, 1]))
    assert torch.allclose(mine.running_mean[2], tail.mean(0)) and torch.allclose(mine.running_var[2], tail.var(0))
    assert mine.eval()(drifting(2, 40).double()).shape == (2, 40, 4)


def test_steps_that_training_never_reached_take_the_last_known_statistics() -> None:
    mine = TimeStepBatchNorm(4, 10, momentum=None)
    x = drifting(50, 3)
    mine(x)
    y = drifting(2, 12)
    expected = (y[:, 2:] - x[:, 2].mean(0)) / (x[:, 2].var(0) + 1e-5).sqrt()
    assert torch.allclose(mine.eval()(y)[:, 2:], expected, atol=1e-5)


def test_a_step_with_one_sequence_is_normalised_by_the_running_statistics() -> None:
    mine = TimeStepBatchNorm(4, 3, momentum=None)
    x = drifting(50, 3)
    mine(x)
    y = drifting(2, 3)
    z = mine(y, torch.tensor([3, 2]))
    assert torch.allclose(z[0, 2], (y[0, 2] - x[:, 2].mean(0)) / (x[:, 2].var(0) + 1e-5).sqrt(), atol=1e-5)
    assert mine.num_batches_tracked.tolist() == [2, 2, 1]


def test_starts_from_a_batch_norm() -> None:
    theirs = nn.BatchNorm1d(4)
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = drifting(8, 5)
    theirs(x.transpose(1, 2))
    mine = TimeStepBatchNorm.from_batch_norm(theirs, 5).eval()
    assert torch.allclose(mine(x), theirs.eval()(x.transpose(1, 2)).transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_gradient_dtype_device_copy_and_state(kind: torch.dtype) -> None:
    layer = TimeStepBatchNorm(4, 3, dtype=kind)
    x = drifting(6, 3).to(kind)
    twin = copy.deepcopy(layer)
    assert layer(x).dtype is kind
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.eval()(x), layer.eval()(x))
    assert TimeStepBatchNorm(4, 3, device="meta")(x.to("meta")).is_meta
    if kind is torch.float64:
        lengths = torch.tensor([3, 1, 2, 3, 2, 3])
        assert torch.autograd.gradcheck(lambda z: layer.train()(z, lengths), (x[..., :4].requires_grad_(),))


def test_the_forecast_covers_it(covered: Callable[..., None]) -> None:
    model = nn.Sequential(nn.Linear(16, 32), TimeStepBatchNorm(32, 10), nn.Tanh(), nn.Linear(32, 8))
    covered(model, torch.randn(64, 10, 16))


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: TimeStepBatchNorm(4, 0), "steps is 0"),
        (lambda: TimeStepBatchNorm(4, 3)(torch.randn(5, 4)), r"shape \(5, 4\)"),
        (lambda: TimeStepBatchNorm(4, 3)(torch.randn(2, 3, 4), torch.tensor([0, 3])), r"\[0, 3\]"),
        (lambda: TimeStepBatchNorm(4, 3)(torch.randn(2, 3, 4), torch.tensor([4, 3])), r"\[4, 3\]"),
        (lambda: TimeStepBatchNorm(4, 3)(torch.randn(2, 3, 4), torch.tensor([3])), "2 sequences"),
        (
            lambda: TimeStepBatchNorm.from_batch_norm(nn.BatchNorm1d(4, track_running_stats=False), 3),
            "no running statistics",
        ),
    ],
)
def test_says_what_is_wrong(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()


def test_repr() -> None:
    layer = TimeStepBatchNorm(4, 3)
    layer(torch.randn(5, 2, 4))
    assert repr(layer) == "TimeStepBatchNorm(4, steps=3 (2 reached), eps=1e-05, momentum=0.1)"
