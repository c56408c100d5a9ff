from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.measure.batches import gather, split
from tightrope.run import rehearse
from tightrope.tape import stack
from tightrope.tape.sampler import COLUMNS, ROWS, STEPS, Sampler, thin


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def train(seen: list[Tensor] | None = None, steps: int = 40) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(net(), nn.Dropout(0.2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        loss = F.cross_entropy(model(torch.randn(8, 6)), torch.randint(0, 3, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if seen is not None:
            seen.append(loss.detach())
    copy.deepcopy(model)
    torch.save(model, io.BytesIO())


def test_a_run_is_the_same_bit_for_bit() -> None:
    alone: list[Tensor] = []
    watched: list[Tensor] = []
    train(alone)
    rehearse(lambda: train(watched))
    assert torch.equal(torch.stack(alone), torch.stack(watched))


def test_every_step_is_sampled_and_then_none() -> None:
    sampler = Sampler()
    for _ in range(STEPS + 3):
        sampler.resume()
        F.cross_entropy(net()(torch.randn(8, 6)), torch.randint(0, 3, (8,)))
        sampler.next_step()
    assert not stack.holds(sampler)
    (target,) = sampler.targets.values()
    (data,) = sampler.inputs.values()
    assert [s.step for s in target] == [s.step for s in data] == list(range(1, STEPS + 1))
    assert target[0].features is not None
    assert target[0].features.shape == (8, 16)


def test_evaluation_and_teachers_are_not_sampled() -> None:
    sampler = Sampler()
    sampler.resume()
    with torch.no_grad():
        F.cross_entropy(net()(torch.randn(8, 6)), torch.randint(0, 3, (8,)))
    F.mse_loss(net()(torch.randn(8, 6)), net()(torch.randn(8, 6)))  # both depend on weights
    sampler.stop()
    assert sampler.targets == {}


def test_a_failure_ends_the_sampling_alone() -> None:
    sampler = Sampler()
    sampler.resume()
    sampler._place = None  # type: ignore[method-assign, assignment]
    assert F.cross_entropy(net()(torch.randn(8, 6)), torch.randint(0, 3, (8,))).ndim == 0
    assert not sampler.active
    sampler.resume()
    assert not stack.holds(sampler)


def test_few_rows_and_columns_are_kept() -> None:
    x = torch.arange(1000 * 3 * 40 * 40.0).view(1000, 3, 40, 40)
    assert thin(x).shape[0] <= ROWS
    assert COLUMNS / 2 <= thin(x).shape[1] <= COLUMNS
    assert torch.equal(thin(torch.arange(5)), torch.arange(5)[:, None])


@pytest.mark.parametrize("rho", [0.0, 0.2, 0.8])
def test_the_share_between_batches_is_the_one_that_was_drawn(rho: float) -> None:
    groups = [rho**0.5 * torch.randn(1, 30) + (1 - rho) ** 0.5 * torch.randn(16, 30) for _ in range(32)]
    found = split(groups)
    assert found is not None
    assert found.rho == pytest.approx(rho, abs=4 * found.error)
    assert (found.deviation > 5) == (rho > 0)


def test_batches_that_come_again_count_once() -> None:
    sampler = Sampler()
    model, x, y = net(), torch.randn(12, 6), torch.arange(12) % 3
    for step in range(9):
        sampler.resume()
        F.cross_entropy(model(x[step % 3 :: 3]), y[step % 3 :: 3])
        sampler.next_step()
    sampler.stop()
    (stream,) = gather(sampler).targets
    assert (len(stream.samples), stream.seen) == (3, 9)


class Look(nn.Module):
    """Notes whether a sampler sees the calls."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler, self.seen, self.weight = sampler, list[bool](), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(stack.holds(self.sampler))
        return x * self.weight


def test_it_is_out_of_the_way_where_nothing_is_learnt() -> None:
    """Torch takes the fast path of attention only where no mode looks on."""
    sampler = Sampler()
    sampler.resume()
    module = Look(sampler)
    module(torch.ones(2, 3))
    with torch.no_grad():
        module(torch.ones(2, 3))
    module.requires_grad_(False).eval()(torch.ones(2, 3))
    module.train()(torch.ones(2, 3))
    sampler.stop()
    assert module.seen == [True, False, False, True]
