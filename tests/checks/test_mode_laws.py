from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.finding import Finding, Severity
from tightrope.run import rehearse

Judge = Callable[..., list[Finding]]


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.function = nn.Linear(16, 64), nn.Linear(64, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.function(F.relu(self.enter(x)), self.training))


def data(n: int = 128) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 16), torch.arange(n) % 4


def attend(h: Tensor, p: float) -> Tensor:
    q = h.view(len(h), 4, 16)
    return F.scaled_dot_product_attention(q, q, q, dropout_p=p).flatten(1)


def test_functional_dropout_in_evaluation(judge: Judge) -> None:
    name = "dropout-in-eval"
    (found,) = judge(name, Function(lambda h, _: F.dropout(h, 0.4)), data())
    assert found.severity is Severity.WARNING
    assert found.evidence[0].measured == 0.4
    assert found.location.startswith("tests/checks/test_mode_laws.py")
    (found,) = judge(name, Function(lambda h, _: attend(h, 0.2)), data())
    assert found.summary.startswith("scaled_dot_product_attention")
    (found,) = judge(name, Function(lambda h, _: F.dropout(h, 0.4, training=True)), data())
    assert found.severity is Severity.ADVICE
    for healthy in (
        lambda h, training: F.dropout(h, 0.4, training),
        lambda h, training: attend(h, 0.2 if training else 0.0),
        lambda h, _: h + torch.randn_like(h),
    ):
        assert judge(name, Function(healthy), data()) == []
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4))
    assert judge(name, model, data()) == []


def stack(p: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(3):
        layers += [nn.Linear(64 if i else 16, 64), nn.ReLU(), nn.Dropout(p), nn.BatchNorm1d(64)]
    return nn.Sequential(*layers, nn.Linear(64, 4))


def test_dropout_before_norm_costs_more_as_the_net_learns() -> None:
    def train() -> None:
        torch.manual_seed(0)
        model, (x, _) = stack(0.7), data(256)
        y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(120):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    report = rehearse(train).report
    assert report is not None
    (found,) = [f for f in report.findings if f.check == "dropout-before-norm"]
    assert found.severity is Severity.WARNING
    assert found.evidence[0].measured < 0.7


def test_dropout_behind_the_norms(judge: Judge) -> None:
    healthy = nn.Sequential(*[layer for layer in stack(0.5) if not isinstance(layer, nn.Dropout)])
    healthy.insert(len(healthy) - 1, nn.Dropout(0.5))
    assert judge("dropout-before-norm", healthy, data()) == []
    weak = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.05), nn.Linear(64, 64),
                         nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))  # fmt: skip
    assert judge("dropout-before-norm", weak, data()) == []


def test_a_short_run_is_not_judged_by_its_running_statistics(judge: Judge) -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64, momentum=1e-3), nn.ReLU(), nn.Linear(64, 4))
    for _ in range(10):
        model(data()[0])
    assert judge("train-eval-mismatch", model, data()) == []
