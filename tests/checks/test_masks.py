from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.finding import Finding, Severity

Judge = Callable[..., list[Finding]]
CHECK = "hidden-by-mask"


def padded(n: int = 12, t: int = 10, shortest: int = 3) -> Tensor:
    torch.manual_seed(0)
    ids = torch.randint(1, 30, (n, t))
    ids[torch.arange(t) >= torch.linspace(shortest, t, n).long()[:, None]] = 0
    return ids


class Encoder(nn.Module):
    """Tokens, one attention of torch's under a padding mask, and a head on the mean."""

    def __init__(self, mask: Callable[[Tensor], Tensor], *, written: bool = False, fill: float = -torch.inf) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 32), nn.Linear(32, 2)
        self.mix = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mask, self.written, self.fill = mask, written, fill

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.written:
            logits = (x @ x.mT / 32**0.5).masked_fill(self.mask(ids)[:, None], self.fill)
            x = logits.softmax(-1) @ x
        else:
            x = self.mix(x, x, x, key_padding_mask=self.mask(ids), need_weights=False)[0]
        scores: Tensor = self.head(x.mean(1))
        return scores


@pytest.mark.parametrize("written", [False, True])
def test_padding_that_is_hidden_is_healthy(judge: Judge, written: bool) -> None:
    ids = padded()
    assert judge(CHECK, Encoder(lambda ids: ids == 0, written=written), (ids, torch.arange(12) % 2)) == []


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("fill", [-torch.inf, -1e9])
def test_padding_that_alone_is_seen(judge: Judge, written: bool, fill: float) -> None:
    ids = padded()[:-2]
    model = Encoder(lambda ids: ids != 0, written=written, fill=fill)
    (found,) = judge(CHECK, model, (ids, torch.arange(10) % 2))
    assert found.severity is Severity.FAULT
    assert "leaves the padding" in found.summary


def test_a_token_that_all_attend_to_is_no_padding(judge: Judge) -> None:
    ids = padded(shortest=10)
    ids[:, 0] = 1
    model = Encoder(lambda ids: torch.arange(10).expand(ids.shape) > 0, written=True)
    assert judge(CHECK, model, (ids, torch.arange(12) % 2)) == []


def test_a_number_that_hides_every_key(judge: Judge) -> None:
    ids = padded(shortest=10)
    (found,) = judge(CHECK, Encoder(lambda ids: ids >= 0, written=True, fill=-1e9), (ids, torch.arange(12) % 2))
    assert "all keys weigh the same" in found.summary


def test_empty_sequences_that_stay_finite_are_healthy(judge: Judge) -> None:
    ids = padded(shortest=0)
    model = Encoder(lambda ids: ids == 0, written=True, fill=-1e9)
    assert judge(CHECK, model, (ids, torch.arange(12) % 2)) == []


class Decoder(nn.Module):
    """Next tokens from a mask over earlier or later ones."""

    def __init__(self, visible: Callable[[int], Tensor], *, both: bool = False) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(30, 32), nn.Linear(32, 96), nn.Linear(32, 30)
        self.visible, self.both = visible, both

    def forward(self, ids: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.visible(ids.shape[1]))
        if self.both:
            y = y + F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores: Tensor = self.head(y)
        return scores


def earlier(t: int) -> Tensor:
    return torch.ones(t, t).tril().bool()


def later(t: int) -> Tensor:
    return torch.ones(t, t).triu().bool()


def following(scores: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_direction_of_time(judge: Judge) -> None:
    ids = torch.randint(0, 30, (8, 12))
    assert judge(CHECK, Decoder(earlier), (ids, ids), following) == []
    assert judge(CHECK, Decoder(later, both=True), (ids, ids), following) == []
    (found,) = judge(CHECK, Decoder(later), (ids, ids), following)
    assert found.severity is Severity.FAULT
    assert "the targets are the next tokens" in found.summary


def test_backward_attention_without_next_tokens_is_a_warning(judge: Judge) -> None:
    ids = torch.randint(0, 30, (8, 12))
    (found,) = judge(CHECK, Decoder(later), (ids, ids), lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten()))
    assert found.severity is Severity.WARNING


def test_a_local_window_and_one_query_are_healthy(judge: Judge) -> None:
    ids = torch.randint(0, 30, (8, 12))
    window = Decoder(lambda t: torch.ones(t, t).tril(2).triu(-2).bool())
    assert judge(CHECK, window, (ids, ids), following) == []
