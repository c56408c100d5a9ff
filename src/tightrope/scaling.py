"""How signal, gradient and first update change when a network grows: a coordinate check without training.

A model is predicted at several sizes from the laws of its weights, and for each type of layer the exponent of every
quantity over the size is fitted. Width exponents of zero are what maximal-update parametrisation asks for.

The first step of size lr changes the loss, to first order and through one weight W with gradient G, by -lr sum G^2 for
SGD and by -lr sum |G| for Adam (whose first update is lr sign(G)). Since the loss's gradient at the output is of the
same size at every width, the output moves in proportion.

References:
    Yang et al., Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer (2022).
    Yang et al., Tensor Programs VI: Feature Learning in Infinite-Depth Neural Networks (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from tightrope.errors import InputError
from tightrope.predict import Forecast
from tightrope.step import Loss, predict
from tightrope.tape.initialisers import remember
from tightrope.tape.tape import Entry, Kind, Tape

QUANTITIES = ("signal", "gradient", "weight_gradient", "sgd", "adam")
MAPS = frozenset({
    "linear", "addmm", "embedding", "bilinear", "matmul", "mm", "bmm", "einsum",
    *(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3)),
})  # fmt: skip
"""Operations that read a matrix of weights."""
SETTLED = 0.1
"""An exponent below this is no trend: finite sizes bend power laws by as much."""

STEEP = 4.0
"""An exponent beyond this is no power law: the quantity dies or explodes with every layer."""

Build = Callable[[int], tuple[nn.Module, Any]]


@dataclass(frozen=True)
class LayerScaling:
    """One type of layer over all sizes; a quantity that it does not have is NaN.

    Attributes:
        layer: "embedding", "input", "hidden", "output" or "attention logits".
        values: at each factor, by quantity: `signal` is the std of the layer's results, `gradient` the rms of the
            loss's gradient at them, `weight_gradient` that at the weights (geometric means over the type's layers);
            `sgd` and `adam` are the first-order change of the loss by the first step through all of the type's
            weights, for a learning rate of 1.
        exponents: d ln(value) / d ln(factor), by quantity.
    """

    layer: str
    values: dict[str, tuple[float, ...]]
    exponents: dict[str, float]


@dataclass(frozen=True)
class Scaling:
    """How a network changes with its size.

    Attributes:
        of: what was multiplied, for example "width".
        factors: by how much.
        layers: one row for each type of layer.
    """

    of: str
    factors: tuple[int, ...]
    layers: tuple[LayerScaling, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; quantities that are absent are None."""

        def plain(x: Any) -> Any:
            if isinstance(x, dict):
                return {key: plain(value) for key, value in x.items()}
            if isinstance(x, (list, tuple)):
                return [plain(value) for value in x]
            return None if isinstance(x, float) and not math.isfinite(x) else x

        return {key: plain(value) for key, value in asdict(self).items()}

    def reading(self) -> list[str]:
        """What the exponents mean, in words."""
        return list(_reading(self))

    def __str__(self) -> str:
        heads = ("layer", "signal", "gradient", "its weights'", "SGD moves", "Adam moves")
        lines = [f"exponents over {self.of} (× {', '.join(map(str, self.factors))})"]
        lines.append("  " + heads[0].ljust(17) + "".join(head.rjust(13) for head in heads[1:]))
        for row in self.layers:
            cells = [_cell(row.exponents[name]).rjust(13) for name in QUANTITIES]
            lines.append("  " + row.layer.ljust(17) + "".join(cells))
        return "\n".join([*lines, *(f"  {line}" for line in self.reading())])


def scaling(
    build: Build,
    *,
    factors: Sequence[int] = (1, 2, 4),
    of: str = "width",
    loss: Loss | None = None,
    known: Forecast | None = None,
) -> Scaling:
    """Predict a model at several sizes and fit the exponent of each quantity, by type of layer.

    Args:
        build: `build(factor)` returns (model, inputs), `of` multiplied by that factor; it may build on the meta device.
        factors: at least two different ones.
        of: what the factor multiplies, for the words of the result.
        loss: as for `predict`.
        known: the forecast for factor 1, where it has been made from the laws of the weights.

    Raises:
        InputError: fewer than two factors, or `build` returns no pair of a model and its inputs.
    """
    if len(set(factors)) < 2 or min(factors) < 1:
        raise InputError("fit exponents", f"factors are {tuple(factors)}", "Pass two different ones or more, from 1 up")
    found: list[dict[str, dict[str, float]]] = []
    for factor in factors:
        if factor == 1 and known is not None:
            found.append(_quantities(known))
            continue
        with remember():
            made = build(factor)
        if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
            kind = type(made).__name__
            raise InputError(f"build {of} × {factor}", f"build returned {kind}", "Return (model, inputs)")
        found.append(_quantities(predict(made[0], made[1], loss=loss, weights="laws")))
    rows = []
    for layer in found[0]:
        if all(layer in one for one in found):
            values = {name: tuple(one[layer].get(name, math.nan) for one in found) for name in QUANTITIES}
            rows.append(LayerScaling(layer, values, {name: _slope(factors, values[name]) for name in QUANTITIES}))
    return Scaling(of, tuple(factors), tuple(rows))


def _slope(factors: Sequence[int], values: Sequence[float]) -> float:
    """Least-squares slope of ln(value) over ln(factor)."""
    if not all(value > 0 and math.isfinite(value) for value in values):
        return math.nan
    return float(np.polyfit(np.log(factors), np.log(values), 1)[0])


