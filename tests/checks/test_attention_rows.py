from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.finding import Finding, Severity
from tightrope.measure.probes import softmax_rows

Judge = Callable[..., list[Finding]]
FLAT, SHARP = "attention-bandwidth", "attention-saturation"


class Attention(nn.Module):
    """One head over 16 tokens; weights of q and k of a given scale, a factor on the logits."""

    def __init__(self, factor: float, query: float = 1.0, key: float = 1.0, *, shared: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(64, 64, bias=False) for _ in range(3))
        self.head = nn.Linear(64, 4)
        for layer, scale in ((self.q, query), (self.k, key), (self.v, 1.0)):
            nn.init.normal_(layer.weight, std=scale / 8)
        self.factor, self.shared = factor, shared

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        logits = self.factor * q @ (q if self.shared else self.k(x)).mT
        scores: Tensor = self.head((logits.softmax(-1) @ self.v(x)).mean(1))
        return scores


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(16, 16, 64), torch.arange(16) % 4


def test_rows_count_keys_and_peaks() -> None:
    rows = softmax_rows(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.997, 0.001, 0.001, 0.001]]), -1)
    assert rows is not None
    assert rows.effective == pytest.approx((2 + 1 / (0.997**2 + 3e-6)) / 2)
    assert rows.sharp == 0.5


@pytest.mark.parametrize(("query", "key"), [(1, 1), (0, 1), (0.02, 0.02), (0.16, 0.16)])
def test_small_logits_with_the_right_factor_are_healthy(judge: Judge, query: float, key: float) -> None:
    assert judge(FLAT, Attention(1 / 8, query, key), data()) == []


def test_the_factor_one_over_d_is_healthy(judge: Judge) -> None:
    assert judge(FLAT, Attention(1 / 64), data()) == []


def test_a_factor_far_too_small(judge: Judge) -> None:
    (found,) = judge(FLAT, Attention(1 / 64**2), data())
    assert found.severity is Severity.WARNING
    assert found.evidence[0].measured == pytest.approx(1, abs=1e-3)
    assert found.evidence[1].measured == pytest.approx(1 / 512, rel=0.2)


def test_zero_queries_and_zero_keys_never_move(judge: Judge) -> None:
    (found,) = judge(FLAT, Attention(1 / 8, 0, 0), data())
    assert found.severity is Severity.FAULT


def test_saturated_from_the_start(judge: Judge) -> None:
    assert judge(SHARP, Attention(1 / 8), data()) == []
    (found,) = judge(SHARP, Attention(1 / 8, 6.0, 6.0), data())
    assert found.severity is Severity.FAULT


def test_a_query_that_is_its_own_key_is_not_judged(judge: Judge) -> None:
    assert judge(SHARP, Attention(1.0, shared=True), data()) == []


def test_products_without_projections_are_not_judged(judge: Judge) -> None:
    class Pointer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.head = nn.Linear(64, 64), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = F.normalize(self.enter(x), dim=-1)
            scores: Tensor = self.head(((z @ z.mT / 0.07).softmax(-1) @ x).mean(1))
            return scores

    assert judge(SHARP, Pointer(), data()) == []


def test_experts_that_one_token_chooses_are_no_attention(judge: Judge) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts, self.head = nn.Linear(64, 8), nn.Linear(64, 8 * 16), nn.Linear(16, 4)
            nn.init.normal_(self.gate.weight, std=4.0)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.gate(x).softmax(-1)
            y = self.experts(x).unflatten(-1, (8, 16))
            scores: Tensor = self.head((weight.unsqueeze(-2) @ y).squeeze(-2).mean(1))
            return scores

    assert judge(SHARP, Experts(), data()) == judge(FLAT, Experts(), data()) == []
