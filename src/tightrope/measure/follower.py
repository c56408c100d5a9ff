"""Follows the optimizers through a run: everything of the recorded steps, next to nothing of the others."""

from __future__ import annotations

import math
import statistics
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from tightrope.measure.snapshot import Snapshot
from tightrope.measure.updates import Clips, Group, Leftover, Row, Scaling, Updates
from tightrope.tape.modules import unwrap
from tightrope.tape.recorder import Recorder
from tightrope.tape.source import UNKNOWN, Location, locate

WHOLE = 1 << 20
"""Elements up to which a parameter is compared as a whole; of a larger one as many, spread evenly: the root mean square
of the sample has a relative standard error of 0.07 %."""
GLANCE = 64
"""Elements of a parameter in no optimizer that tell whether something else moves it."""
CALLS = 4096
"""Most calls that clip whose norms are kept."""


def rms(x: Tensor) -> float:
    """Root mean square; of a sparse gradient over all its elements."""
    total = max(x.numel(), 1)
    if x.is_sparse:
        x = x.coalesce().values()
    wide = torch.float32 if x.dtype.itemsize < 4 else None
    return float(torch.linalg.vector_norm(x.detach(), dtype=wide)) / math.sqrt(total)


def trial(
    optimizer: Optimizer, rows: Iterable[tuple[str, Tensor]], loss: Callable[[], float] | None = None
) -> Updates | None:
    """Let an optimizer step on the gradients that are there, see what it does, and take it back.

    Args:
        optimizer: one that needs no closure.
        rows: the model's parameters by name.
        loss: gives the loss on the same batch with the weights as they are then.

    Returns:
        None when the optimizer cannot step without a closure.
    """
    follower, before = Follower([optimizer]), Snapshot([optimizer])
    follower.recording = True
    try:
        with torch.no_grad():
            follower.before_update(optimizer, closure=False)
            first = loss() if loss is not None else None
            with torch.enable_grad():
                type(optimizer).step(optimizer)
            follower.after_update(optimizer)
            after = loss() if loss is not None else None
            named: dict[int, tuple[str, Tensor]] = {id(p): (name, p) for name, p in rows}
            found = follower.table(named)
    except TypeError:  # it asks for a closure
        return None
    finally:
        before.restore()
    return replace(found, retried=(first, after) if first is not None and after is not None else None)