def _quantities(forecast: Forecast) -> dict[str, dict[str, float]]:
    """The quantities of each type of layer, types in the order of the tape."""
    found: dict[str, dict[str, float]] = {}
    kinds = layer_types(forecast.tape)
    for layer in dict.fromkeys(kinds.values()):
        entries = [entry for entry in forecast.tape.entries if kinds.get(entry.index) == layer]
        found[layer] = _of_type(forecast, entries)
    spread = [law.logit_std for law in forecast.attention]
    if spread:
        found["attention logits"] = {"signal": _typical(spread)}
    return found


def _of_type(forecast: Forecast, entries: list[Entry]) -> dict[str, float]:
    laws, gradients, values = forecast.laws, forecast.gradients, forecast.tape.values
    results, own = [entry.outputs[0] for entry in entries], weights_alone(forecast.tape)
    weights = dict.fromkeys(n for entry in entries for n in _weights(forecast.tape, entry, own) if n in gradients)
    rms = {n: gradients[n].rms for n in weights}
    count = {n: math.prod(values[n].shape) for n in weights}
    return {
        "signal": _typical([laws[n].std for n in results if n in laws]),
        "gradient": _typical([gradients[n].rms for n in results if n in gradients]),
        "weight_gradient": _typical(list(rms.values())),
        "sgd": sum(count[n] * rms[n] ** 2 for n in weights),
        "adam": sum(count[n] * rms[n] for n in weights) * math.sqrt(2 / math.pi),
    }


def _typical(values: Sequence[float]) -> float:
    """Geometric mean of what is positive."""
    kept = [math.log(value) for value in values if value > 0 and math.isfinite(value)]
    return math.exp(sum(kept) / len(kept)) if kept else math.nan


def _weights(tape: Tape, entry: Entry, weights: frozenset[int]) -> list[int]:
    """The matrices of weights that an entry reads."""
    if entry.op not in MAPS:
        return []
    return [n for n in entry.inputs if n in weights and len(tape.values[n].shape) >= 2]


def weights_alone(tape: Tape) -> frozenset[int]:
    """Ids of the parameters and of what is made of them and of buffers alone; looked up by tokens they are data."""
    found = {value.id for value in tape.value_of(Kind.PARAMETER)}
    for entry in tape.entries:
        others = (n for n in entry.inputs if n not in found)
        if found.intersection(entry.inputs) and all(tape.values[n].kind is Kind.BUFFER for n in others):
            found.update(entry.outputs)
    return frozenset(found)


def layer_types(tape: Tape) -> dict[int, str]:
    """The type of every layer with a matrix of weights, by index of its entry.

    The first layers that data meets are "embedding" (of indices) or "input", the last before the loss "output", all
    others "hidden".
    """
    own = weights_alone(tape)
    layers = [entry for entry in tape.entries if _weights(tape, entry, own)]
    indices = {entry.index for entry in layers}
    behind: set[int] = set()  # values that a layer made or that depend on one
    first = set()
    for entry in tape.entries:
        reached = behind.intersection(entry.inputs)
        if entry.index in indices and not reached:
            first.add(entry.index)
        if reached or entry.index in indices:
            behind.update(entry.outputs)
    ahead: set[int] = set()  # values that a layer reads, or from which such a value is made
    last = set()
    for entry in reversed(tape.entries):
        onward = ahead.intersection(entry.outputs)
        if entry.index in indices and not onward:
            last.add(entry.index)
        if onward or entry.index in indices:
            ahead.update(entry.inputs)
    found = {}
    for entry in layers:
        start = "embedding" if entry.op == "embedding" else "input"
        kind = "output" if entry.index in last else start if entry.index in first else "hidden"
        found[entry.index] = kind
    return found


def _cell(exponent: float) -> str:
    return "·" if math.isnan(exponent) else f"{exponent:+.2f}" if abs(exponent) >= 0.005 else "0.00"


def _trend(exponent: float, of: str) -> str:
    return f"{of}^{exponent:.2f}"


def _reading(found: Scaling) -> Iterator[str]:
    rows = {row.layer: row.exponents for row in found.layers}
    inner = [row for row in ("hidden", "attention logits", "output") if abs(_number(rows, row, "signal")) >= SETTLED]
    for layer in inner:
        yield f"{layer}: the signal at initialisation goes as {_trend(rows[layer]['signal'], found.of)}"
    if not inner:
        yield f"signals at initialisation keep their size at any {found.of}"
    for name, optimiser in (("sgd", "SGD"), ("adam", "Adam")):
        moves = {layer: row[name] for layer, row in rows.items() if not math.isnan(row[name])}
        if moves and all(abs(exponent) < SETTLED for exponent in moves.values()):
            yield f"{optimiser}: one learning rate moves the output alike at any {found.of}"
        elif moves:
            yield f"{optimiser}: the output moves alike with learning rates ∝ {_rates(moves, found.of)}"


def _number(rows: dict[str, dict[str, float]], layer: str, name: str) -> float:
    value = rows.get(layer, {}).get(name, math.nan)
    return 0.0 if math.isnan(value) else value


def _rates(moves: dict[str, float], of: str) -> str:
    return ", ".join(f"{_rate(exponent, of)} ({layer})" for layer, exponent in moves.items())


def _rate(exponent: float, of: str) -> str:
    if abs(exponent) > STEEP:
        return "no power"
    return f"{of}^{-exponent:.1f}" if abs(exponent) >= SETTLED else "1"


__all__ = ["LayerScaling", "Scaling", "layer_types", "scaling", "weights_alone"]
