"""Exponents over width, against real networks whose weights really take a first step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tightrope as tr
from tightrope.scaling import layer_types

INPUTS, CLASSES, FACTORS, SEEDS = 32, 10, (1, 2, 4), 10
X = torch.randn(16, INPUTS, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % CLASSES


def loss(output: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, Y)


def network(width: int, depth: int = 2, output: float = 1.0) -> nn.Sequential:
    sizes = [INPUTS, *[width] * depth, CLASSES]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        linear = nn.Linear(a, b, bias=False)
        nn.init.normal_(linear.weight, std=(2 / a) ** 0.5 if b == width else output / a**0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def by_law(width: int, depth: int = 2, output: float = 1.0) -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        return network(width, depth, output), X


def measured(move: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Exponents of the output's movement by a small step of each layer, over real networks."""
    found: dict[str, list[float]] = {}
    for factor in FACTORS:
        moves: dict[str, list[float]] = {}
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            model = network(128 * factor).double()
            weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
            before = model(X.double())
            gradients = torch.autograd.grad(loss(before), weights)
            for name, weight, gradient in zip(("input", "hidden", "output"), weights, gradients, strict=True):
                step = move(gradient)
                rate = 1e-5 / float(step.norm())
                with torch.no_grad():
                    weight -= rate * step
                    moved = (model(X.double()) - before).square().mean().sqrt()
                    weight += rate * step
                moves.setdefault(name, []).append(float(moved) / rate)
        for name, values in moves.items():
            found.setdefault(name, []).append(float(np.mean(values)))
    return {name: float(np.polyfit(np.log(FACTORS), np.log(values), 1)[0]) for name, values in found.items()}


@pytest.mark.parametrize(("name", "move"), [("sgd", lambda g: g), ("adam", torch.sign)])
def test_a_first_step_moves_the_output_as_predicted(name: str, move: Callable[[Tensor], Tensor]) -> None:
    found = tr.scaling(lambda f: by_law(128 * f), factors=FACTORS, loss=loss)
    real = measured(move)
    for row in found.layers:
        assert row.exponents[name] == pytest.approx(real[row.layer], abs=0.25)


def test_signal_and_gradient_of_the_standard_parametrisation() -> None:
    rows = {row.layer: row.exponents for row in tr.scaling(lambda f: by_law(64 * f), loss=loss).layers}
    assert list(rows) == ["input", "hidden", "output"]
    for row in rows.values():
        assert row["signal"] == pytest.approx(0, abs=0.05)
    assert rows["hidden"]["gradient"] == pytest.approx(-0.5, abs=0.05)
    assert rows["output"]["weight_gradient"] == pytest.approx(0, abs=0.05)


def test_a_small_output_layer_is_seen() -> None:
    """Maximal-update parametrisation draws the output's weights at 1 / width."""
    found = tr.scaling(lambda f: by_law(64 * f, output=f**-0.5), loss=loss)
    rows = {row.layer: row.exponents for row in found.layers}
    assert rows["output"]["signal"] == pytest.approx(-0.5, abs=0.05)
    assert rows["hidden"]["sgd"] == pytest.approx(0, abs=0.2)
    assert rows["hidden"]["adam"] == pytest.approx(1, abs=0.2)
    assert any("output: the signal at initialisation goes as width^-0.5" in line for line in found.reading())


def test_depth() -> None:
    found = tr.scaling(lambda f: by_law(64, depth=3 * f), of="depth", loss=loss)
    hidden = next(row for row in found.layers if row.layer == "hidden")
    assert hidden.exponents["sgd"] > 0.8
    assert found.of in str(found) and found.to_dict()["factors"] == [1, 2, 4]


def test_types_of_layers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16)
    ids = torch.arange(8).reshape(1, 8)
    batch = {"input_ids": ids, "labels": ids, "use_cache": False}
    forecast = tr.predict(transformers.GPT2LMHeadModel(config), batch)
    kinds = layer_types(forecast.tape)
    ops = [(entry.op, kinds[entry.index]) for entry in forecast.tape.entries if entry.index in kinds]
    assert [kind for op, kind in ops if op == "embedding"] == ["embedding"] * 2
    assert ops[-1] == ("linear", "output")
    assert {kind for _, kind in ops[2:-1]} == {"hidden"}


def test_refusals() -> None:
    with pytest.raises(tr.TightropeError, match="factors"):
        tr.scaling(lambda f: by_law(64 * f), factors=(2, 2))
    with pytest.raises(tr.TightropeError, match="build returned Sequential"):
        tr.scaling(lambda f: network(64 * f))  # type: ignore[arg-type, return-value]
