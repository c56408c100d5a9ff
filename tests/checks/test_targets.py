"""Labels and targets against the loss and the head that read them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.loss.heads import loss_terms
from tightrope.diagnose import diagnose
from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
Loss = Callable[[Tensor, Tensor], Tensor]
N = 48


def body(*last: nn.Module, out: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, out), *last)


def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(N, 16)


def signs() -> Tensor:
    return torch.tensor([-1.0, 1.0]).repeat(N // 2)[:, None]


def classes(k: int) -> Tensor:
    return torch.arange(N) % k


def hot(k: int) -> Tensor:
    return F.one_hot(classes(k), k).float()


def several(k: int) -> Tensor:
    return (hot(k) + hot(k).roll(1, 1)).clamp(max=1)


# -- losses that are written out -------------------------------------------------------------------

ROWS = torch.arange(N)
WRITTEN: list[tuple[str, nn.Module, Loss, Tensor]] = [
    ("nll", body(out=4), lambda o, y: -F.log_softmax(o, 1)[ROWS, y].mean(), classes(4)),
    ("nll", body(out=4), lambda o, y: -F.log_softmax(o, 1).gather(1, y[:, None]).squeeze(1).sum() / N, classes(4)),
    ("likelihood", body(out=4), lambda o, y: -torch.log(torch.softmax(o, 1)[ROWS, y] + 1e-9).mean(), classes(4)),
    ("soft", body(out=4), lambda o, y: -(y * F.log_softmax(o, 1)).sum(1).mean(), hot(4)),
    ("bce", body(nn.Sigmoid()), lambda o, y: -(y * o.log() + (1 - y) * (1 - o).log()).mean(), signs() > 0),
    ("bce", body(nn.Sigmoid()), lambda o, y: (-y * (o + 1e-8).log() - (1 - y) * (1 - o + 1e-8).log()).mean(), signs()),
    ("hinge", body(), lambda o, y: F.relu(1 - y * o).mean(), signs()),
    ("hinge", body(), lambda o, y: torch.clamp(1 - o * y, min=0).sum(), signs()),
    ("mse", body(), lambda o, y: ((y - o) ** 2).sum() / N, signs()),
    ("l1", body(), lambda o, y: (o - y).abs().mean() + 1e-4 * o.square().mean(), signs()),
    ("gaussian", body(out=2), lambda o, y: F.gaussian_nll_loss(o[:, :1], y, o[:, 1:].exp()), signs()),
    ("gaussian", body(out=2), lambda o, y: (o[:, 1:] + (-o[:, 1:]).exp() * (o[:, :1] - y) ** 2).mean(), signs()),
]


@pytest.mark.parametrize(("kind", "model", "loss", "target"), WRITTEN)
def test_losses_are_read_off_the_tape(kind: str, model: nn.Module, loss: Loss, target: Tensor) -> None:
    target = target.float() if target.dtype is torch.bool else target
    found = list(loss_terms(study(model, (inputs(), target), loss=loss).tape))
    assert [term.kind for term in found] == [kind]
    assert found[0].target is not None


def test_no_loss_where_nothing_is_compared() -> None:
    made = study(body(out=4), inputs(), loss=lambda o: o.square().mean() + o.logsumexp(1).mean())
    assert list(loss_terms(made.tape)) == []


# -- label mismatch --------------------------------------------------------------------------------

WRONG: list[tuple[nn.Module, Loss, Tensor, str]] = [
    (body(), F.binary_cross_entropy_with_logits, signs(), "signs"),
    (body(), F.binary_cross_entropy_with_logits, classes(3)[:, None].float(), "class numbers"),
    (body(nn.Sigmoid()), lambda o, y: -(y * o.log() + (1 - y) * (1 - o).log()).mean(), signs(), "signs"),
    (body(out=4), F.cross_entropy, torch.linspace(-3, 3, N)[:, None] * hot(4), "probabilities"),
    (body(), lambda o, y: F.relu(1 - y * o).mean(), (signs() + 1) / 2, "labels are 0"),
    (body(), F.soft_margin_loss, (signs() + 1) / 2, "labels are 0"),
    (body(out=4), lambda o, y: (o - y).square().mean(), classes(4)[:, None].float(), "class number"),
]


@pytest.mark.parametrize(("model", "loss", "target", "word"), WRONG)
def test_labels_in_another_code(judge: Judge, model: nn.Module, loss: Loss, target: Tensor, word: str) -> None:
    (found,) = judge("label-mismatch", model, (inputs(), target), loss)
    assert found.severity is Severity.FAULT
    assert word in found.summary


def test_several_labels_under_a_softmax(judge: Judge) -> None:
    (found,) = judge("label-mismatch", body(out=5), (inputs(), several(5)))
    assert found.severity is Severity.WARNING
    assert found.evidence[0].measured == 1.0


def test_a_squared_error_of_a_softmax_is_advice(judge: Judge) -> None:
    (found,) = judge("label-mismatch", body(nn.Softmax(1), out=5), (inputs(), hot(5)), F.mse_loss)
    assert found.severity is Severity.ADVICE


RIGHT: list[tuple[nn.Module, Loss, Tensor]] = [
    (body(), F.binary_cross_entropy_with_logits, (signs() > 0).float()),
    (body(), F.binary_cross_entropy_with_logits, (signs() > 0).float() * 0.9 + 0.05),
    (body(), F.binary_cross_entropy_with_logits, 0.7 + 0.5 * torch.rand(N, 1)),
    (body(out=5), F.binary_cross_entropy_with_logits, several(5)),
    (body(out=5), F.cross_entropy, classes(5)),
    (body(out=5), F.cross_entropy, torch.zeros(N, dtype=torch.long)),
    (body(out=5), F.cross_entropy, hot(5)),
    (body(out=5), F.cross_entropy, 0.9 * hot(5) + 0.02),
    (body(out=5), F.cross_entropy, 0.3 * hot(5) + 0.7 * hot(5).roll(1, 0)),
    (body(out=5), F.cross_entropy, hot(5) * (torch.arange(N) % 3 > 0)[:, None]),
    (body(out=5), F.cross_entropy, several(5) / 2),
    (body(), F.mse_loss, classes(5)[:, None].float()),
    (body(out=5), F.mse_loss, hot(5)),
    (body(), lambda o, y: F.relu(1 - y * o).mean(), signs()),
    (body(), lambda o, y: F.relu(1 - o).mean() + 0 * y.sum(), signs()),
    (body(out=4), lambda o, y: (o - y).square().mean(), torch.randn(N, 1)),
    (body(nn.LogSoftmax(1), out=5), lambda o, y: F.kl_div(o, y, reduction="batchmean"), several(5) / 2),
]


@pytest.mark.parametrize(("model", "loss", "target"), RIGHT)
def test_labels_that_fit(judge: Judge, model: nn.Module, loss: Loss, target: Tensor) -> None:
    assert judge("label-mismatch", model, (inputs(), target), loss) == []


# -- the head's range ------------------------------------------------------------------------------

UNREACHED: list[tuple[nn.Module, Tensor, Severity]] = [
    (body(nn.ReLU()), torch.randn(N, 1), Severity.FAULT),
    (body(nn.Sigmoid()), torch.randn(N, 1), Severity.FAULT),
    (body(nn.Tanh()), 3 * torch.randn(N, 1), Severity.FAULT),
    (body(nn.Sigmoid()), 30 + 5 * torch.randn(N, 1), Severity.FAULT),
    (body(nn.Softmax(1), out=3), torch.randn(N, 3), Severity.FAULT),
    (body(nn.Hardtanh()), 3 * torch.randn(N, 1), Severity.FAULT),
    (body(nn.ReLU()), torch.linspace(-0.5, 2.5, N)[:, None], Severity.WARNING),
]


@pytest.mark.parametrize(("model", "target", "severity"), UNREACHED)
def test_targets_out_of_reach(judge: Judge, model: nn.Module, target: Tensor, severity: Severity) -> None:
    torch.manual_seed(0)
    (found,) = judge("target-outside-head-range", model, (inputs(), target), F.mse_loss)
    assert found.severity is severity


def test_the_floor_is_what_the_best_output_reaches(judge: Judge) -> None:
    target = torch.randn(N, 1)
    (found,) = judge("target-outside-head-range", body(nn.ReLU()), (inputs(), target), F.mse_loss)
    assert found.evidence[0].measured == pytest.approx(float(F.mse_loss(target.relu(), target)), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "target", "loss"),
    [
        (body(nn.ReLU()), torch.rand(N, 1), F.mse_loss),
        (body(nn.Sigmoid()), torch.rand(N, 1), F.mse_loss),
        (body(nn.Tanh()), 2 * torch.rand(N, 1) - 1, F.mse_loss),
        (body(nn.Tanh()), signs() * 1.0000001, F.mse_loss),
        (body(nn.Softplus()), torch.rand(N, 1) * 5, F.l1_loss),
        (body(), torch.randn(N, 1), F.mse_loss),
        (body(nn.Tanh()), 3 * torch.randn(N, 1), lambda o, y: F.mse_loss(5 * o, y)),
        (body(nn.Sigmoid(), out=5), hot(5), F.mse_loss),
        (body(nn.Softplus(), out=5), classes(5), F.cross_entropy),
        (body(nn.LeakyReLU(), out=5), classes(5), F.cross_entropy),
        (body(nn.Tanh(), out=5), classes(5), lambda o, y: F.cross_entropy(10 * o, y)),
        (body(), 0.7 + 0.5 * torch.rand(N, 1), F.binary_cross_entropy_with_logits),
    ],
)
def test_targets_within_reach(judge: Judge, model: nn.Module, target: Tensor, loss: Loss) -> None:
    assert judge("target-outside-head-range", model, (inputs(), target), loss) == []


def test_bounded_scores_bound_the_loss(judge: Judge) -> None:
    (found,) = judge("target-outside-head-range", body(nn.Tanh(), out=10), (inputs(), classes(10)))
    best = F.cross_entropy(2 * hot(10) - 1, classes(10))
    assert found.evidence[0].measured == pytest.approx(float(best), rel=1e-6)
    assert found.severity is Severity.WARNING


def test_rectified_logits_never_say_no(judge: Judge) -> None:
    data = inputs(), (signs() > 0).float()
    (found,) = judge("target-outside-head-range", body(nn.ReLU()), data, F.binary_cross_entropy_with_logits)
    assert found.severity is Severity.FAULT
    assert found.evidence[0].measured == pytest.approx(math.log(2) / 2)


def test_unscaled_images_under_binary_cross_entropy(judge: Judge) -> None:
    data = inputs(), 255 * torch.rand(N, 1) + 0.1
    (found,) = judge("target-outside-head-range", body(), data, F.binary_cross_entropy_with_logits)
    assert found.severity is Severity.FAULT


def test_the_head_is_the_cause_of_an_unscaled_target() -> None:
    target = 200 + 30 * torch.randn(N, 1)
    findings = diagnose([study(body(nn.Sigmoid()), (inputs(), target), loss=F.mse_loss)])
    assert findings[0].check == "target-outside-head-range"
    assert "unscaled-target" in findings[0].cause_of


# -- a head of one unit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "target", "loss"),
    [
        (body(nn.Softmax(1)), torch.randn(N, 1), F.mse_loss),
        (body(nn.Softmax(-1), nn.Flatten(0)), torch.rand(N), F.mse_loss),
        (body(), torch.zeros(N, dtype=torch.long), F.cross_entropy),
        (body(nn.LogSoftmax(1)), torch.zeros(N, dtype=torch.long), F.nll_loss),
        (body(nn.Softmax(1)), torch.rand(N, 1), lambda o, y: ((o - y) ** 2).mean()),
    ],
)
def test_a_softmax_of_one_unit(judge: Judge, model: nn.Module, target: Tensor, loss: Loss) -> None:
    (found,) = judge("constant-head", model, (inputs(), target), loss)
    assert found.severity is Severity.FAULT


class OneKey(nn.Module):
    """Attention over a single key, as in the first step of a generation."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.head = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.softmax(self.score(x), 1) * x)


