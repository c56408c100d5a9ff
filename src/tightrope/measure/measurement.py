"""Measure a step while it runs: an observer of the recorder that keeps numbers, not tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tightrope.law import Law
from tightrope.measure.courses import Course, Sites, recurrent_course, site_course
from tightrope.measure.laws import arrange, estimate
from tightrope.measure.probes import Features, Rows, attention_rows, features, softmax_rows, sweet_spot
from tightrope.roles import Axes, Role
from tightrope.tape.axes import infer, of_source
from tightrope.tape.tape import RECURRENT, Entry, Kind, Tape, Value, softmax_dim


@dataclass(frozen=True)
class Units:
    """What single channels of a tensor do.

    Attributes:
        channels: number of channels (units).
        zero: share of elements that are exactly zero.
        silent: share of channels that are exactly zero on every sample and site of the batch.
        low, high: smallest and largest value.
        nonfinite: number of elements that are NaN or infinite.
        first_nonfinite: index of the first of them.
        masked: how many of them are minus infinity, which a mask may mean.
        saturated: share of elements outside the sweet spot of the saturating function that made them; None for
            the result of any other.
    """

    channels: int
    zero: float
    silent: float
    low: float
    high: float
    nonfinite: int = 0
    first_nonfinite: tuple[int, ...] | None = None
    masked: int = 0
    saturated: float | None = None


@dataclass(frozen=True)
class Measurement:
    """The measured laws of one step.

    Attributes:
        tape: the step.
        laws: law of each floating-point value, by id.
        gradients: law of the loss's gradient with respect to each value, by id.
        units: what the channels of each value do, by id.
        loss: the loss's number; None when there was no backward pass.
        features: scale of every feature of the values that depend on data alone, by id.
        rows: rows of each softmax and each fused attention, by the id of its result.
        broken: ids of the values whose gradient holds NaN or infinity.
        courses: how recurrent layers go with time, by the id of their result.
        sites: what batch normalisers that pool over sites read at each, by the id of their result.
        calls: what each batch normaliser read at each call, by its module: ids and laws of its inputs, those included
            that the loss does not depend on.
        effective: effective share of the samples in the energy of each value's gradient, by id: (sum e)^2 / (N sum
            e^2), 1 when all count alike; none where there is one sample.
    """

    tape: Tape
    laws: dict[int, Law]
    gradients: dict[int, Law]
    units: dict[int, Units] = field(repr=False)
    loss: float | None = None
    features: dict[int, Features] = field(default_factory=dict, repr=False)
    rows: dict[int, Rows] = field(default_factory=dict, repr=False)
    broken: frozenset[int] = frozenset()
    courses: dict[int, Course] = field(default_factory=dict, repr=False)
    sites: dict[int, Sites] = field(default_factory=dict, repr=False)
    calls: dict[str, list[tuple[int, Law]]] = field(default_factory=dict, repr=False)
    effective: dict[int, float] = field(default_factory=dict, repr=False)


class Meter:
    """The recorder's observer that measures laws.

    A step that ends in several backward passes has one measurement per pass: the forward laws are shared,
    the gradients are those of the pass.
    """

    def __init__(self) -> None:
        self.laws: dict[int, Law] = {}
        self.units: dict[int, Units] = {}
        self.axes: dict[int, Axes] = {}
        self._read: set[int] = set()
        self.gradients: dict[int, Law] = {}
        self.broken: set[int] = set()
        self.effective: dict[int, float] = {}
        self.losses: dict[int, float] = {}
        self.features: dict[int, Features] = {}
        self.rows: dict[int, Rows] = {}
        self.courses: dict[int, Course] = {}
        self.sites: dict[int, Sites] = {}
        self.calls: dict[str, list[tuple[int, Law]]] = {}
        self._data: set[int] = set()

    def on_value(self, tape: Tape, value: Value, tensor: Tensor, entry: Entry | None) -> None:
        if entry is None:
            self.axes[value.id] = of_source(tape, value)
        elif value.id == entry.outputs[0]:
            for number in entry.inputs:
                if tape.values[number].producer is None:
                    self.axes[number] = self._reread(tape, number, entry)
            self.axes.update(zip(entry.outputs, infer(tape, entry, self.axes), strict=True))
        if self._of_data(tape, value, entry):
            self._data.add(value.id)
        if value.is_float and tensor.numel():
            self.laws[value.id] = estimate(tensor, self.axes[value.id])
            self.units[value.id] = count_units(tensor, self.axes[value.id])
            if tensor.numel() == 1:
                self.losses[value.id] = float(tensor)
            self._probe(tape, value, tensor, entry)

    def _probe(self, tape: Tape, value: Value, tensor: Tensor, entry: Entry | None) -> None:
        """What checks ask beyond the law."""
        if value.id in self._data:
            found = features(tensor, self.axes[value.id])
            if found is not None:
                self.features[value.id] = found
        if entry is None:
            return
        if entry.op == "softmax":
            rows = softmax_rows(tensor, softmax_dim(entry.argument(1, "dim", -1), tensor.ndim))
            if rows is not None:
                self.rows[value.id] = rows
        spot = sweet_spot(entry)
        if spot is not None:
            outside = (tensor < spot.low_output) | (tensor > spot.high_output)
            self.units[value.id] = replace(self.units[value.id], saturated=float(outside.float().mean()))

    def _of_data(self, tape: Tape, value: Value, entry: Entry | None) -> bool:
        """Whether a value depends on the batch and on no parameter."""
        if entry is None:
            held = self.axes[value.id].count(Role.SAMPLE) > 1
            return value.kind is Kind.INPUT or (value.kind is Kind.KNOWN and held)
        free = all(i in self._data or tape.values[i].kind in (Kind.KNOWN, Kind.BUFFER) for i in entry.inputs)
        return free and any(i in self._data for i in entry.inputs)

    def on_call(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        number = entry.outputs[0]
        if entry.op in RECURRENT and entry.grad:
            course = recurrent_course(entry, args)
            if course is not None:
                self.courses[number] = course
        elif entry.op == "batch_norm" and entry.training and entry.inputs[0] in self.laws:
            self.calls.setdefault(entry.module, []).append((entry.inputs[0], self.laws[entry.inputs[0]]))
            sites = site_course(args[0], self.axes[entry.inputs[0]]) if args[0].ndim == 3 else None
            if sites is not None:
                self.sites[number] = sites
        elif entry.op == "scaled_dot_product_attention" and len(args) > 1 and not args[0].is_meta:
            self._attention(number, args, kwargs)

    def _attention(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The rows inside a fused attention."""
        q, k = args[0], args[1]
        scale = kwargs.get("scale") or q.shape[-1] ** -0.5
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        causal = bool(args[5] if len(args) > 5 else kwargs.get("is_causal", False))
        rows = attention_rows(q, k, float(scale), mask, causal)
        if rows is not None:
            self.rows[number] = rows

    def _reread(self, tape: Tape, number: int, entry: Entry) -> Axes:
        """A source's axes are judged by its first reader, which is only known now."""
        value = tape.values[number]
        axes = of_source(tape, value, entry)
        if number in self._read or axes == self.axes[number]:
            axes = self.axes[number]
        elif value.is_float and value.content is not None:
            self.laws[number] = estimate(value.content, axes)
            self.axes[number] = axes
            self._probe(tape, value, value.content, None)
        self._read.add(number)
        return axes

    def on_collect(self, kept: set[int]) -> None:
        """The recorder has forgotten all values but these."""
        tables: tuple[dict[int, Any], ...] = (
            self.laws, self.units, self.axes, self.losses, self.features, self.rows, self.gradients, self.courses,
            self.sites,
        )  # fmt: skip
        for known in tables:
            for number in [number for number in known if number not in kept]:
                del known[number]
        self._read &= kept
        self._data &= kept

    def on_backward(self, tape: Tape) -> None:
        self.gradients = {}
        self.effective = {}
        self.broken = set()

    def on_gradient(self, value: Value, gradient: Tensor) -> None:
        if gradient.is_sparse:  # of an embedding: the rows that no sample named are zero
            gradient = gradient.to_dense()
        if gradient.numel() and gradient.is_floating_point():
            law = self.gradients[value.id] = estimate(gradient, self.axes[value.id])
            if not law.finite and not bool(torch.isfinite(gradient).all()):
                self.broken.add(value.id)
            elif value.kind is Kind.RESULT and law.rms > 0:
                share = effective_share(gradient, self.axes[value.id])
                if share is not None:
                    self.effective[value.id] = share

    def measurement(self, tape: Tape) -> Measurement:
        """What was measured of the values on this tape."""
        laws = {i: law for i, law in self.laws.items() if i in tape.values}
        units = {i: found for i, found in self.units.items() if i in tape.values}
        gradients = {i: law for i, law in self.gradients.items() if i in tape.values}
        loss = self.losses.get(tape.loss) if tape.loss is not None else None
        return Measurement(
            tape, laws, gradients, units, loss, self.features, self.rows, frozenset(self.broken), self.courses,
            self.sites, self.calls, dict(self.effective),
        )  # fmt: skip


