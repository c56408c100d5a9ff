"""Examples do what their pages say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_heat_equation_is_learnt_from_the_equation() -> None:
    heat = example("heat_equation")
    model = heat.build()
    x = torch.rand(50, 1, dtype=torch.float64).requires_grad_()
    t = torch.rand(50, 1, dtype=torch.float64).requires_grad_()
    u = heat.exact(x, t)
    (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(slope, heat.CONDUCTIVITY * second)  # the closed form solves it
    start = heat.error(model.net)
    assert heat.train(model, 250) < 0.5 * start


def test_volumes_are_two_classes_of_one_mass() -> None:
    volumes = example("small_volumes")
    x, y = volumes.phantoms(400, torch.Generator().manual_seed(0))
    assert x.shape == (400, 1, *[volumes.SIDE] * 3) and 150 < int(y.sum()) < 250
    mean = x.mean((1, 2, 3, 4))
    gap = float(mean[y == 1].mean() - mean[y == 0].mean())
    assert abs(gap) < 4 * float(mean.std()) * (2 / 200) ** 0.5  # no class is told by its mean
    for norm in volumes.NORMS:
        model, accuracy = volumes.train(norm, steps=3)
        assert 0 <= accuracy <= 1 and not model.training
