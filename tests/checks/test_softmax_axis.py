"""Softmaxes over the dimension that is summed, and over others."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.graph.dims import moved
from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
N, T = 24, 6


class Net(nn.Module):
    """A linear map of tokens, whatever follows, and a head."""

    def __init__(self, mix: Callable[..., Tensor], width: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, width) for _ in range(3))
        self.score, self.head, self.mix = nn.Linear(8, 1), nn.Linear(width, 3), mix

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.score(x), self.q(x), self.k(x), self.v(x))
        return self.head(mixed if mixed.ndim == 2 else mixed.mean(1))


def data(n: int = N) -> tuple[Tensor, Tensor]:
    return torch.randn(n, T, 8), torch.arange(n) % 3


def logits(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.shape[-1] ** 0.5


def renormalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries compete for keys, then the rows are averages again."""
    weights = logits(q, k).softmax(-2) + 1e-8
    return (weights / weights.sum(-1, keepdim=True)) @ v


def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


def co_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = logits(q, k)
    return scores.softmax(-1) @ v + scores.softmax(-2).mT @ v


def heads(q: Tensor, k: Tensor, v: Tensor, dim: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v))
    return (logits(q, k).softmax(dim) @ v).transpose(1, 2).flatten(2)


WRONG: list[tuple[Callable[..., Tensor], Severity]] = [
    (lambda s, q, k, v: (s.softmax(0) * v).sum(1), Severity.FAULT),
    (lambda s, q, k, v: torch.einsum("nt,ntc->nc", s.squeeze(-1).softmax(0), v), Severity.FAULT),
    (lambda s, q, k, v: (s.softmax(0).mT @ v).squeeze(1), Severity.FAULT),
    (lambda s, q, k, v: logits(q, k).softmax(-2) @ v, Severity.WARNING),
    (lambda s, q, k, v: logits(q, k).mT.softmax(-1).mT @ v, Severity.WARNING),
    (lambda s, q, k, v: torch.einsum("nqk,nkc->nqc", logits(q, k).softmax(1), v), Severity.WARNING),
    (lambda s, q, k, v: heads(q, k, v, 2), Severity.WARNING),
]
RIGHT: list[Callable[..., Tensor]] = [
    lambda s, q, k, v: (s.softmax(1) * v).sum(1),
    lambda s, q, k, v: (s.softmax(1).mT @ v).squeeze(1),
    lambda s, q, k, v: logits(q, k).softmax(-1) @ v,
    lambda s, q, k, v: heads(q, k, v, -1),
    lambda s, q, k, v: F.dropout(logits(q, k).softmax(-1), 0.1) @ v,
    lambda s, q, k, v: torch.einsum("nqk,nkc->nqc", logits(q, k).softmax(2), v),
    lambda s, q, k, v: renormalised(q, k, v),
    lambda s, q, k, v: efficient(q, k, v),
    lambda s, q, k, v: co_attention(q, k, v),
    lambda s, q, k, v: q.softmax(-1).mT @ v,
    lambda s, q, k, v: (s.softmax(0) * v).sum(0, keepdim=True).expand(N, T, 16),
    lambda s, q, k, v: v * s.sigmoid(),
]


@pytest.mark.parametrize(("mix", "severity"), WRONG)
def test_summed_over_another_dimension(judge: Judge, mix: Callable[..., Tensor], severity: Severity) -> None:
    (found,) = judge("wrong-softmax-axis", Net(mix), data())
    assert found.severity is severity


@pytest.mark.parametrize("mix", RIGHT)
def test_summed_over_its_own(judge: Judge, mix: Callable[..., Tensor]) -> None:
    assert judge("wrong-softmax-axis", Net(mix), data()) == []


def test_the_dimension_that_is_named_is_the_one_that_is_summed(judge: Judge) -> None:
    (found,) = judge("wrong-softmax-axis", Net(lambda s, q, k, v: logits(q, k).softmax(-2) @ v), data())
    assert found.evidence[0].measured == 1
    assert found.evidence[0].expected == 2


# -- losses ----------------------------------------------------------------------------------------


def classifier(*last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3), *last)


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 8), torch.arange(N) % 3


def picked(p: Tensor, y: Tensor) -> Tensor:
    return -torch.log(p[torch.arange(len(y)), y]).mean()


@pytest.mark.parametrize(
    ("last", "loss"), [(nn.LogSoftmax(0), F.nll_loss), (nn.Softmax(0), picked), (nn.LogSoftmax(0), nn.NLLLoss())]
)
def test_classes_over_the_batch(judge: Judge, last: nn.Module, loss: Callable[..., Tensor]) -> None:
    (found,) = judge("wrong-softmax-axis", classifier(last), rows(), loss)
    assert found.severity is Severity.FAULT


def clip(a: Tensor) -> Tensor:
    """Images against texts and texts against images."""
    y = torch.arange(len(a))
    similar = a @ a.flip(0).T
    return F.nll_loss(similar.log_softmax(1), y) + F.nll_loss(similar.log_softmax(0).T, y)


def test_classes_over_the_classes(judge: Judge) -> None:
    assert judge("wrong-softmax-axis", classifier(nn.LogSoftmax(1)), rows(), F.nll_loss) == []
    assert judge("wrong-softmax-axis", classifier(nn.LogSoftmax(-1)), rows(), F.nll_loss) == []
    assert judge("wrong-softmax-axis", classifier(), rows()[0], clip) == []


class Maps(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv, self.dim = nn.Conv2d(3, 4, 3, padding=1), dim

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.conv(x), self.dim)


@pytest.mark.parametrize(("dim", "count"), [(1, 0), (-1, 1), (2, 1)])
def test_classes_of_a_map(judge: Judge, dim: int, count: int) -> None:
    batch = torch.randn(8, 3, 6, 6), torch.randint(0, 4, (8, 6, 6))
    assert len(judge("wrong-softmax-axis", Maps(dim), batch, F.nll_loss)) == count


def test_a_softmax_without_dimension_is_recorded() -> None:
    """Torch takes the second of two dimensions, and the first of three."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = study(classifier(nn.Softmax()), (rows()[0], torch.rand(N, 3)), loss=F.mse_loss)
        (number,) = made.measurement.rows
        assert made.measurement.rows[number].keys == 3
        made = study(nn.Sequential(nn.Linear(8, 3), nn.Softmax()), data()[0], loss=lambda y: y.square().mean())
        assert next(iter(made.measurement.rows.values())).keys == N


def test_a_dimension_is_followed_through_views() -> None:
    def shuffle(x: Tensor) -> Tensor:
        return x.transpose(1, 2).unsqueeze(0).flatten(1, 2).square().mean()

    tape = study(nn.Linear(8, 5), torch.randn(N, T, 8), loss=shuffle).tape
    moves = [entry for entry in tape.entries if entry.op in ("transpose", "unsqueeze", "flatten")]
    assert [moved(tape, moves[0], d) for d in range(3)] == [0, 2, 1]
    assert [moved(tape, moves[1], d) for d in range(3)] == [1, 2, 3]
    assert moved(tape, moves[2], 3) == 2
    assert moved(tape, moves[2], 1) is None
