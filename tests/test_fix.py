"""The safe remedies of one step, applied to live objects."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tightrope as tr


def sick() -> tuple[nn.Module, DataLoader[tuple[torch.Tensor, ...]]]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Linear(32, 32), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(32, 4), nn.Softmax(dim=-1))
    data = TensorDataset(100 * torch.rand(256, 32), torch.arange(256) % 4)
    return model, DataLoader(data, batch_size=64, shuffle=True)


def test_causes_are_cured_and_the_same_batch_is_judged_twice() -> None:
    model, loader = sick()
    made = tr.fix(model, loader, loss=F.cross_entropy)
    assert {"unscaled-input", "init-too-small", "double-softmax"} <= {f.check for f in made.before.findings}
    assert made.after.healthy
    assert {remedy.name for _, remedy in made.applied} == {"standardize", "initialize", "remove-softmax"}
    assert isinstance(model[-1], nn.Identity)
    assert next(row.shape for row in made.before.laws) == (64, 32)


def test_nothing_is_applied_to_a_healthy_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    weights = [p.detach().clone() for p in model.parameters()]
    batch = torch.randn(64, 32), torch.arange(64) % 4
    state = torch.get_rng_state()
    made = tr.fix(model, batch, loss=F.cross_entropy)
    assert made.applied == () and made.diff == ""
    assert made.before.healthy and made.after is made.before
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_edits_come_as_a_diff(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("from torch.nn import *\n\ndef build():\n    return Sequential(Linear(32, 4), Softmax(-1))\n")
    from tightrope.factory import build

    model = build(f"{path}:build").model
    made = tr.fix(model, (torch.randn(64, 32), torch.arange(64) % 4), loss=F.cross_entropy)
    assert "-    return Sequential(Linear(32, 4), Softmax(-1))" in made.diff
    assert "+    return Sequential(Linear(32, 4), Identity())" in made.diff
