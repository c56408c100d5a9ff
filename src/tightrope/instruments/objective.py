"""What is minimised in training, as a function of the weights and of the hyperparameters.

    F(w, h) = mean over batches and draws of loss(model(augment(x, h)), y) + weight_decay / 2 |w|^2 + penalty(model, h)

Dropout's masks and the augmentation's noise are draws under fixed seeds, common to all values of the hyperparameters,
so that differences between two values hold little of their noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from tightrope.errors import InputError, RecordError, TightropeError
from tightrope.inputs import arguments
from tightrope.instruments.hessian import Way, flat, second, unflat, value_of
from tightrope.isolation import undisturbed
from tightrope.subject import first_batch, split

Values = Mapping[str, float]
Loss = Callable[..., Tensor]
Masks = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d

ASKED = "read the compass"
DECAY, DROPOUT, SMOOTHING, STRENGTH = "weight_decay", "dropout", "label_smoothing", "augmentation"
RATES = (DROPOUT, SMOOTHING)
"""Hyperparameters between 0 and 1."""
CHANNELS = {nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}
"""Dimensions that one number of a mask is for."""
STEP = 0.05
"""Half of the narrow difference in an augmentation's strength, relative to it."""


@dataclass(frozen=True, eq=False)
class Task:
    """A model with its training data and all that its objective is made of.

    Attributes:
        model: whose trainable parameters are the weights.
        batches: each `(inputs, target)`, or inputs.
        shares: part of the samples that each holds.
        loss: as in `Subject`.
        augment: `augment(inputs, strength)`, or None.
        penalty: `penalty(model, values)`, a term of the objective that is differentiable in its values; or None.
        decayed: the parameters that weight decay acts on.
        masked: the dropout modules whose rate is a hyperparameter.
        seeds: one a draw.
    """

    model: nn.Module
    batches: tuple[Any, ...]
    shares: tuple[float, ...]
    loss: Loss | None
    augment: Callable[..., Any] | None
    penalty: Callable[..., Tensor] | None
    decayed: tuple[Tensor, ...]
    masked: tuple[Masks, ...]
    seeds: tuple[int, ...]

    @property
    def parameters(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def value(self, turn: int, seed: int, values: Values) -> Tensor:
        """Loss of one batch under one draw, without decay and penalty."""
        batch, loss = self.batches[turn], self.loss
        inputs, of_output = split(batch, loss)
        with undisturbed():
            _seed(seed + turn)
            if self.augment is not None:
                inputs = self.augment(inputs, values[STRENGTH])
            args, kwargs = arguments(self.model, inputs)
            with fresh(self.model):
                output = self.model(*args, **kwargs)
        if loss is None or SMOOTHING not in values:
            return value_of(output, of_output)
        amount = values[SMOOTHING]
        sharp, even = (value_of(output, split(batch, smoothed(loss, e))[1]) for e in (0.0, 1.0))
        return (1 - amount) * sharp + amount * even


def _seed(number: int) -> None:
    """As torch.manual_seed, for the devices in use alone: that one takes milliseconds to tell all the others."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def gathered(data: Any, name: str) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """All batches of a loader, or the one that was passed, and the share of the samples that each holds."""
    single = first_batch(data) is data
    with undisturbed():
        batches = (data,) if single else tuple(data)
    sizes = [_samples(batch) for batch in batches]
    if not batches or not all(sizes):
        raise InputError(ASKED, f"{name} holds no sample", "Pass a batch, or a loader of batches")
    return batches, tuple(size / sum(sizes) for size in sizes)


def _samples(batch: Any) -> int:
    return next((len(t) for t in tree_flatten(batch)[0] if isinstance(t, Tensor) and t.dim()), 0)


def smoothed(loss: Loss, amount: float) -> Loss:
    """A cross-entropy with this label smoothing.

    Raises:
        InputError: the loss has no such option.
    """
    if isinstance(loss, nn.CrossEntropyLoss):
        return partial(
            nn.functional.cross_entropy, weight=loss.weight, ignore_index=loss.ignore_index, reduction=loss.reduction,
            label_smoothing=amount,
        )  # fmt: skip
    try:
        able = "label_smoothing" in signature(loss).parameters
    except (TypeError, ValueError):
        able = False
    if not able:
        remedy = "Pass loss=F.cross_entropy, nn.CrossEntropyLoss() or a function with an argument label_smoothing"
        raise InputError(ASKED, "label smoothing is asked for, and the loss has no such argument", remedy)
    return partial(loss, label_smoothing=amount)


class Objective:
    """F at the present weights and values: its gradient, products with its Hessian, and its mixed derivatives.

    Attributes:
        gradient: of F, as one vector.
        products: how many were made.
    """

    def __init__(self, task: Task, values: Values) -> None:
        self.task, self.values = task, dict(values)
        self.parameters = task.parameters
        self.products = 0
        self._ways: list[list[Way]] = []
        parts = []
        for seed in task.seeds:
            ways, gradients = [], []
            with rates(task.masked, values.get(DROPOUT)):
                for turn, share in enumerate(task.shares):
                    way, gradient = second(task.value(turn, seed, self.values), self.parameters)
                    ways.append(way)
                    gradients.append(share * gradient)
            self._ways.append(ways)
            parts.append(torch.stack(gradients).sum(0))
        self._decay = flat([_mask(p, task.decayed) for p in self.parameters], self.parameters)
        self._penalty = _Penalty(task, self.values) if task.penalty is not None else None
        own = values.get(DECAY, 0.0) * self._decay * self._weights()
        if self._penalty is not None:
            own = own + self._penalty.gradient
        self.gradient: Tensor = torch.stack(parts).mean(0) + own

    def _weights(self) -> Tensor:
        return flat(self.parameters, self.parameters)

    def of_draws(self, vector: Tensor) -> Tensor:
        """Products of the Hessian of each draw with a vector; shape (draws, n)."""
        self.products += 1
        parts = unflat(vector, self.parameters)
        own = self.values.get(DECAY, 0.0) * self._decay * vector
        if self._penalty is not None:
            own = own + flat(self._penalty.way(parts), self.parameters)
        made = []
        for ways in self._ways:
            total = own
            for way, share in zip(ways, self.task.shares, strict=True):
                total = total + share * flat(way(parts), self.parameters)
            made.append(total)
        found = torch.stack(made)
        if not bool(torch.isfinite(found).all()):
            remedy = "Look for a root, a power or a norm at zero, whose second derivative is infinite"
            raise InputError(ASKED, "a product of the Hessian holds NaN or infinity", remedy)
        return found

    def __call__(self, vector: Tensor) -> Tensor:
        """The product of the Hessian with a vector."""
        return self.of_draws(vector).mean(0)

    def mixed(self, name: str) -> Mixed:
        """The derivative of the gradient in a hyperparameter."""
        if name == DECAY:
            return Mixed((self._decay * self._weights())[None], 0.0)
        if name == SMOOTHING:
            made = [self._slope(seed, {**self.values, name: 1.0}) - self._slope(seed, {**self.values, name: 0.0})
                    for seed in self.task.seeds]  # fmt: skip
            return Mixed(torch.stack(made), None)
        if name in (DROPOUT, STRENGTH):
            return self._differences(name)
        assert self._penalty is not None
        return Mixed(self._penalty.mixed(name)[None], 0.0)

    def _slope(self, seed: int, values: Values) -> Tensor:
        """The gradient under one draw at some values, without decay and penalty."""
        gradients = []
        with rates(self.task.masked, values.get(DROPOUT)):
            for turn, share in enumerate(self.task.shares):
                value = self.task.value(turn, seed, values)
                found = torch.autograd.grad(value, self.parameters, allow_unused=True)
                gradients.append(share * flat(found, self.parameters))
        return torch.stack(gradients).sum(0)

    def _differences(self, name: str) -> Mixed:
        """By differences under common seeds, with Richardson's step: 4/3 of the narrow one less 1/3 of the wide one."""
        at = self.values[name]
        width = step_of(name, at)
        offsets = (-2, -1, 1, 2) if at > 0 else (0, 1, 2, 4)
        narrow, wide = [], []
        for seed in self.task.seeds:
            a, b, c, d = (self._slope(seed, {**self.values, name: at + k * width}) for k in offsets)
            if at > 0:
                narrow.append((c - b) / (2 * width))
                wide.append((d - a) / (4 * width))
            else:  # one-sided, exact for a parabola
                narrow.append((4 * b - 3 * a - c) / (2 * width))
                wide.append((4 * c - 3 * a - d) / (4 * width))
        fine, coarse = torch.stack(narrow), torch.stack(wide)
        return Mixed(fine + (fine - coarse) / 3, (fine - coarse) / 3)


@dataclass(frozen=True, eq=False)
class Mixed:
    """The derivative of the objective's gradient in a hyperparameter.

    Attributes:
        draws: of each draw, or one row where it is the same for all; shape (draws, n).
        bias: what a difference may be off by, of each draw; None or 0 where there was no difference.
    """

    draws: Tensor
    bias: Tensor | float | None

    @property
    def mean(self) -> Tensor:
        return self.draws.mean(0)


def step_of(name: str, at: float) -> float:
    """Half of the narrow difference."""
    if name == STRENGTH:
        return STEP * (at if at > 0 else 1.0)
    # wide, since the noise of masks that differ falls with the width; the bias is of its fourth power
    return min(at / 3, (1 - at) / 5) if at > 0 else STEP


class _Penalty:
    """The user's own term: gradient, products with its Hessian, and derivatives of the gradient in its values."""

    def __init__(self, task: Task, values: Values) -> None:
        assert task.penalty is not None
        self._parameters = task.parameters
        like = self._parameters[0]
        self._at = {n: torch.tensor(v, dtype=like.dtype, device=like.device, requires_grad=True)
                    for n, v in values.items()}  # fmt: skip
        value = task.penalty(task.model, dict(self._at))
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise InputError(ASKED, "the penalty returned no differentiable number", "Return one tensor of the weights")
        self._value = value.reshape(())
        self.way, self.gradient = second(self._value, self._parameters)

    def mixed(self, name: str) -> Tensor:
        dual = [torch.zeros_like(p, requires_grad=True) for p in self._parameters]
        first = torch.autograd.grad(self._value, self._parameters, create_graph=True, materialize_grads=True)
        along = sum(((g * z).sum() for g, z in zip(first, dual, strict=True)), start=self._value.new_zeros(()))
        (slope,) = torch.autograd.grad(along, self._at[name], create_graph=True, allow_unused=True)
        if slope is None or not slope.requires_grad:
            remedy = f"Use values[{name!r}] as the tensor that it is, or leave {name} out"
            raise InputError(ASKED, f"the penalty's gradient does not depend on {name}", remedy)
        found = torch.autograd.grad(slope, dual, retain_graph=True, allow_unused=True)
        return flat(found, self._parameters)


def _mask(parameter: Tensor, decayed: Sequence[Tensor]) -> Tensor:
    return torch.full_like(parameter, float(any(parameter is p for p in decayed)))


@contextmanager
def rates(modules: Sequence[Masks], rate: float | None) -> Iterator[None]:
    """Dropout modules with another rate, and with masks that are common to all rates.

    An element is dropped where a uniform number is below the rate: a little more of the rate drops a few more.
    """
    if rate is None:
        yield
        return
    before = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        for module in modules:
            module.__dict__["forward"] = partial(_masked, module, rate)
        yield
    finally:
        for module, own in before:
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own


def _masked(module: Masks, rate: float, x: Tensor) -> Tensor:
    if not module.training:
        return x
    inner = next((n for kind, n in CHANNELS.items() if isinstance(module, kind)), 0)
    shape = (*x.shape[: x.dim() - inner], *[1] * inner)
    drawn = torch.rand(shape, device=x.device, dtype=x.dtype)
    return x * ((drawn >= rate).to(x.dtype) / (1 - rate))


@contextmanager
def fresh(model: nn.Module) -> Iterator[None]:
    """Buffers are copies: what a pass writes to them reaches neither the next pass nor the graph of this one."""
    tables = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    try:
        for module, table in tables:
            module._buffers.update({name: t if t is None else t.detach().clone() for name, t in table.items()})
        yield
    finally:
        for module, table in tables:
            module._buffers.update(table)


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Masks on, normalisers as they were found."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        for module in model.modules():
            if getattr(module, "running_mean", None) is None:
                module.training = True
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def guarded() -> Iterator[None]:
    """What a model raises becomes an error that says where it happened."""
    try:
        yield
    except TightropeError:
        raise
    except (RuntimeError, NotImplementedError, TypeError) as error:
        message = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise RecordError(ASKED, message, "See the exception above for the model's own traceback") from error


__all__ = [
    "ASKED",
    "DECAY",
    "DROPOUT",
    "RATES",
    "SMOOTHING",
    "STRENGTH",
    "Loss",
    "Masks",
    "Mixed",
    "Objective",
    "Task",
    "Values",
    "fresh",
    "gathered",
    "guarded",
    "rates",
    "smoothed",
    "step_of",
    "training",
]
