"""Healthy programs over sequences, as torch initialises them, on which no check may raise an alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import study
from tightrope.diagnose import diagnose
from tightrope.finding import Severity

Program = tuple[nn.Module, Any, Callable[..., Tensor] | None]


class Decoder(nn.Module):
    """A causal encoder of torch's over padded token sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(50, 64, padding_idx=0), nn.Parameter(0.02 * torch.randn(16, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 50)

    def forward(self, ids: Tensor) -> Tensor:
        causal = torch.ones(16, 16, dtype=torch.bool).triu(1)
        x = self.body(self.embed(ids) + self.place, mask=causal, src_key_padding_mask=ids == 0, is_causal=True)
        scores: Tensor = self.head(x)
        return scores


def padded_causal() -> Program:
    ids = torch.randint(1, 50, (8, 16))
    ids[torch.arange(16) >= 16 - torch.arange(8)[:, None]] = 0

    def following(y: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(y[:, :-1].flatten(0, 1), t[:, 1:].flatten(), ignore_index=0)

    return Decoder(), (ids, ids), following


class Pointer(nn.Module):
    """An encoder and a decoder of cells whose state points into the encoder's states."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(20, 32), nn.GRU(32, 32, batch_first=True)
        self.cell, self.head = nn.GRUCell(64, 32), nn.Linear(32, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.embed(source))
        state, out = last[0], []
        for t in range(target.shape[1]):
            weights = (memory @ state[..., None]).squeeze(-1).div(32**0.5).softmax(-1)
            read = (weights[:, None] @ memory).squeeze(1)
            state = self.cell(torch.cat([self.embed(target[:, t]), read], 1), state)
            out.append(self.head(state))
        return F.cross_entropy(torch.stack(out, 1).flatten(0, 1), target.flatten())


def pointer() -> Program:
    return Pointer(), (torch.randint(0, 20, (8, 12)), torch.randint(0, 20, (8, 12))), None


class Words(nn.Module):
    """A language model whose data has time first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(200, 64), nn.LSTM(64, 64, 2, dropout=0.2), nn.Linear(64, 200)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.embed(x))[0]).flatten(0, 1)
        return scores


def time_first_words() -> Program:
    return Words(), (torch.randint(0, 200, (35, 20)), torch.randint(0, 200, (700,))), F.cross_entropy


class Rectified(nn.Module):
    """A rectified recurrence that starts from the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.RNN(1, 64, nonlinearity="relu", batch_first=True), nn.Linear(64, 10)
        nn.init.eye_(self.body.get_parameter("weight_hh_l0"))
        nn.init.zeros_(self.body.get_parameter("bias_hh_l0"))
        nn.init.zeros_(self.body.get_parameter("bias_ih_l0"))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x)[0][:, -1])
        return scores


def identity_recurrence() -> Program:
    return Rectified(), (torch.randn(16, 60, 1), torch.arange(16) % 10), F.cross_entropy


class Flow(nn.Module):
    """Forty steps of Euler's method along a learned field, each compared with the data."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, x: Tensor) -> Tensor:
        states = []
        for _ in range(40):
            x = x + 0.05 * self.field(x**3)
            states.append(x)
        return torch.stack(states, 1)


def neural_ode() -> Program:
    return Flow(), (torch.randn(20, 2), torch.randn(20, 40, 2)), F.l1_loss


@pytest.mark.parametrize("make", [padded_causal, pointer, time_first_words, identity_recurrence, neural_ode])
def test_healthy_sequence_programs_raise_no_alarm(make: Callable[[], Program]) -> None:
    torch.manual_seed(0)
    model, data, loss = make()
    findings = diagnose([study(model, data, loss=loss)])
    assert [f"{f.check}: {f.summary}" for f in findings if f.severity is not Severity.ADVICE] == []
