"""Models that hold no numbers: laws of their initialisers, and forecasts from these."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.tape import initialisers
from tightrope.tape.initialisers import draw_of, remember


def by_hand(fill: Callable[[Tensor], object], shape: tuple[int, ...]) -> nn.Module:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(shape))
            with torch.no_grad():
                fill(self.weight)

    return Holder()


def half_filled(x: Tensor) -> None:
    x.data.normal_(0.1, 0.5)
    x.data[: len(x) // 3].fill_(3.0)


FILLS: dict[str, Callable[[Tensor], object]] = {
    "normal": lambda x: nn.init.normal_(x, 0.5, 0.2),
    "uniform": lambda x: nn.init.uniform_(x, -1, 3),
    "constant": lambda x: nn.init.constant_(x, 0.7),
    "ones": nn.init.ones_,
    "truncated": lambda x: nn.init.trunc_normal_(x, 0.2, 1.0, -1.0, 1.5),
    "xavier-uniform": nn.init.xavier_uniform_,
    "xavier-normal": lambda x: nn.init.xavier_normal_(x, 2.0),
    "kaiming-uniform": lambda x: nn.init.kaiming_uniform_(x, a=5**0.5),
    "kaiming-normal": lambda x: nn.init.kaiming_normal_(x, mode="fan_out", nonlinearity="relu"),
    "orthogonal": lambda x: nn.init.orthogonal_(x, 2.0),
    "eye": nn.init.eye_,
    "sparse": lambda x: nn.init.sparse_(x, 0.4, 1.0),
    "in-place": lambda x: x.normal_().mul_(0.3).add_(1.0),
    "truncated-by-hand": lambda x: x.uniform_(-0.95, 0.95).erfinv_().mul_(2**0.5).clamp_(-2, 2),
    "copied": lambda x: x.copy_(torch.randn(x.shape, device=x.device) * 0.1),
    "part-overwritten": half_filled,
}


@pytest.mark.parametrize("name", FILLS)
def test_moments_of_an_initialiser(name: str) -> None:
    with remember(), torch.device("meta"):
        model = by_hand(FILLS[name], (120, 90))
    weight = model.weight
    real = by_hand(FILLS[name], (120, 90)).weight.detach().double()
    draw = draw_of(weight)
    assert weight.is_meta and draw is not None
    assert draw.mean == pytest.approx(float(real.mean()), abs=4 * float(real.std()) / 100 + 1e-6)
    assert draw.variance == pytest.approx(float(real.var()), rel=0.08, abs=1e-9)
    if draw.variance > 0:
        fourth = float((real - real.mean()).pow(4).mean()) / float(real.var()) ** 2
        assert draw.kurtosis == pytest.approx(fourth, rel=0.25)


class Many(nn.Module):
    """Layers of the library, a padding row, a tied weight and buffers of constants."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16, padding_idx=0)
        self.attention = nn.MultiheadAttention(16, 4)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(3, 8, 3)
        self.lstm = nn.LSTM(16, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight
        table = torch.zeros(10, 4)
        table[:, 0::2] = torch.sin(torch.arange(10).unsqueeze(1) * torch.tensor([1.0, 0.1]))
        self.register_buffer("table", table)
        self.register_buffer("mask", torch.tril(torch.ones(5, 5)) == 1)


def test_every_parameter_of_library_layers_has_a_law() -> None:
    with remember(), torch.device("meta"):
        model = Many()
    assert [name for name, p in model.named_parameters() if draw_of(p) is None] == []
    assert draw_of(model.embedding.weight).variance == pytest.approx(39 / 40)
    assert draw_of(model.attention.in_proj_weight).variance == pytest.approx(2 / (16 + 48))
    assert model.head.weight is model.embedding.weight


def test_buffers_of_constants_become_real() -> None:
    real = Many()
    with remember(), torch.device("meta"):
        model = Many()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, real.get_buffer(name)), name


def test_laws_are_forgotten_with_their_weights() -> None:
    with remember(), torch.device("meta"):
        model = nn.Linear(3, 4)
    assert draw_of(model.weight) is not None
    gc.collect()  # of earlier models
    before = len(initialisers._DRAWS)
    del model
    gc.collect()
    assert len(initialisers._DRAWS) == before - 2


def test_a_weight_without_a_law_is_named() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    forecast = tr.predict(model, torch.randn(3, 4))
    said = "0.weight is on the meta device and its initialiser was not recorded"
    assert any(said in why for _, why in forecast.unknown)


def errors(config: object, data: object, seeds: int) -> tuple[list[float], tr.Forecast]:
    transformers = pytest.importorskip("transformers")
    with remember(), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    forecast = tr.predict(model, data)
    found: dict[int, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        measured = tr.measure(transformers.AutoModelForCausalLM.from_config(config), data)
        for index, row in enumerate(tr.compare(forecast, measured).rows):
            if not row.trivial and row.predicted_std and row.measured_std and np.isfinite(row.measured_std):
                found.setdefault(index, []).append((row.predicted_std, row.measured_std))
    return [abs(rows[0][0] / float(np.sqrt(np.mean([m**2 for _, m in rows]))) - 1) for rows in found.values()], forecast


def test_a_language_model_from_its_laws_alone() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=344, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=500,
    )  # fmt: skip
    ids = torch.randint(500, (4, 32))
    found, forecast = errors(config, {"input_ids": ids, "labels": ids, "use_cache": False}, 3)
    assert not forecast.unknown
    assert len(found) > 20 and float(np.median(found)) < 0.03
    largest = max(state.mean.numel() for state in forecast.states.values() if state.axes.shape[-1:] == (500,))
    assert largest <= 32  # channels stay collapsed
