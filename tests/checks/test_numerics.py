from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.finding import Finding

Judge = Callable[..., list[Finding]]
CHECK = "non-finite"


class Around(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 6), nn.Linear(6, 4), function
        with torch.no_grad():
            self.first.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 6), torch.arange(8) % 4


@pytest.mark.parametrize(
    ("function", "op", "scale"),
    [
        (torch.log, "log", 1.0),
        (torch.exp, "exp", 1e4),
        (lambda x: x.square().square().square().square(), "square", 1e6),
        (lambda x: x / (x - x), "div", 1.0),
        (lambda x: torch.softmax(x.masked_fill(torch.ones(6, dtype=torch.bool), -math.inf), -1), "softmax", 1.0),
    ],
)
def test_names_the_first_operation(judge: Judge, function: Callable[[Tensor], Tensor], op: str, scale: float) -> None:
    (found,) = judge(CHECK, Around(function, scale), batch())
    assert found.summary.startswith(f"{op} makes")


def test_says_which_element(judge: Judge) -> None:
    def spoil(x: Tensor) -> Tensor:
        return x + torch.zeros(8, 6).index_put((torch.tensor([5]), torch.tensor([2])), torch.tensor(math.nan))

    (found,) = judge(CHECK, Around(spoil), batch())
    assert "parameter" not in found.summary
    assert "[5, 2]" in found.summary


def test_a_masked_softmax_is_fine(judge: Judge) -> None:
    mask = torch.ones(8, 8).triu(1).bool()

    class Causal(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.qkv, self.head, self.fused = nn.Linear(6, 18), nn.Linear(6, 4), fused

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            if self.fused:
                return self.head(F.scaled_dot_product_attention(q, k, v, attn_mask=mask.float() * -1e30)).mean(1)
            logits = (q @ k.mT / 6**0.5).masked_fill(mask, -math.inf)
            return self.head(logits.softmax(-1) @ v).mean(1)

    data = (torch.randn(5, 8, 6), torch.arange(5) % 4)
    assert judge(CHECK, Causal(False), data) == []
    assert judge(CHECK, Causal(True), data) == []
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(64, 4))
    assert judge(CHECK, model, (torch.randn(5, 8, 8), torch.arange(5) % 4)) == []


def test_a_parameter_that_is_not_finite(judge: Judge) -> None:
    model = Around(torch.relu)
    with torch.no_grad():
        model.last.bias[3] = math.inf
    (found,) = judge(CHECK, model, batch())
    assert "parameter last.bias" in found.summary
    assert "[3]" in found.summary
    assert found.index == -1


def test_data_that_are_not_finite(judge: Judge) -> None:
    x, y = batch()
    x[2, 5] = math.nan
    assert judge(CHECK, Around(torch.relu), (x, y)) == []
    (found,) = judge("non-finite-input", Around(torch.relu), (x, y))
    assert found.summary.startswith("the input: 1 of its 48")
    assert "[2, 5]" in found.summary


def test_a_target_that_is_missing(judge: Judge) -> None:
    x, _ = batch()
    (found,) = judge("non-finite-input", Around(torch.relu), (x, torch.full((8, 4), math.nan)), F.mse_loss)
    assert found.summary.startswith("the target")


def test_gaps_that_the_model_fills_are_fine(judge: Judge) -> None:
    class Filling(nn.Module):
        def __init__(self, way: int) -> None:
            super().__init__()
            self.way, self.head = way, nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = ~torch.isnan(x).any(1)
            filled = (torch.nan_to_num(x), torch.where(torch.isnan(x), 0.0, x), x[rows])[self.way]
            return self.head(filled).mean(0, keepdim=True)

    x, _ = batch()
    x[2, 5] = math.nan
    for way in range(3):
        assert judge("non-finite-input", Filling(way), (x, torch.zeros(1, dtype=torch.long))) == []


def test_a_gradient_that_is_not_finite(judge: Judge) -> None:
    """sqrt is finite at zero, its slope is not."""
    (found,) = judge(CHECK, Around(lambda x: torch.sqrt(torch.relu(x) * 0)), batch())
    assert found.summary.startswith("the gradient of sqrt")


def test_a_scaled_loss_may_overflow(judge: Judge) -> None:
    """What a gradient scaler multiplied is expected to overflow now and then."""
    target = torch.arange(8) % 4

    model = Around(lambda x: 1e8 * (1e-8 * x))
    data = {"x": torch.randn(8, 6)}
    assert judge(CHECK, model, data, lambda out: F.cross_entropy(out, target) * torch.tensor(2.0**126)) == []
    (found,) = judge(CHECK, model, data, lambda out: F.cross_entropy(out, target) * 2.0**126)
    assert found.summary.startswith("the gradient of mul")


def test_missing_data_that_the_model_fills(judge: Judge) -> None:
    class Filling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Around(torch.relu)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(torch.where(torch.isnan(x), torch.zeros(()), x))

    x, y = batch()
    x[1, 1] = math.nan
    assert judge(CHECK, Filling(), (x, y)) == []
