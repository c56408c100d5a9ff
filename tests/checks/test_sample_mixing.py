from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
CHECK = "sample-mixing"


class Apply(nn.Module):
    """A module that computes what a function of its parts says."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(self, *x)


def labels(*shape: int, k: int = 2) -> Tensor:
    return torch.randint(0, k, shape)


class BatchLayerNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0, keepdim=True)) / (x.var(0, keepdim=True) + 1e-5).sqrt()


class OwnBatchNorm(nn.Module):
    """Batch norm by hand, with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(32))
        self.register_buffer("var", torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            with torch.no_grad():
                self.mean.lerp_(mean, 0.1)
                self.var.lerp_(var, 0.1)
        return (x - mean) / (var + 1e-5).sqrt()


def normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), norm, nn.ReLU(), nn.Linear(32, 2))


def recurrent(kind: type[nn.Module], *, batch_first: bool) -> nn.Module:
    rnn: Any = kind
    return Apply(
        lambda m, x: m.head(m.rnn(x)[0][:, -1]), rnn=rnn(3, 16, batch_first=batch_first), head=nn.Linear(16, 2)
    )


def encoder(*, batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
    body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return Apply(
        lambda m, x: m.head(m.body(m.enter(x)).mean(1)), enter=nn.Linear(3, 16), body=body, head=nn.Linear(16, 2)
    )


@pytest.mark.parametrize(
    ("make", "word", "severity"),
    [
        (lambda: recurrent(nn.LSTM, batch_first=False), "lstm runs over the batch", Severity.FAULT),
        (lambda: recurrent(nn.GRU, batch_first=False), "gru runs over the batch", Severity.FAULT),
        (lambda: encoder(batch_first=False), "attention runs over the batch", Severity.FAULT),
    ],
)
def test_sequences_that_run_over_the_batch(judge: Judge, make: Any, word: str, severity: Severity) -> None:
    (found,) = judge(CHECK, make(), (torch.randn(32, 12, 3), labels(32)))
    assert word in found.summary
    assert found.severity is severity


def test_a_first_token_that_all_samples_share_is_all_that_the_scores_hold(judge: Judge) -> None:
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: m.head(m.body(m.embed(x))[:, 0]), embed=nn.Embedding(9, 16),
        body=nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0), head=nn.Linear(16, 2),
    )  # fmt: skip
    ids = torch.randint(1, 9, (32, 7))
    ids[:, 0] = 0
    (finding,) = judge(CHECK, model, (ids, torch.arange(32) % 2))
    assert "changes no scores at all" in finding.summary and finding.severity is Severity.FAULT
    assert (
        judge(CHECK, nn.Sequential(nn.Embedding(9, 16), nn.Flatten(), nn.Linear(112, 2)), (ids, torch.arange(32) % 2))
        == []
    )


def test_statistics_over_the_batch(judge: Judge) -> None:
    (found,) = judge(CHECK, normed(BatchLayerNorm()), (torch.randn(32, 8), labels(32)))
    assert found.severity is Severity.WARNING
    assert found.location.startswith("tests/checks/test_sample_mixing.py")


def test_a_view_that_mixes(judge: Judge) -> None:
    model = Apply(lambda m, x: m.body(x.permute(1, 2, 0).reshape(32, 64)), body=nn.Linear(64, 2))
    (found,) = judge(CHECK, model, (torch.randn(32, 8, 8), labels(32)))
    assert "reshape" in found.summary


def test_time_first_in_one_row(judge: Judge) -> None:
    model = Apply(lambda m, x: m.body(x.reshape(48, 32)), body=nn.Linear(32, 2))
    (found,) = judge(CHECK, model, (torch.randn(8, 48, 4), labels(48)))
    assert "reshape" in found.summary
    turned = Apply(lambda m, x: m.body(x.transpose(0, 1).reshape(48, 32)), body=nn.Linear(32, 2))
    assert judge(CHECK, turned, (torch.randn(8, 48, 4), labels(48))) == []