def test_a_softmax_of_one_position_inside_a_model_is_none(judge: Judge) -> None:
    assert judge("constant-head", OneKey(), (inputs(), torch.randn(N, 1)), F.mse_loss) == []
    assert judge("constant-head", body(nn.Softmax(1), out=2), (inputs(), torch.rand(N, 2)), F.mse_loss) == []


def test_a_shared_activation_is_not_taken_away() -> None:
    """The same ReLU module stands inside the net and at its end."""
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(16, 32), act, nn.Linear(32, 1), act)
    findings = diagnose([study(model, (inputs(), torch.randn(N, 1)), loss=F.mse_loss)])
    remedy = next(f for f in findings if f.check == "target-outside-head-range").remedy
    assert remedy is not None
    assert remedy.action is None


# -- the last bias ---------------------------------------------------------------------------------


def rare(share: float, n: int = 400) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, 16), (torch.arange(n) < share * n).float()[:, None]


def test_rare_classes_and_a_bias_of_zero_are_advice(judge: Judge) -> None:
    (found,) = judge("last-layer-init", body(), rare(0.02), F.binary_cross_entropy_with_logits)
    assert found.severity is Severity.ADVICE
    share = torch.tensor([0.02, 0.98], dtype=torch.float64)
    assert found.evidence[1].measured == pytest.approx(float(-(share * share.log()).sum()), rel=1e-6)


