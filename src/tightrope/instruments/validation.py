"""The validation loss as a function of the weights: gradient, products with its Hessian, and what each sample adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from tightrope.inputs import arguments
from tightrope.instruments.hessian import Way, flat, second, unflat, value_of
from tightrope.instruments.objective import fresh
from tightrope.isolation import undisturbed
from tightrope.subject import split

FEWEST = 8
"""Batches from which a standard error may be taken where samples cannot be told apart."""


class Validation:
    """E_val at the present weights, in evaluation mode.

    Attributes:
        loss, gradient: of E_val.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], shares: Sequence[float], loss: Any) -> None:
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._shares = tuple(shares)
        self._ways: list[Way] = []
        self._slopes: list[list[tuple[Tensor, Tensor]]] = []
        gradients, values = [], []
        before = [(m, m.training) for m in model.modules()]
        model.eval()
        for batch, share in zip(batches, shares, strict=True):
            inputs, of_output = split(batch, loss)
            with undisturbed(), fresh(model):
                args, kwargs = arguments(model, inputs)
                output = model(*args, **kwargs)
            value = value_of(output, of_output)
            way, gradient = second(value, self.parameters)
            self._ways.append(way)
            gradients.append(share * gradient)
            values.append(share * float(value.detach()))
            self._slopes.append(_slopes(output, value) if of_output is not None else [])
        for module, mode in before:
            module.training = mode
        self.loss = sum(values)
        self.gradient: Tensor = torch.stack(gradients).sum(0)
        self._gradients = gradients

    def __call__(self, vector: Tensor) -> Tensor:
        """The product of the Hessian of E_val with a vector."""
        parts = unflat(vector, self.parameters)
        made = [share * flat(way(parts), self.parameters) for way, share in zip(self._ways, self._shares, strict=True)]
        return torch.stack(made).sum(0)

    def samples(self, vector: Tensor) -> Tensor | None:
        """What each sample adds to gradient · vector; None where samples cannot be told apart.

        The loss is taken as a sum over samples, or their mean: the derivative of a sample's output along the vector
        times the slope of the loss in that output.
        """
        parts = unflat(vector, self.parameters)
        found = []
        for slopes, share in zip(self._slopes, self._shares, strict=True):
            sizes = {len(output) for output, _ in slopes if output.dim()}
            if len(sizes) != 1 or not all(output.dim() for output, _ in slopes):
                return self._of_batches(vector)
            total = torch.zeros(sizes.pop(), dtype=torch.float64)
            for output, slope in slopes:
                along = _along(output, self.parameters, parts)
                total += (slope * along).reshape(len(output), -1).double().sum(1).cpu()
            found.append(share * total)
        return torch.cat(found)

    def _of_batches(self, vector: Tensor) -> Tensor | None:
        if len(self._gradients) < FEWEST:
            return None
        return torch.stack([(g @ vector).double().cpu() for g in self._gradients])


def _slopes(output: Any, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    leaves = [t for t in tree_flatten(output)[0] if isinstance(t, Tensor) and t.requires_grad]
    slopes = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return [(leaf, slope.detach()) for leaf, slope in zip(leaves, slopes, strict=True) if slope is not None]


def _along(output: Tensor, parameters: list[Tensor], parts: list[Tensor]) -> Tensor:
    """The derivative of an output along a direction of the weights: two backward passes."""
    dual = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, parameters, dual, create_graph=True, allow_unused=True)
    heads = [(p, part) for p, part in zip(pulled, parts, strict=True) if p is not None and p.requires_grad]
    if not heads:
        return torch.zeros_like(output)
    tops, along = [p for p, _ in heads], [part for _, part in heads]
    (moved,) = torch.autograd.grad(tops, dual, along, retain_graph=True, materialize_grads=True)
    return moved


__all__ = ["Validation"]
