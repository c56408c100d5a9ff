"""Attention, fused and written out, against the real operation on many samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.rules.attention import shared
from tightrope.rules.softmax import participation, rows

TOKENS, WIDTH, HEADS = 24, 32, 2


class Attention(nn.Module):
    """Self-attention with a position embedding; written out, or fused."""

    def __init__(self, *, causal: bool = False, fused: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.position = nn.Parameter(0.3 * torch.randn(1, TOKENS, WIDTH, generator=generator))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            for layer in (self.qkv, self.out):
                layer.weight.copy_(gain * torch.randn(layer.weight.shape, generator=generator) / math.sqrt(WIDTH))
                layer.bias.zero_()
        self.causal, self.fused = causal, fused

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        q, k, v = self.qkv(x).reshape(len(x), TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
            if self.causal:
                ban = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(ban, -math.inf)
            y = torch.softmax(scores, -1) @ v
        return self.out(y.transpose(1, 2).reshape(x.shape))


def errors(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Relative errors of std and of gradient rms, by operation."""
    x = torch.randn(256, TOKENS, WIDTH, generator=torch.Generator().manual_seed(6))
    comparison = tr.compare(tr.predict(model, x), tr.measure(model, x))
    assert comparison.summary().without_rule == ()
    assert comparison.summary().unknown == ()
    found = {}
    for row in comparison.rows:
        if not row.trivial and row.op != "masked_fill" and row.measured_std and row.measured_grad_rms:
            assert row.predicted_std is not None and row.predicted_grad_rms is not None
            name = f"{row.op} {row.module}"
            found[name] = (row.predicted_std / row.measured_std - 1, row.predicted_grad_rms / row.measured_grad_rms - 1)
    return found


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention(causal: bool) -> None:
    for name, (forward, backward) in errors(Attention(causal=causal)).items():
        assert abs(forward) < 0.08, name
        assert abs(backward) < 0.15, name


def test_queries_that_share_keys_and_values() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.position = nn.Parameter(0.3 * torch.randn(1, TOKENS, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.position
            q = self.q(x).reshape(len(x), TOKENS, 4, 8).transpose(1, 2)
            k, v = self.kv(x).reshape(len(x), TOKENS, 2, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    for name, (forward, backward) in errors(Grouped()).items():
        assert abs(forward) < 0.08, name
        assert abs(backward) < 0.2, name


@pytest.mark.parametrize("causal", [False, True])
def test_attention_written_out_agrees_with_the_real_one(causal: bool) -> None:
    for name, (forward, backward) in errors(Attention(causal=causal, fused=False)).items():
        assert abs(forward) < 0.13, name
        assert name.startswith(("div", "masked_fill")) or abs(backward) < 0.25, name


@pytest.mark.parametrize(("length", "std"), [(64, 1.0), (64, 2.0), (256, 1.5), (256, 3.0), (1024, 2.0), (50, 20.0)])
def test_participation_against_monte_carlo(length: int, std: float) -> None:
    generator = torch.Generator().manual_seed(length)
    scores = std * torch.randn(20000 * 64 // length, length, generator=generator, dtype=torch.float64)
    each = torch.softmax(scores, -1).square().sum(-1)
    error = float(each.std()) / math.sqrt(len(each))
    assert participation(length, std**2) == pytest.approx(float(each.mean()), abs=4 * error)


@pytest.mark.parametrize("gain", [0.3, 1.6])
def test_gradients_of_queries_and_keys_of_the_same_tokens_as_the_values(gain: float) -> None:
    class Separate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.position = nn.Parameter(0.1 * torch.randn(1, 2 * TOKENS, WIDTH))
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
            for layer, scale in ((self.q, gain), (self.k, gain), (self.v, 1.0)):
                nn.init.normal_(layer.weight, std=scale / math.sqrt(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.position
            return F.scaled_dot_product_attention(*(m(x).unsqueeze(1) for m in (self.q, self.k, self.v)))

    x = torch.randn(128, 2 * TOKENS, WIDTH, generator=torch.Generator().manual_seed(6))
    model = Separate()
    rows_ = [row for row in tr.compare(tr.predict(model, x), tr.measure(model, x)).rows if row.op == "linear"]
    for row in rows_:
        assert row.predicted_grad_rms == pytest.approx(row.measured_grad_rms, rel=0.08), row.module


def test_what_causal_averages_share_has_the_mean_covariance_of_each_row() -> None:
    weight = torch.ones(30, 30, dtype=torch.float64).tril()
    weight = weight / weight.sum(-1, keepdim=True)
    residual = torch.rand(30, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    covariance = weight @ torch.diag(residual.flatten()) @ weight.T
    off = covariance - torch.diag(covariance.diagonal())
    u = shared(weight, residual, torch.full((30, 1), math.inf, dtype=torch.float64)).sqrt().flatten()
    assert torch.allclose(u * u.mean(), off.sum(-1) / 29)


def test_participation_has_its_limits() -> None:
    assert participation(1, 3.0) == 1.0
    assert participation(50, 0.0) == pytest.approx(1 / 50)


def test_masked_keys_get_no_weight() -> None:
    mean = torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64)
    found = rows(mean, torch.full((1, 3), 0.5, dtype=torch.float64))
    assert float(found.mean[0, 2]) == 0.0
    assert float(found.mean.sum()) == pytest.approx(1.0)


def test_embedding_of_known_indices_is_that_of_the_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 8))
    indices = torch.randint(0, 50, (32, 10))
    rows_ = [
        row for row in tr.compare(tr.predict(model, indices), tr.measure(model, indices)).rows if row.op == "embedding"
    ]
    assert rows_[0].predicted_std == pytest.approx(rows_[0].measured_std, rel=5e-3)


def test_transposed_weights_agree_with_linear() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 40, generator=torch.Generator().manual_seed(1)) / 5)
            self.bias = nn.Parameter(torch.zeros(40))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    x = torch.randn(512, 24, generator=torch.Generator().manual_seed(2))
    model = Conv1D()
    forecast, measured = tr.predict(model, x), tr.measure(model, x)
    row = tr.compare(forecast, measured).rows[0]
    assert row.predicted_std == pytest.approx(row.measured_std, rel=0.01)
    names = {value.name: value.id for value in forecast.tape.values.values() if value.name}
    theirs = {value.name: value.id for value in measured.tape.values.values() if value.name}
    predicted = forecast.gradients[names["weight"]].rms
    assert predicted == pytest.approx(measured.gradients[theirs["weight"]].rms, rel=0.05)