def test_the_bias_at_the_class_frequencies_starts_at_their_entropy() -> None:
    model, (x, y) = body(), rare(0.02)
    finding = next(
        f for f in diagnose([study(model, (x, y), loss=F.binary_cross_entropy_with_logits)])
        if f.check == "last-layer-init"
    )  # fmt: skip
    assert finding.remedy is not None
    nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    finding.remedy.apply()
    loss = F.binary_cross_entropy_with_logits(model(x), y)
    assert float(loss.detach()) == pytest.approx(finding.evidence[1].measured, rel=1e-4)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_classes_that_are_not_rare(judge: Judge, share: float) -> None:
    assert judge("last-layer-init", body(), rare(share), F.binary_cross_entropy_with_logits) == []
    x, y = rare(0.02, 16)
    assert judge("last-layer-init", body(), (x, y), F.binary_cross_entropy_with_logits) == []
    assert judge("last-layer-init", body(out=10), (inputs(), classes(10))) == []


# -- rows of probabilities that do not sum to one ----------------------------------------------------


def _soft(o: Tensor, y: Tensor) -> Tensor:
    return -(y * F.log_softmax(o, 1)).sum(1).mean()


def _mixed(o: Tensor, y: Tensor) -> Tensor:
    """Two soft labels with weights that add up to one."""
    return F.cross_entropy(o, 0.3 * y) + F.cross_entropy(o, 0.7 * y.roll(1, 0))