def sample(x: Tensor, most: int = WHOLE) -> Tensor:
    """Elements of a tensor, all of them or evenly spread, as a copy."""
    flat = x.detach().reshape(-1)
    stride = -(-flat.numel() // most)
    return flat[:: stride | 1].clone() if stride > 1 else flat.clone()


def _reader(recorder: Recorder, number: int | None) -> str:
    """Path of the module that reads a value first; "" for none."""
    return next((entry.module for entry in recorder.tape.entries if number in entry.inputs), "")


@dataclass
class _Step:
    """What the update of one optimizer did to one parameter."""

    before: Tensor
    weight: float
    gradient: float | None
    change: float | None = None


class Follower:
    """Told of passes and updates by the watcher.

    Args:
        optimizers: those that are known; more may come.

    Attributes:
        recording: whether the step under way is recorded.
        glancing: whether it is noted which gradients are cleared.
        step: number of the step under way.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.optimizers = optimizers
        self.recording = self.glancing = False
        self.step = 1
        self.built: weakref.WeakKeyDictionary[Optimizer, Location] = weakref.WeakKeyDictionary()
        self._cleared: set[int] = set()
        self._stacked: dict[int, tuple[int, float]] = {}
        self._last: dict[int, int] = {}  # step of an optimizer's last update
        self._made: dict[int, int] = {}  # updates by an optimizer
        self._since = 0  # first step from which every pass was looked at
        self._steps: dict[int, _Step] = {}
        self._groups: dict[int, list[Group]] = {}
        self._leftovers: list[Leftover] = []
        self._rates: dict[int, dict[int, float]] = {}
        self._norms: list[tuple[float, float | Tensor]] = []
        self._clips_at = UNKNOWN
        self._scaling: Scaling | None = None
        self._clipped = self._was_clipped = False  # since the last update, and before it
        self._first: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self._order: list[int] = []
        self._left: dict[int, tuple[Tensor, Tensor, int, float]] = {}
        self._closure = False

    def forget(self) -> None:
        """Begin anew after a repair: what was seen before was of another run."""
        self._leftovers.clear()
        self._norms.clear()
        self._first.clear()
        self._scaling = None
        self._rates = {key: {} for key in self._rates}

    # -- passes ----------------------------------------------------------------------------------

    def look(self, *, recording: bool, glancing: bool) -> None:
        """What is to be seen of the step that begins."""
        if glancing and not self.glancing:
            self._since = self.step
            self._cleared.clear()
            self._stacked.clear()
        self.recording, self.glancing = recording, glancing
        self._steps.clear()
        self._groups.clear()

    def before_pass(self) -> None:
        """A backward pass is about to add to the gradients."""
        self._left = {}
        for p in self._held():
            g = p.grad
            if g is None or g.is_sparse or not bool(g.any()):
                self._cleared.add(id(p))
            elif id(p) not in self._cleared and id(p) not in self._stacked:
                self._left[id(p)] = (p, g, g._version, rms(g))

    def after_pass(self) -> None:
        """A backward pass has added to the gradients."""
        for p, g, version, old in self._left.values():
            if p.grad is g and g._version != version:
                self._stacked[id(p)] = (id(g), old)
        self._left = {}

    def _held(self) -> Iterator[Tensor]:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]

    # -- updates ---------------------------------------------------------------------------------

    def before_update(self, optimizer: Optimizer, closure: bool) -> None:
        """The optimizer is about to step; with a closure it computes its gradients itself."""
        self._note_rate(optimizer)
        self._closure = closure
        if not (self.recording or self.glancing):
            return
        if not closure:
            self._note_leftover(optimizer)
        if self.recording:
            self._groups[id(optimizer)] = list(self._describe(optimizer))
            scale = getattr(optimizer, "grad_scale", None)
            factor = 1.0 if scale is None else 1.0 / float(scale)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    gradient = rms(p.grad) * factor if p.grad is not None and not closure else None
                    self._steps[id(p)] = _Step(sample(p), rms(p), gradient)

    def after_update(self, optimizer: Optimizer) -> None:
        """The optimizer has stepped."""
        self._last[id(optimizer)] = self.step
        self._made[id(optimizer)] = self._made.get(id(optimizer), 0) + 1
        self._was_clipped, self._clipped = self._clipped, False
        if not (self.recording or self.glancing):
            return
        if self._closure:
            self._note_leftover(optimizer)
        for group in optimizer.param_groups:
            for p in group["params"]:
                self._cleared.discard(id(p))
                self._stacked.pop(id(p), None)
                step = self._steps.get(id(p))
                if self.recording and step is not None:
                    step.change = rms(sample(p) - step.before)
                    if self._closure and p.grad is not None:
                        step.gradient = rms(p.grad)

    def _note_rate(self, optimizer: Optimizer) -> None:
        key = id(optimizer)
        if key not in self._rates:
            self._rates[key] = {}
            self._order.append(key)
        rates = [g.get("lr", 0.0) for g in optimizer.param_groups]
        numbers = [r for r in rates if isinstance(r, (int, float))]
        known = self._rates[key]
        if numbers and (not known or next(reversed(known.values())) != max(numbers)):
            known[self.step] = max(numbers)

    def _note_leftover(self, optimizer: Optimizer) -> None:
        """Gradients that were never cleared since this optimizer's last update and were added to."""
        if self._last.get(id(optimizer), -1) < self._since:
            return
        shares, total = [], 0
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                total += 1
                kept, old = self._stacked.get(id(p), (0, 0.0))
                if kept == id(p.grad) and id(p) not in self._cleared and old > 0:
                    shares.append(old / max(rms(p.grad), 1e-45))
        if shares:
            first = next(iter(self._describe(optimizer)))
            place, share = locate(sys._getframe(1)), statistics.median(shares)
            self._leftovers.append(Leftover(self.step, first, len(shares), total, share, place))

    def _describe(self, optimizer: Optimizer) -> Iterator[Group]:
        known = list(self.optimizers)
        order = {id(o): n for n, o in enumerate(sorted(known, key=lambda o: self._place(o)))}
        for index, group in enumerate(optimizer.param_groups):
            settings = {key: value for key, value in group.items() if key != "params"}
            place = self.built.get(optimizer, UNKNOWN)
            kind = type(optimizer).__name__
            steps = self._made.get(id(optimizer), 0)
            yield Group(order.get(id(optimizer), 0), kind, index, settings, place, steps, optimizer)

    def _place(self, optimizer: Optimizer) -> int:
        key = id(optimizer)
        return self._order.index(key) if key in self._order else len(self._order)

    # -- clipping and scaling --------------------------------------------------------------------

    def clipped(self, limit: float, norm: Any) -> None:
        """The gradient's norm was clipped; its value is kept where it is, so that no device is waited for."""
        self._clipped = True
        if self._clips_at is UNKNOWN:
            self._clips_at = locate(sys._getframe(1))
        if isinstance(norm, Tensor) and len(self._norms) < CALLS:
            self._norms.append((limit, float(norm) if norm.device.type == "cpu" else norm.detach()))

    def scaled(self, scaler: Any, *, skipped: bool, unscaled: bool) -> None:
        """A gradient scaler has stepped, or left the step out."""
        known = self._scaling or Scaling(0, 0, None, 0, locate(sys._getframe(1)))
        scale = known.scale
        tensor = getattr(scaler, "_scale", None)
        if tensor is not None and (self.recording or tensor.device.type == "cpu"):
            scale = float(tensor)
        cut = self._clipped if skipped else self._was_clipped
        on_scaled = known.clipped_scaled + (cut and not unscaled and (scale or 1.0) != 1.0)
        self._clipped = False
        self._scaling = replace(
            known, steps=known.steps + 1, skipped=known.skipped + skipped, scale=scale, clipped_scaled=on_scaled
        )

    @property
    def scaling(self) -> bool:
        """Whether a gradient scaler has been at work."""
        return self._scaling is not None

    # -- what was seen ---------------------------------------------------------------------------

    def updates(self, recorder: Recorder) -> Updates:
        """Everything that is known when the recorded step has ended."""
        modules = recorder.modules
        registered = {id(p): p for root in modules.roots for p in unwrap(root).parameters()}
        called = {id(tensor): (number, tensor) for number, tensor in recorder.leaves()}
        readers = {key: _reader(recorder, number) for key, (number, _) in called.items() if key not in registered}
        named: dict[int, tuple[str, Tensor]] = {
            key: (modules.parameters.get(key, ""), p) for key, p in registered.items()
        }
        return self.table(named, called, readers)

    def table(
        self,
        registered: dict[int, tuple[str, Tensor]],
        called: dict[int, tuple[int, Tensor]] | None = None,
        readers: dict[int, str] | None = None,
    ) -> Updates:
        """The rows of the models' parameters, of those that calls read, and of those that optimizers hold.

        Args:
            registered: name and parameter by identity.
            called: number on the tape and parameter by identity.
            readers: path of the module that reads a parameter which no model has registered.
        """
        called, readers = called or {}, readers or {}
        every = {key: p for key, (_, p) in registered.items()} | {key: p for key, (_, p) in called.items()}
        every |= {id(p): p for p in self._held()}
        holders = self._holders()
        rows = []
        for key, p in every.items():
            name = registered[key][0] if key in registered else None
            owner = name.rpartition(".")[0] if name else readers.get(key, "")
            number = called[key][0] if key in called else None
            rows.append(self._row(p, name, number, owner, key in registered, holders.get(key, ())))
        return self.refresh(Updates(self.step, tuple(rows)))

    def _holders(self) -> dict[int, tuple[Group, ...]]:
        found: dict[int, tuple[Group, ...]] = {}
        for optimizer in sorted(self.optimizers, key=self._place):
            groups = self._groups.get(id(optimizer)) or list(self._describe(optimizer))
            for described, group in zip(groups, optimizer.param_groups, strict=False):
                for p in group["params"]:
                    found[id(p)] = (*found.get(id(p), ()), described)
        return found

    def _row(
        self, p: Tensor, name: str | None, number: int | None, owner: str, registered: bool, groups: tuple[Group, ...]
    ) -> Row:
        step = self._steps.get(id(p))
        if step is not None:
            weight, change, gradient = step.weight, step.change, step.gradient
        else:
            weight, change = rms(p), None
            gradient = rms(p.grad) if p.grad is not None else None
        row = Row(
            name, tuple(p.shape), p.requires_grad, registered, groups, weight, change, gradient, number, owner, None, p
        )
        if groups:
            return row
        if id(p) in self._first:
            return replace(row, moved=self._moved(row))
        self._first[id(p)] = (weakref.ref(p), sample(p, GLANCE))
        return row

    def refresh(self, updates: Updates) -> Updates:
        """What was seen of a step, with what is known of the run by now."""
        self._norms = [(limit, float(norm)) for limit, norm in self._norms]
        ratios = tuple(float(norm) / limit for limit, norm in self._norms if limit > 0)
        clips = Clips(len(ratios), self._norms[-1][0], ratios, self._clips_at) if ratios else None
        later = self.step > updates.step
        rows = tuple(self._counted(row) if row.groups else row for row in updates.rows)
        if later:
            rows = tuple(row if row.groups else replace(row, moved=self._moved(row)) for row in rows)
        rates = tuple(dict(self._rates[key]) for key in self._order)
        return replace(
            updates, rows=rows, leftovers=tuple(self._leftovers), rates=rates, clips=clips, scaling=self._scaling
        )

    def _counted(self, row: Row) -> Row:
        """A row that knows how often its optimizers have stepped by now."""
        groups = (replace(group, steps=self._made.get(id(group.live), 0)) for group in row.groups)
        return replace(row, groups=tuple(groups))

    def _moved(self, row: Row) -> bool | None:
        first = self._first.get(id(row.live))
        if row.live is None or first is None or first[0]() is not row.live:
            return None
        return not torch.equal(sample(row.live, GLANCE), first[1])
