from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.loss.heads import loss_terms
from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]


def body(*last: nn.Module, out: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, out), *last)


def batch(n: int = 64) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 16), torch.arange(n) % 10


def hot(target: Tensor) -> Tensor:
    return F.one_hot(target, 10).float()


# -- double softmax ------------------------------------------------------------------------------

FAULTS = [
    (nn.Softmax(1), F.cross_entropy),
    (nn.Sigmoid(), F.cross_entropy),
    (nn.Softmax(1), F.nll_loss),
    (nn.Identity(), F.nll_loss),
    (nn.Sigmoid(), lambda out, y: F.binary_cross_entropy_with_logits(out, hot(y))),
    (nn.Softmax(1), lambda out, y: F.cross_entropy(out.view(-1, 10).contiguous(), y)),
]
HEALTHY = [
    (nn.Identity(), F.cross_entropy),
    (nn.LogSoftmax(1), F.nll_loss),
    (nn.Softmax(1), lambda out, y: F.nll_loss(out.log(), y)),
    (nn.Sigmoid(), lambda out, y: F.binary_cross_entropy(out, hot(y))),
    (nn.Identity(), lambda out, y: F.binary_cross_entropy_with_logits(out, hot(y))),
    (nn.Softmax(1), lambda out, y: F.mse_loss(out, hot(y))),
]


@pytest.mark.parametrize(("last", "loss"), FAULTS)
def test_wrong_pairs(judge: Judge, last: nn.Module, loss: Callable[..., Tensor]) -> None:
    assert [f.severity for f in judge("double-softmax", body(last), batch(), loss)] == [Severity.FAULT]


@pytest.mark.parametrize(("last", "loss"), HEALTHY)
def test_right_pairs(judge: Judge, last: nn.Module, loss: Callable[..., Tensor]) -> None:
    assert judge("double-softmax", body(last), batch(), loss) == []


def test_log_softmax_before_cross_entropy_is_advice(judge: Judge) -> None:
    found = judge("double-softmax", body(nn.LogSoftmax(1)), batch())
    assert [f.severity for f in found] == [Severity.ADVICE]


def test_the_floor_is_what_a_perfect_model_reaches(judge: Judge) -> None:
    """A one-hot output under cross-entropy: the loss of the page's formula."""
    (found,) = judge("double-softmax", body(nn.Softmax(1)), batch())
    reached = F.cross_entropy(hot(torch.arange(10)), torch.arange(10))
    assert found.evidence[1].measured == pytest.approx(float(reached), rel=1e-6)


def test_attention_inside_a_model_is_no_double_softmax(judge: Judge) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 10))
    assert judge("double-softmax", model, (torch.randn(8, 4, 16), torch.arange(8))) == []


# -- loss at initialisation ----------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_default_heads_start_at_the_level(judge: Judge, classes: int) -> None:
    data = (torch.randn(64, 16), torch.arange(64) % classes)
    assert judge("loss-at-init", body(out=classes), data) == []


def test_scores_far_out(judge: Judge) -> None:
    model = body()
    nn.init.normal_(model[2].weight, std=3.0)  # type: ignore[arg-type]
    (found,) = judge("loss-at-init", model, batch())
    assert found.evidence[0].expected == pytest.approx(math.log(10))
    assert found.evidence[0].measured > found.evidence[0].expected + 2  # type: ignore[operator]


def test_a_trained_model_starts_low(judge: Judge) -> None:
    model, (x, y) = body(), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert judge("loss-at-init", model, (x, y)) == []


def test_a_small_batch_is_no_evidence(judge: Judge) -> None:
    """One sample whose logit happens to be wrong."""
    model = body()
    nn.init.normal_(model[2].weight, std=0.8)  # type: ignore[arg-type]
    for seed in range(20):
        torch.manual_seed(seed)
        assert judge("loss-at-init", model, (torch.randn(1, 16), torch.zeros(1, dtype=torch.long))) == []