def _divergence(o: Tensor, y: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(o, 1), y, reduction="batchmean")


@pytest.mark.parametrize(
    ("target", "loss", "severity"),
    [
        (90 * hot(5) + 2, F.cross_entropy, Severity.FAULT),
        (100 * torch.rand(N, 5) + 5, _soft, Severity.FAULT),
        (95 * hot(5) + 1, _divergence, Severity.FAULT),
        (0.5 * hot(5), F.cross_entropy, Severity.WARNING),
        (0.9 * hot(5) + 0.1, F.cross_entropy, Severity.WARNING),
    ],
)
def test_probabilities_that_do_not_sum_to_one(judge: Judge, target: Tensor, loss: Loss, severity: Severity) -> None:
    (found,) = judge("label-mismatch", body(out=5), (inputs(), target), loss)
    assert found.severity is severity
    assert found.evidence[0].measured == pytest.approx(float(target.sum(1).median()), rel=1e-5)


@pytest.mark.parametrize(
    ("target", "loss"),
    [
        (0.9 * hot(5) + 0.02, F.cross_entropy),
        (0.9 * hot(5) + 0.1 / 4, F.cross_entropy),
        (hot(5) * torch.rand(N, 1) * 20, _soft),
        (hot(5) * (torch.arange(N) % 3 > 0)[:, None], F.cross_entropy),
        (hot(5), _mixed),
        (0.5 * hot(5), _soft),
        (torch.softmax(torch.randn(N, 5), 1), _divergence),
    ],
)
def test_smoothed_weighted_masked_and_mixed_labels(judge: Judge, target: Tensor, loss: Loss) -> None:
    assert judge("label-mismatch", body(out=5), (inputs(), target), loss) == []


# -- rectified class scores ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        (nn.ReLU(), F.cross_entropy),
        (nn.ReLU6(), F.cross_entropy),
        (nn.Sequential(nn.ReLU(), nn.LogSoftmax(1)), F.nll_loss),
        (nn.Identity(), lambda o, y: F.cross_entropy(o.clamp(min=0), y)),
        (nn.ReLU(), lambda o, y: -torch.log(torch.softmax(o, 1)[ROWS, y] + 1e-9).mean()),
    ],
)
def test_class_scores_that_are_cut(judge: Judge, last: nn.Module, loss: Loss) -> None:
    torch.manual_seed(0)
    found = judge("target-outside-head-range", body(last, out=10), (inputs(), classes(10)), loss)
    assert len(found) == 1
    assert found[0].evidence[0].measured > 0.3


def test_a_class_without_a_gradient_is_a_fault(judge: Judge) -> None:
    model = body(nn.ReLU(), out=10)
    with torch.no_grad():
        model[2].bias[3] = -10.0  # type: ignore[union-attr, operator]
    (found,) = judge("target-outside-head-range", model, (inputs(), classes(10)), F.cross_entropy)
    assert found.severity is Severity.FAULT


def test_a_rectified_logit_of_two_classes(judge: Judge) -> None:
    target = (classes(2)[:, None]).float()
    model = body(nn.ReLU(), nn.Sigmoid())
    (found,) = judge("target-outside-head-range", model, (inputs(), target), F.binary_cross_entropy)
    assert found.severity is Severity.FAULT
    healthy = lambda o, y: F.binary_cross_entropy(o.clamp(1e-6, 1 - 1e-6), y)  # noqa: E731
    assert judge("target-outside-head-range", body(nn.Sigmoid()), (inputs(), target), healthy) == []


def test_rectified_maps_that_are_pooled_into_scores(judge: Judge) -> None:
    model = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = (torch.randn(N, 1, 8, 8), classes(10))
    assert judge("target-outside-head-range", model, data, F.cross_entropy) == []
