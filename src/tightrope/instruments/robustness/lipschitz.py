"""Upper bounds of a model's Lipschitz constant that hold for certain, and lower bounds from a search."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.instruments.robustness.function import Evaluated, evaluated
from tightrope.instruments.robustness.graph import Graph, Unbounded, Walker
from tightrope.instruments.robustness.jacobian import ROUNDING, norms
from tightrope.instruments.robustness.lipsdp import chain, lipsdp
from tightrope.instruments.robustness.local import local_bounds

ASKED = "bound the Lipschitz constant"
SCALES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Lengths of the search's steps in units of the data's spread."""


@dataclass(frozen=True)
class Layer:
    """One linear segment of the model and what follows it.

    Attributes:
        name: what follows the segment, and where.
        norm: upper bound of the segment's spectral norm.
        exact: whether it is the norm itself, from the segment's whole matrix.
        slope: largest slope of what follows.
    """

    name: str
    norm: float
    exact: bool
    slope: float


@dataclass(frozen=True, eq=False)
class Lipschitz:
    """Bounds of ||f(x) - f(x')|| / ||x - x'|| in the Euclidean norm.

    Attributes:
        upper: the least certified upper bound over all inputs; None where an operation has none.
        product: from norms of linear segments times largest slopes, branches added.
        sdp: LipSDP's, verified apart from its solver; None where it was not asked for or does not apply (`notes`).
        lower: largest Jacobian norm that the search met, rounding taken off: no valid bound lies below it.
        local: upper bound in the ball of radius `eps` about each sample; shape (samples,); None without eps.
        eps: radius of the balls, in the Euclidean norm.
        layers: the linear segments in order.
        missing: operation and place that has no certified bound; None where all have.
        notes: what could not be had, and how the model was found.
    """

    upper: float | None
    product: float | None
    sdp: float | None
    lower: float
    local: Tensor | None = field(repr=False)
    eps: float | None
    layers: tuple[Layer, ...] = field(repr=False)
    missing: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float | None:
        """Upper over lower bound: 1 where the constant is known."""
        return None if self.upper is None or self.lower <= 0 else self.upper / self.lower

    def __str__(self) -> str:
        lines = ["Lipschitz constant, Euclidean norm"]
        if self.upper is None:
            lines.append(f"  upper     unknown: no certified bound of {self.missing}")
        else:
            ratio = "" if self.gap is None else f", {self.gap:.3g} times the lower bound"
            lines.append(f"  upper     {self.upper:.6g}{ratio}")
        lines += [f"  product   {self.product:.6g}"] if self.product is not None else []
        lines += [f"  LipSDP    {self.sdp:.6g}"] if self.sdp is not None else []
        lines.append(f"  lower     {self.lower:.6g}")
        if self.local is not None:
            middle, most = float(self.local.median()), float(self.local.max())
            lines.append(f"  local     {middle:.4g} median, {most:.4g} at most, within {self.eps:.3g} of a sample")
        lines += [
            f"    {layer.name:<28} norm {layer.norm:.4g}{'' if layer.exact else ' at most'}, slope {layer.slope:.4g}"
            for layer in self.layers
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def lipschitz_bound(
    model: nn.Module, inputs: Any, *, eps: float | None = None, sdp: bool = False, rounds: int = 8, seed: int = 0
) -> Lipschitz:
    """Certified upper bounds of a model's Lipschitz constant, and the largest slope that a search finds.

    The product bound multiplies the spectral norms of the linear parts by the largest slopes of what stands between
    them; a convolution counts with its norm on the size that it runs on. Residual branches add up. Bounds for layers
    that have one: linear, convolutional, batch norm on running statistics, pooling, pointwise activations, softmax,
    sums, concatenations; a layer norm counts as steep as it is on a constant input (1 / sqrt(eps)).

    Args:
        model: looked at as it is evaluated, and left as found.
        inputs: a batch; a global bound needs its shape alone, the search starts from it, local bounds are about it.
        eps: radius of balls about the samples for tighter, local bounds.
        sdp: also solve LipSDP, for a chain of linear layers and activations of up to 300 neurons and inputs.
        rounds: of the search for the lower bound.
        seed: of the search.

    Raises:
        InputError: no floating-point input, samples that see each other, or something not finite.
        RecordError: the model raised.

    References:
        Szegedy et al. (2014), Intriguing properties of neural networks, ICLR, for the product; Fazlyab et al. (2019),
        Efficient and accurate estimation of Lipschitz constants for deep neural networks, NeurIPS, for LipSDP (its
        neuron form; the network form is no valid bound: Pauli et al. (2021), Training robust neural networks using
        Lipschitz bounds, IEEE Control Systems Letters 6).
    """
    if eps is not None and not 0 <= eps < math.inf:
        raise InputError(ASKED, f"eps is {eps!r}", "Pass a radius of zero or more")
    with evaluated(model, inputs, ASKED) as function:
        function.refuse_mixing()
        lower = _search(function, rounds, seed)
        notes = list(function.modes)
        try:
            with torch.no_grad():
                walker = Walker(function)
                graph = walker.graph()
        except Unbounded as error:
            return Lipschitz(None, None, None, lower, None, eps, (), str(error), tuple(notes))
        product, layers = _product(graph)
        solved = _solve(graph, notes) if sdp else None
        upper = min(product, solved) if solved is not None else product
        local = None if eps is None else local_bounds(function, walker, graph, eps).clamp(max=upper)
    return Lipschitz(upper, product, solved, lower, local, eps, layers, None, tuple(notes))


def _product(graph: Graph) -> tuple[float, tuple[Layer, ...]]:
    gains = {graph.source: 1.0}
    layers = []
    for joint in graph.joints:
        parts = [gains[part.base] * part.norm for part in joint.parts]
        gains[joint.output] = joint.slope * (sum(parts) if joint.gather == "sum" else math.hypot(*parts))
        for part in joint.parts:
            where = f" of {joint.entry.module}" if joint.entry.module else ""
            layers.append(Layer(f"{joint.entry.op}{where}", part.norm, part.exact, joint.slope))
    last = graph.last
    layers.append(Layer("output", last.norm, last.exact, 1.0))
    return gains[last.base] * last.norm, tuple(layers)


def _solve(graph: Graph, notes: list[str]) -> float | None:
    found = chain(graph)
    if isinstance(found, str):
        notes.append(f"LipSDP does not apply: {found}")
        return None
    bound = lipsdp(*found)
    if bound is None:
        notes.append("LipSDP: no weights were found that pass verification")
    return bound


def _search(function: Evaluated, rounds: int, seed: int) -> float:
    """Largest Jacobian norm over the data and over points that descend from the steepest of them.

    References:
        Rechenberg (1973), Evolutionsstrategie: keep the best, vary them at several scales.
    """
    x = function.x
    chance = torch.Generator().manual_seed(seed)
    spread = float((x - x.mean(0)).double().square().mean().sqrt()) or float(x.double().square().mean().sqrt()) or 1.0
    values, _ = norms(function, x, 0.01, seed)
    best, points = values, x
    for i in range(rounds):
        keep = max(len(x) // 4, 1)
        parents = points[best.argsort(descending=True)[:keep].to(x.device)]
        parents = parents[torch.arange(len(x), device=x.device) % keep]
        scale = torch.tensor([SCALES[(i + j) % len(SCALES)] for j in range(len(x))]).to(x)
        noise = torch.randn(x.shape, generator=chance, dtype=torch.float64).to(x)
        trial = parents + spread * scale.view(-1, *[1] * (x.dim() - 1)) * noise
        found, _ = norms(function, trial, 0.01, seed)
        both = torch.cat([best, found])
        order = both.argsort(descending=True)[: len(x)]
        best, points = both[order], torch.cat([points, trial])[order.to(x.device)]
    largest = float(torch.cat([values, best]).max())
    depth = sum(1 for _ in function._model.modules())
    return largest * (1 - ROUNDING * depth * torch.finfo(x.dtype).eps)


__all__ = ["Layer", "Lipschitz", "lipschitz_bound"]