@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss, F.l1_loss, F.smooth_l1_loss, lambda a, b: ((a - b) ** 2).mean(),
        lambda a, b: (b - a).pow(2).mean(), lambda a, b: torch.square(a - b).mean(),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("scale", "count"), [(1.0, 0), (5.0, 0), (1e3, 1)])
def test_targets(judge: Judge, loss: Callable[..., Tensor], scale: float, count: int) -> None:
    found = judge("unscaled-target", body(out=1), (torch.randn(64, 16), scale * torch.randn(64, 1)), loss)
    assert len(found) == count
    assert all("target" in f.summary for f in found)


def test_weights_and_sums_have_no_level(judge: Judge) -> None:
    model = body()
    nn.init.normal_(model[2].weight, std=3.0)  # type: ignore[arg-type]
    assert judge("loss-at-init", model, batch(), lambda o, y: F.cross_entropy(o, y, reduction="sum")) == []
    assert judge("loss-at-init", model, batch(), lambda o, y: F.cross_entropy(o, y, weight=torch.ones(10))) == []


def test_losses_are_found_by_name_and_by_shape() -> None:
    def total(out: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(out, target) + 0.1 * (out - hot(target)).square().mean()

    made = study(body(), batch(), loss=total)
    assert [term.kind for term in loss_terms(made.tape)] == ["cross_entropy", "mse"]


@pytest.mark.parametrize("scale", [30.0, 64.0])
def test_cosines_over_a_temperature_start_where_it_says(judge: Judge, scale: float) -> None:
    weight, queue = torch.randn(10, 10), F.normalize(torch.randn(10, 50), dim=0)

    def classify(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scale * F.linear(F.normalize(out), F.normalize(weight.requires_grad_())), y)

    def contrast(out: Tensor, y: Tensor) -> Tensor:
        z = F.normalize(out)
        near = (z * F.normalize(torch.randn(64, 10))).sum(1, keepdim=True)
        return F.cross_entropy(torch.cat([near, z @ queue], 1) * scale, torch.zeros_like(y))

    for loss in (classify, contrast):
        assert judge("loss-at-init", body(), batch(), loss) == []
    assert judge("loss-at-init", body(), batch(), lambda out, y: F.cross_entropy(2 * scale * out, y))


class _Paired(nn.Module):
    """Cosines of two views times the exponential of a parameter, which multiplies one side before the product."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.one, self.other, self.form = nn.Linear(16, 24), nn.Linear(16, 24), form
        self.log_scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.normalize(self.one(x), dim=-1), F.normalize(self.other(x), dim=-1)
        if self.form == "before":
            return self.log_scale.exp() * a @ b.t()
        if self.form == "below":
            return a @ b.t() / (-self.log_scale).exp()
        if self.form == "masked":
            return (self.log_scale.exp() * (a @ b.t())).masked_fill(torch.eye(64).bool().roll(1, 0), -1e4)
        cosine = a @ b.t()
        turned = cosine * 0.88 - (1 - cosine.pow(2)).clamp(min=0).sqrt() * 0.48
        return self.log_scale.exp() * torch.where(torch.eye(64).bool(), turned, cosine)


@pytest.mark.parametrize("form", ["before", "below", "masked", "margin"])
def test_cosines_over_a_learned_temperature(judge: Judge, form: str) -> None:
    torch.manual_seed(0)
    data = (torch.randn(64, 16), torch.arange(64))
    model = _Paired(form)
    assert F.cross_entropy(model(data[0]), data[1]).item() > 10
    assert judge("loss-at-init", model, data) == []


def test_unbounded_scores_times_a_parameter(judge: Judge) -> None:
    """The same scale on products of rows of any length says nothing about where the loss starts."""
    torch.manual_seed(0)

    class Plain(_Paired):
        def forward(self, x: Tensor) -> Tensor:
            return self.log_scale.exp() * self.one(x) @ self.other(x).t()

    assert judge("loss-at-init", Plain("plain"), (torch.randn(64, 16), torch.arange(64)))
