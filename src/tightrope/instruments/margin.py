"""Margins of a classifier: how far its samples are on their side, and how near it is to the largest margin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tightrope.errors import InputError, RecordError, TightropeError
from tightrope.inputs import arguments
from tightrope.instruments.separator import Numbers, Separator, separator
from tightrope.isolation import force_eager, preserved, undisturbed
from tightrope.subject import first_batch

ASKED = "take the margin"
STRETCH = 2.0
"""Factor on all parameters by which the degree of homogeneity is measured."""
ORDER = 1e-4
"""Relative distance from c^L f below which the outputs count as homogeneous: single precision through many layers."""
ROWS = 20_000
"""Samples times rival classes up to which the largest margin is sought."""


@dataclass(frozen=True, eq=False)
class Margin:
    """What `margin` found.

    Attributes:
        margins: of each sample: the logit of its class less the largest other one; negative where it is wrong.
        smallest: of them.
        wrong: share of samples with a margin of 0 or less.
        order: L where f(c w) = c^L f(w) in all parameters w; None where the outputs are not homogeneous.
        normalised: smallest over |w|^L; None without an order.
        layer: the last linear layer, whose outputs are the logits; None where there is no such layer.
        reached: the smallest margin in that layer's features over the norm of its weights.
        largest, bound: the largest margin that any linear layer on these features reaches, and what none exceeds.
        angle, angle_error: between the layer and the separator of largest margin, and the largest error of it, in
            degrees; NaN where nothing separates the features.
        support: samples that hold the separator.
    """

    margins: Tensor = field(repr=False)
    smallest: float
    wrong: float
    order: float | None
    normalised: float | None
    layer: str | None
    reached: float
    largest: float
    bound: float
    angle: float
    angle_error: float
    support: tuple[int, ...] = field(repr=False)

    @property
    def separable(self) -> bool:
        """Whether some linear layer on the last features puts every sample on its side."""
        return self.largest > 0

    @property
    def verdict(self) -> str | None:
        """How far training has come towards the largest margin; None without a last linear layer."""
        if self.layer is None:
            return None
        if not self.separable:
            return "No linear layer separates these features: there is no largest margin to turn to."
        if self.wrong > 0:
            return f"The features can be separated; the layer leaves {self.wrong:.2g} of the samples on the wrong side."
        return f"The layer reaches {self.reached / self.largest:.3g} of the largest margin."

    def __str__(self) -> str:
        lines = [f"margins of {len(self.margins)} samples, {self.wrong:.2g} of them wrong"]
        lines.append(f"  smallest     {self.smallest:.4g} in logits")
        if self.order is not None and self.normalised is not None:
            lines.append(
                f"  normalised   {self.normalised:.4g}, by the norm of all weights to the power {self.order:.4g}"
            )
        else:
            lines.append("  normalised   none: the outputs are not homogeneous in the weights")
        if self.layer is not None:
            name = self.layer or "the model"
            lines.append(f"  last layer   {self.reached:.4g} of {self.largest:.4g} at most ({name}, over its own norm)")
        if not math.isnan(self.angle):
            lines.append(f"  angle        {self.angle:.4g} ± {self.angle_error:.1g} degrees to the largest margin's")
        return "\n".join([*lines, *([f"  {self.verdict}"] if self.verdict else [])])


def margin(model: nn.Module, batch: Any) -> Margin:
    """How far samples are on their side of a classifier, and its angle to the separator of largest margin.

    Gradient descent on a logistic loss never stops on data that can be separated: the weights grow like log t and turn
    to the separator of largest margin, at an angle of about 1 / log t. For a net that is homogeneous in its weights the
    margin over |w|^L rises. The separator on the last layer's features is found exactly, by non-negative least
    squares; `bound` and `angle_error` are its certificate, from weak duality.

    Args:
        model: a classifier, evaluated in evaluation mode; nothing is changed.
        batch: `(inputs, target)`, target being classes; of a model with one output 0 and 1, or -1 and 1.

    Raises:
        InputError: the batch is no such thing, or outputs are not one number a sample and class.
        RecordError: the model raised.

    References:
        Soudry et al. (2018), The implicit bias of gradient descent on separable data, JMLR 19; Lyu, Li (2020), Gradient
        descent maximizes the margin of homogeneous neural networks, ICLR.
    """
    batch = first_batch(batch)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise InputError(ASKED, f"the batch is of type {type(batch).__name__}", "Pass (inputs, target)")
    inputs, target = batch
    args, kwargs = arguments(model, inputs)
    with undisturbed(), preserved(model), torch.no_grad(), force_eager():
        model.eval()
        try:
            with _last_linear(model) as seen:
                outputs = _logits(model(*args, **kwargs), target)
            order = _order(model, args, kwargs, outputs)
        except TightropeError:
            raise
        except (RuntimeError, TypeError) as error:
            message = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise RecordError(ASKED, message, "See the exception above for the model's own traceback") from error
        classes = _classes(outputs, target)
        margins = _margins(outputs, classes)
        norm = math.sqrt(sum(float(p.double().square().sum()) for p in model.parameters()))
        layer = _head(model, seen, outputs)
    smallest = float(margins.min())
    normalised = None if order is None else smallest / norm**order
    wrong = float((margins <= 0).double().mean())
    if layer is None:
        return Margin(
            margins, smallest, wrong, order, normalised, None, math.nan, math.nan, math.nan, math.nan, math.nan, ()
        )  # fmt: skip
    name, features, weight = layer
    rows, owner = _rows(features, classes, len(weight))
    found = separator(rows)
    reached = float((rows @ weight.reshape(-1)).min() / max(np.linalg.norm(weight), 1e-300))
    angle, doubt = _angle(weight.reshape(-1), found)
    return Margin(
        margins, smallest, wrong, order, normalised, name, reached, found.margin, found.bound, angle, doubt,
        tuple(sorted({int(owner[i]) for i in found.support})),
    )  # fmt: skip


def _logits(outputs: Any, target: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.dim() > 2 or len(outputs) != len(target) or not len(target):
        found = f"of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        remedy = "Pass a model of logits, one row a sample, and as many targets"
        raise InputError(ASKED, f"the output is {found}, the target of shape {tuple(target.shape)}", remedy)
    return outputs.double().reshape(len(outputs), -1)


def _classes(outputs: Tensor, target: Tensor) -> Tensor:
    """The class of each sample; 0 and 1 for a single output."""
    flat = target.reshape(len(target), -1)
    if flat.shape[1] != 1:
        raise InputError(ASKED, f"the target has the shape {tuple(target.shape)}", "Pass one class a sample")
    count = max(outputs.shape[1], 2)
    classes = (flat[:, 0] > 0).long() if outputs.shape[1] == 1 else flat[:, 0].long()
    if int(classes.min()) < 0 or int(classes.max()) >= count:
        raise InputError(ASKED, f"classes go up to {int(classes.max())}, outputs are {count}", "Pass classes from 0")
    return classes.to(outputs.device)


def _margins(outputs: Tensor, classes: Tensor) -> Tensor:
    if outputs.shape[1] == 1:
        return outputs[:, 0] * (2 * classes - 1)
    own = outputs.gather(1, classes[:, None])[:, 0]
    rival = outputs.scatter(1, classes[:, None], -math.inf).max(1).values
    return own - rival


def _order(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Tensor) -> float | None:
    """L with f(c w) = c^L f(w), by a factor on all parameters."""
    parameters = list({id(p): p for p in model.parameters()}.values())
    before = [p.detach().clone() for p in parameters]
    try:
        for p in parameters:
            p.mul_(STRETCH)
        other = model(*args, **kwargs)
    finally:
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
    other = other.double().reshape(outputs.shape)
    size = float(outputs.norm())
    if not size > 0 or not bool(torch.isfinite(other).all()):
        return None
    order = math.log(max(float(other.norm()) / size, 1e-300)) / math.log(STRETCH)
    off = float((other - STRETCH**order * outputs).norm()) / float(other.norm()) if float(other.norm()) > 0 else 1.0
    nearest = round(order)
    return float(nearest) if off < ORDER and abs(order - nearest) < ORDER and nearest > 0 else None


@contextmanager
def _last_linear(model: nn.Module) -> Iterator[list[tuple[nn.Linear, Tensor, Tensor]]]:
    """The last linear layer that is called, with its input and output."""
    seen: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Linear) and args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            seen[:] = [(module, args[0].detach().clone(), output.detach().clone())]

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _head(
    model: nn.Module, seen: list[tuple[nn.Linear, Tensor, Tensor]], outputs: Tensor
) -> tuple[str, Numbers, Numbers] | None:  # fmt: skip
    """Name, features and weights of the layer whose outputs are the logits; its bias is the weight of a constant 1."""
    if not seen:
        return None
    module, features, made = seen[0]
    if made.numel() != outputs.numel() or not torch.equal(made.double().reshape(outputs.shape), outputs):
        return None
    name = next(name for name, m in model.named_modules() if m is module)
    features, weight = features.double().reshape(len(outputs), -1), module.weight.detach().double()
    if module.bias is not None:
        features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        weight = torch.cat([weight, module.bias.detach().double()[:, None]], 1)
    return name, features.cpu().numpy(), weight.cpu().numpy()


def _rows(features: Numbers, classes: Tensor, outputs: int) -> tuple[Numbers, NDArray[np.int64]]:
    """A row for each sample and rival class, whose product with the flat weights is that margin; and its sample."""
    own = classes.cpu().numpy()
    count = len(features)
    if outputs == 1:
        return features * (2 * own - 1)[:, None], np.arange(count)
    if count * (outputs - 1) > ROWS:
        found = f"{count} samples and {outputs} classes make {count * (outputs - 1)} constraints"
        raise InputError(ASKED, found, f"Pass a batch with at most {ROWS // (outputs - 1)} samples")
    rows, owner = [], []
    for rival in range(outputs):
        which = np.flatnonzero(own != rival)
        made = np.zeros((len(which), outputs, features.shape[1]))
        made[np.arange(len(which)), own[which]] = features[which]
        made[:, rival] = -features[which]
        rows.append(made.reshape(len(which), -1))
        owner.append(which)
    return np.concatenate(rows), np.concatenate(owner)


def _angle(weight: Numbers, found: Separator) -> tuple[float, float]:
    size = float(np.linalg.norm(weight))
    if not found.separable or size == 0:
        return math.nan, math.nan
    a, b = weight / size, found.weight / np.linalg.norm(found.weight)
    # atan2 of difference and sum keeps small angles exact
    angle = 2 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b)))
    return math.degrees(angle), math.degrees(found.angle)


__all__ = ["Margin", "margin"]
