from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
import tightrope.groups
from tightrope.errors import InputError


class Tied(nn.Module):
    """An embedding that is the head as well, a position table, a class token, layer scale, and a part never called."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.pos_embed, self.token = nn.Parameter(torch.zeros(1, 5, 8)), nn.Parameter(torch.zeros(1, 1, 8))
        self.gamma, self.temperature = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.ones(()))
        self.unused, self.norm = nn.Linear(8, 1), nn.LayerNorm((5, 8))


def names(model: nn.Module, **options: Any) -> set[str]:
    """What decays."""
    groups = tr.param_groups(model, 0.1, **options)
    decaying = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in decaying}


CASES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)), {"0.weight", "2.weight"}),
    "image": (lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.GroupNorm(2, 8), nn.PReLU(8)), {"0.weight"}),
    "lstm": (lambda: nn.LSTM(3, 4), {"weight_ih_l0", "weight_hh_l0"}),
    "gru-cell": (lambda: nn.GRUCell(3, 4), {"weight_ih", "weight_hh"}),
    "attention": (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), {"in_proj_weight", "out_proj.weight"}),
    "kernel-attention": (
        lambda: tr.nn.KernelAttention(8, 2, learn_bandwidth=True),
        {"in_proj_weight", "out_proj.weight"},
    ),
    "weight-norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)),
        {"parametrizations.weight.original1"},
    ),
    "bag": (lambda: nn.EmbeddingBag(9, 4), set()),
    "tied": (Tied, {"embed.weight", "pos_embed", "unused.weight"}),
    "untied": (lambda: Tied(tied=False), {"head.weight", "pos_embed", "unused.weight"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_decays(name: str) -> None:
    make, expected = CASES[name]
    assert names(make()) == expected


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_once(name: str) -> None:
    model = CASES[name][0]()
    for frozen in list(model.parameters())[:1]:
        frozen.requires_grad_(False)
    held = [id(p) for group in tr.param_groups(model, 0.1) for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters()}
    torch.optim.AdamW(tr.param_groups(model, 0.1), lr=1e-3)


def test_a_module_used_twice() -> None:
    shared = nn.Linear(4, 4)
    groups = tr.param_groups(nn.Sequential(shared, nn.ReLU(), shared), 0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_choices() -> None:
    assert "embed.weight" in names(Tied(tied=False), embeddings=True)
    assert "pos_embed" not in names(Tied(), skip=["pos_*"])
    assert "embed.weight" not in names(Tied(), skip=["embed.weight"])
    assert [group["weight_decay"] for group in tr.param_groups(nn.LayerNorm(4), 0.1)] == [0.0]


def test_only_weights_shrink() -> None:
    """Without a gradient AdamW multiplies by 1 - lr * decay, and leaves the rest alone."""
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(tr.param_groups(model, 0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if name == "0.weight" else 1.0
        assert torch.allclose(parameter, before[name] * factor)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: tr.param_groups([torch.zeros(2)], 0.1), "given a list"),  # type: ignore[arg-type]
        (lambda: tr.param_groups(nn.Linear(2, 2), -0.1), "weight_decay is -0.1"),
        (lambda: tr.param_groups(nn.Linear(2, 2), float("nan")), "weight_decay is nan"),
        (lambda: tr.param_groups(nn.LazyLinear(2), 0.1), "weight has no shape yet"),
        (lambda: tr.param_groups(nn.Linear(2, 2), 0.1, skip=["pos"]), "no parameter is called pos"),
    ],
)
def test_says_what_is_wrong(act: Callable[[], Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(tightrope.groups).failed == 0