def effective_share(x: Tensor, axes: Axes) -> float | None:
    """Share of the samples that make up the energy of a tensor, (sum e)^2 / (N sum e^2); None for one sample."""
    n = axes.count(Role.SAMPLE)
    if n < 2:
        return None
    # Norms are squared in double precision: squares leave the range of single precision long before the numbers do.
    energy = torch.linalg.vector_norm(arrange(x, axes), dim=(1, 2)).double().square()
    total, squares = float(energy.sum()), float(energy.square().sum())
    return total**2 / (n * squares) if squares > 0 and math.isfinite(squares) else None


def count_units(x: Tensor, axes: Axes) -> Units:
    """What the channels of a real tensor do."""
    low, high = (float(edge) for edge in torch.aminmax(x))
    nonfinite, first, masked = 0, None, 0
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = ~torch.isfinite(x)
        nonfinite, masked = int(bad.sum()), int((x == -math.inf).sum())
        first = tuple(int(i) for i in bad.nonzero()[0]) if nonfinite else None
    zero = silent = 0.0
    channels = 1
    if low <= 0.0 <= high:
        where = arrange(x == 0, axes)
        channels = where.shape[2]
        zero = float(where.float().mean())
        silent = float(where.all(dim=1).all(dim=0).float().mean()) if zero > 0 else 0.0
    return Units(channels, zero, silent, low, high, nonfinite, first, masked)
