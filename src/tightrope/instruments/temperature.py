"""One number that makes logits honest: the temperature, fitted on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.inputs import bind
from tightrope.instruments.calibration import LEAST, Calibration, calibration
from tightrope.instruments.classes import labelled, output_tensor
from tightrope.instruments.estimate import Estimate, positive
from tightrope.step import force_eager, preserved

ASKED = "fit a temperature"
STEPS = 100
"""Newton steps; the bisection that guards them halves the range of doubles in as many."""


class Tempered(nn.Module):
    """A model whose logits are divided by a temperature; the most likely class stays.

    Args:
        model: returns logits, or a mapping or an object that holds them as `logits`.
        temperature: positive.

    Attributes:
        temperature: a buffer, so that it is stored with the model.
    """

    temperature: Tensor

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise InputError("temper a model", f"the temperature is {temperature}", "Pass a positive number")
        self.model = model
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, its logits divided."""
        output = self.model(*args, **kwargs)
        if isinstance(output, Tensor):
            return output / self.temperature.to(output.dtype)
        if isinstance(output, Mapping) and "logits" in output:
            return {**output, "logits": output["logits"] / self.temperature}
        return output_tensor(output, "temper a model") / self.temperature


@dataclass(frozen=True, eq=False)
class Temperature:
    """The temperature with the largest likelihood on held-out data.

    Attributes:
        value: with its 95 % interval; the error holds whether or not a tempered softmax is the true law.
        before, after: calibration on the same data at temperature 1 and at the fitted one. One number was fitted
            to them, which flatters the likelihood afterwards by about 1 / (2 samples) nats.
        model: the model with its logits divided; None where logits were passed.
        unchanged: share of samples whose most likely class is as before: all, but where rounding makes a tie.
    """

    value: Estimate
    before: Calibration
    after: Calibration
    unchanged: float
    model: nn.Module | None = field(default=None, repr=False)

    @property
    def verdict(self) -> str | None:
        """`overconfident` or `underconfident`, in a sentence, where it is sure and worth a hundredth of a nat."""
        log, relative = math.log(self.value.value), self.value.error / self.value.value
        saved = self.before.nll - self.after.nll
        if abs(log) < 2.58 * relative or saved < LEAST:
            return None
        name = "overconfident" if log > 0 else "underconfident"
        return f"{name}: at the temperature {self.value} a sample costs {saved:.3g} nats less"

    def __str__(self) -> str:
        old, new = self.before, self.after
        lines = [
            f"Temperature {self.value}, from {old.samples} samples",
            f"  {'':<12} {'before':>9} {'after':>9}",
            f"  {'nats':<12} {old.nll:>9.4f} {new.nll:>9.4f}",
            f"  {'ECE':<12} {old.ece.value:>9.4f} {new.ece.value:>9.4f}   calibrated: {new.ece.null:.4f}",
            f"  {'confidence':<12} {old.confidence:>9.4f} {new.confidence:>9.4f}",
            f"  {'accuracy':<12} {old.accuracy:>9.4f} {new.accuracy:>9.4f}",
        ]
        return "\n".join([*lines, *([f"  {self.verdict}"] if self.verdict else [])])


def temperature(model: nn.Module | Tensor, data: Any) -> Temperature:
    """The number by which logits are to be divided, with its error, and the model that does so.

    Minimises the mean of -z_y / T + log sum exp(z / T), which is convex in 1 / T, by Newton's method with bisection.

    Args:
        model: returns logits; or logits themselves, (samples, classes). It is evaluated in evaluation mode, and not
            changed.
        data: held-out `(inputs, labels)` or a loader of them; for logits, the labels.

    Raises:
        InputError: there is no such data, or no finite temperature: every label is the most likely class, or the
            logits tell nothing about the labels.

    References:
        Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern neural networks, ICML; White (1982), Maximum
        likelihood estimation of misspecified models, Econometrica 50, for the error.
    """
    logits, labels = (model, data) if isinstance(model, Tensor) else _held_out(model, data)
    log_p, y, _ = labelled(logits, labels, "logits", ASKED)
    value = fit(log_p, y)
    cooled = (log_p / value.value).log_softmax(1)
    best, then = log_p.argmax(1), cooled.argmax(1)
    before, after = (calibration(x, y, head="logits") for x in (log_p, cooled))
    wrapped = None if isinstance(model, Tensor) else Tempered(model, value.value)
    return Temperature(value, before, after, float((best == then).double().mean()), wrapped)


def fit(log_p: Tensor, labels: Tensor) -> Estimate:
    """Temperature and its interval, from log probabilities (or logits) in float64 and class indices.

    Raises:
        InputError: there is no finite temperature.
    """
    z = log_p - log_p.max(1, keepdim=True).values  # at most 0, and 0 at the best
    right = z.gather(1, labels[:, None])[:, 0]
    if bool(right.isneginf().any()):
        found = f"{int(right.isneginf().sum())} labels have a probability of 0"
        raise InputError(ASKED, found, "No temperature makes them possible: pass finite logits")
    if not bool((right < 0).any()):
        found = f"the most likely class of all {len(right)} samples is right"
        raise InputError(ASKED, found, "The colder the better: pass held-out data on which the model errs")
    z = z.clamp(min=-1e300)
    score, _ = _slope(z, right, 0.0)
    if float(score.mean()) >= 0:
        raise InputError(ASKED, "the logits tell nothing about the labels", "No temperature helps: look at the labels")
    low, high = 0.0, 1.0
    while float(_slope(z, right, high)[0].mean()) < 0:
        low, high = high, high * 2
    beta = (low + high) / 2
    for _ in range(STEPS):
        score, curvature = _slope(z, right, beta)
        low, high = (low, beta) if float(score.mean()) > 0 else (beta, high)
        step = beta - float(score.mean()) / max(curvature, 1e-300)
        new = step if low < step < high else (low + high) / 2
        done = abs(new - beta) <= 1e-13 * beta
        beta = new
        if done:
            break
    score, curvature = _slope(z, right, beta)
    relative = float(score.std()) / math.sqrt(len(score)) / (curvature * beta) if len(score) > 1 else math.inf
    return positive(1 / beta, (relative / beta) ** 2, 1.96)


def _slope(z: Tensor, right: Tensor, beta: float) -> tuple[Tensor, float]:
    """Derivative in beta = 1 / T of each sample's loss, and the mean second derivative."""
    p = (beta * z).softmax(1) if beta > 0 else torch.full_like(z, 1 / z.shape[1])
    mean = (p * z).sum(1)
    return mean - right, float((p * (z - mean[:, None]).square()).sum(1).mean())


@torch.no_grad()
def _held_out(model: nn.Module, data: Any) -> tuple[Tensor, Tensor]:
    """Logits and labels of all batches."""
    batches = [data] if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[1], Tensor) else data
    if not isinstance(model, nn.Module) or not isinstance(batches, Iterable):
        found = f"model is {type(model).__name__}, data {type(data).__name__}"
        raise InputError(ASKED, found, "Pass a model and (inputs, labels), or logits and labels")
    logits, labels = [], []
    with preserved(model), force_eager():
        model.eval()
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
                raise InputError(ASKED, f"a batch is {type(batch).__name__}", "Pass batches (inputs, labels)")
            args, kwargs = bind(model, batch[0])
            logits.append(output_tensor(model(*args, **kwargs), ASKED).cpu())
            labels.append(batch[1].cpu())
    if not logits:
        raise InputError(ASKED, "there is no batch", "Pass held-out data")
    return torch.cat(logits), torch.cat(labels)


__all__ = ["Temperature", "Tempered", "fit", "temperature"]
