from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.attention.unscaled_attention import is_bias
from tightrope.checks.trace import producers
from tightrope.checks.weights import is_drawn
from tightrope.finding import Finding, Severity
from tightrope.measure.probes import attention_rows, softmax_rows
from tightrope.tape import Entry, Recorder

Judge = Callable[..., list[Finding]]
CHECK = "unscaled-attention"


class Attention(nn.Module):
    """Causal self-attention with four heads, in one of several spellings."""

    def __init__(self, spelling: str, factor: float, std: float = 1 / 16) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(256, 768), nn.Linear(256, 4)
        nn.init.normal_(self.qkv.weight, std=std)
        self.spelling, self.factor = spelling, factor

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, 4, 64).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.spelling == "fused":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.factor)
        else:
            if self.spelling == "query":
                logits = (q * self.factor) @ k.transpose(-2, -1)
            elif self.spelling == "divide":
                logits = q @ k.mT / (1 / self.factor)
            elif self.spelling == "einsum":
                logits = torch.einsum("bhid,bhjd->bhij", q, k) * self.factor
            else:
                logits = torch.matmul(q, k.mT).mul(self.factor)
            logits = logits.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf)
            y = logits.softmax(-1) @ v
        return self.head(y.transpose(1, 2).reshape(b, t, c)).mean(1)


DATA = 8, 24, 256


@pytest.mark.parametrize("spelling", ["fused", "query", "divide", "einsum", "matmul"])
def test_every_spelling(judge: Judge, spelling: str) -> None:
    data = (torch.randn(DATA), torch.arange(8) % 4)
    assert judge(CHECK, Attention(spelling, 1 / 8), data) == []
    (found,) = judge(CHECK, Attention(spelling, 1.0), data)
    assert found.severity is Severity.FAULT
    assert found.evidence[0].measured == pytest.approx(8, rel=0.15)
    assert found.evidence[0].expected == pytest.approx(1, rel=0.15)
    assert found.evidence[1].measured == 1.0


def test_a_factor_folded_into_the_initialisation_is_fine(judge: Judge) -> None:
    """T5 has no factor and draws its query weights small instead."""
    model = Attention("matmul", 1.0)
    with torch.no_grad():
        model.qkv.weight[:256] /= 8
    assert judge(CHECK, model, (torch.randn(DATA), torch.arange(8) % 4)) == []


def test_large_logits_with_their_factor_are_another_fault(judge: Judge) -> None:
    assert judge(CHECK, Attention("fused", 1 / 8, std=1 / 4), (torch.randn(DATA), torch.arange(8) % 4)) == []


def test_trained_weights_are_not_judged(judge: Judge) -> None:
    model = Attention("matmul", 1.0)
    with torch.no_grad():
        model.qkv.weight *= torch.rand(768, 1).exp() * torch.linspace(0.3, 2, 768).unsqueeze(1)
    assert judge(CHECK, model, (torch.randn(DATA), torch.arange(8) % 4)) == []


@pytest.mark.parametrize(
    "draw",
    [nn.init.normal_, nn.init.xavier_uniform_, nn.init.orthogonal_, nn.init.kaiming_uniform_, nn.init.trunc_normal_],
)
def test_initialisers_draw(draw: Callable[[Tensor], Tensor]) -> None:
    assert is_drawn(draw(torch.empty(128, 64)))
    assert not is_drawn(draw(torch.empty(128, 64)) * torch.linspace(0.5, 1.5, 128).unsqueeze(1))


def test_torch_layers_are_scaled(judge: Judge) -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(64 * 12, 4))
    assert judge(CHECK, model, (torch.randn(4, 12, 64), torch.arange(4))) == []


def test_a_classifier_is_no_attention(judge: Judge) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Softmax(-1))
    nn.init.normal_(model[0].weight, std=10)  # type: ignore[arg-type]
    assert judge(CHECK, model, (torch.randn(16, 8), torch.rand(16, 4)), F.mse_loss) == []


# -- the rows themselves -------------------------------------------------------------------------


def test_rows_of_a_known_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).log1p()
    rows = softmax_rows(logits.softmax(-1), -1)
    assert rows is not None
    assert rows.keys == 4
    assert rows.logit_std == pytest.approx(float(logits.std(correction=0)), rel=1e-5)
    p = logits.softmax(-1)
    assert rows.entropy == pytest.approx(float(-(p * p.log()).sum() / torch.tensor(4.0).log()), rel=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_fused_rows_equal_those_of_the_written_out_softmax(causal: bool) -> None:
    q, k = torch.randn(2, 3, 16, 8), torch.randn(2, 3, 16, 8)
    fused = attention_rows(q, k, 0.3, None, causal)
    logits = 0.3 * q @ k.mT
    if causal:
        logits = logits.masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), -torch.inf)
    plain = softmax_rows(logits.softmax(-1), -1)
    assert fused is not None and plain is not None
    assert fused.logit_std == pytest.approx(plain.logit_std, rel=1e-4)
    assert fused.entropy == pytest.approx(plain.entropy, rel=1e-4)


def test_grouped_queries_and_additive_masks() -> None:
    q, k = torch.randn(2, 4, 16, 8), torch.randn(2, 2, 16, 8)
    mask = torch.zeros(16, 16).masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), -torch.inf)
    grouped = attention_rows(q, k, 0.3, mask, False)
    repeated = attention_rows(q, k.repeat_interleave(2, 1), 0.3, None, True)
    assert grouped is not None and repeated is not None
    assert grouped == repeated


class Patient(dict[int, Entry]):
    """Producers that may be looked up only so often."""

    lookups = 0

    def __getitem__(self, number: int) -> Entry:
        self.lookups += 1
        assert self.lookups < 10_000, "a residual stream is walked once for each of its ways"
        return super().__getitem__(number)


def test_a_long_residual_stream_is_walked_once() -> None:
    tokens, table = torch.arange(32).reshape(8, 4), nn.Embedding(32, 6)
    with Recorder(roots={"": table}) as recorder:
        x = table(tokens)
        for _ in range(30):
            x = x + torch.tanh(x)
        bias = torch.tanh(table.weight) + table.weight
    tape = recorder.tape
    made = Patient(producers(tape))
    assert not is_bias(tape, made, tape.entries[-3].outputs[0])  # tokens are data, though their content is known
    assert is_bias(tape, made, tape.entries[-1].outputs[0])
    assert bias.shape == (32, 6)