def contrastive(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(m.a(a), dim=1) @ F.normalize(m.b(b), dim=1).mT


def graph(m: Any, x: Tensor, adjacency: Tensor) -> Tensor:
    return m.b(adjacency @ torch.relu(adjacency @ m.a(x)))


def spread(m: Any, x: Tensor) -> Tensor:
    """A statistic of the batch as a feature (progressive GANs)."""
    h = torch.relu(m.a(x))
    return m.b(torch.cat([h, h.std(0).mean().expand(len(h), 1)], 1))


HEALTHY: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "batch norm": lambda: (normed(nn.BatchNorm1d(32)), (torch.randn(32, 8), labels(32)), F.cross_entropy),
    "batch norm without running statistics": lambda: (
        normed(nn.BatchNorm1d(32, track_running_stats=False)), (torch.randn(32, 8), labels(32)), F.cross_entropy,
    ),
    "batch norm by hand": lambda: (normed(OwnBatchNorm()), (torch.randn(32, 8), labels(32)), F.cross_entropy),
    "batch first": lambda: (
        recurrent(nn.LSTM, batch_first=True), (torch.randn(32, 12, 3), labels(32)), F.cross_entropy,
    ),
    "batch first attention": lambda: (encoder(batch_first=True), (torch.randn(32, 12, 3), labels(32)), F.cross_entropy),
    "time first, a label a step": lambda: (
        Apply(lambda m, x: m.head(m.rnn(x)[0]).squeeze(-1), rnn=nn.LSTM(3, 16), head=nn.Linear(16, 1)),
        (torch.randn(12, 32, 3), torch.randn(12, 32)), F.mse_loss,
    ),
    "time first, square": lambda: (
        Apply(lambda m, x: m.head(m.rnn(x)[0]).squeeze(-1), rnn=nn.LSTM(3, 16), head=nn.Linear(16, 1)),
        (torch.randn(16, 16, 3), torch.randn(16, 16)), F.mse_loss,
    ),
    "time first, last step": lambda: (
        Apply(lambda m, x: m.head(m.rnn(x)[0][-1]), rnn=nn.GRU(3, 16), head=nn.Linear(16, 2)),
        (torch.randn(12, 32, 3), labels(32)), F.cross_entropy,
    ),
    "time first attention": lambda: (
        Apply(lambda m, x: m.head(m.body(m.enter(x)).mean(0)), enter=nn.Linear(3, 16),
              body=nn.TransformerEncoderLayer(16, 2, 32), head=nn.Linear(16, 2)),
        (torch.randn(12, 32, 3), labels(32)), F.cross_entropy,
    ),
    "tokens in one dimension": lambda: (
        Apply(lambda m, x: m.head(m.rnn(m.embed(x))[0]).flatten(0, 1), embed=nn.Embedding(9, 8),
              rnn=nn.GRU(8, 16, batch_first=True), head=nn.Linear(16, 9)),
        (labels(8, 12, k=9), labels(96, k=9)), F.cross_entropy,
    ),
    "one long sequence": lambda: (
        Apply(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.LSTM(3, 16), head=nn.Linear(16, 2)),
        (torch.randn(40, 3), labels(40)), F.cross_entropy,
    ),
    "graph": lambda: (
        Apply(graph, a=nn.Linear(8, 16), b=nn.Linear(16, 2)),
        ((torch.randn(32, 8), torch.rand(32, 32).softmax(1)), labels(32)), F.cross_entropy,
    ),
    "contrastive": lambda: (
        Apply(contrastive, a=nn.Linear(8, 16), b=nn.Linear(8, 16)),
        ((torch.randn(32, 8), torch.randn(32, 8)), torch.arange(32)), F.cross_entropy,
    ),
    "spread of the batch as a feature": lambda: (
        Apply(spread, a=nn.Linear(8, 16), b=nn.Linear(17, 2)), (torch.randn(32, 8), labels(32)), F.cross_entropy,
    ),
    "windows": lambda: (
        Apply(lambda m, x: m.head(m.mix(x.view(8, 2, 4, 2, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(32, 16, 3).mT).mT
                                  .reshape(8, 4, 16, 3).mean((1, 2))), mix=nn.Linear(16, 16), head=nn.Linear(3, 2)),
        (torch.randn(8, 8, 8, 3), labels(8)), F.cross_entropy,
    ),
    "points without a batch": lambda: (
        Apply(lambda m, x: m.head(m.mix(x[None])[0]), mix=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
              head=nn.Linear(8, 2)),
        (torch.randn(32, 8), labels(32)), F.cross_entropy,
    ),
    "convolution": lambda: (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)),
        (torch.randn(16, 1, 8, 8), labels(16)), F.cross_entropy,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on_what_is_meant(judge: Judge, name: str) -> None:
    torch.manual_seed(0)
    model, (x, y), loss = HEALTHY[name]()
    assert judge(CHECK, model, (x, y), loss) == []
