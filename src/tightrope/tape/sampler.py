"""Takes a small sample of the data of every step at the start of a run: inputs, targets, features of the head.

The sampler is a `torch.overrides.TorchFunctionMode` that reads the arguments of losses and of calls that contract data
with a weight, and copies a few of their rows. It draws no random number and never waits for a device. While a step is
recorded it is off, and the recorder tells it of the calls; while a module runs that learns nothing it is off too,
because torch takes another path through some modules when a mode looks on.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from tightrope.tape import stack
from tightrope.tape.names import op_name
from tightrope.tape.source import Location, locate
from tightrope.tape.tape import RECURRENT

STEPS = 32
"""Steps that are sampled: a share of the variance between as many batches is known to a quarter of itself."""
ROWS = 64
"""Samples of a batch that are kept."""
COLUMNS = 512
"""Features of a sample that are kept."""
STREAMS = 16
"""Most places of the program that are followed."""

LOSSES = {
    "cross_entropy": "classes", "nll_loss": "classes", "multi_margin_loss": "classes",
    "binary_cross_entropy_with_logits": "values", "binary_cross_entropy": "values", "mse_loss": "values",
    "l1_loss": "values", "smooth_l1_loss": "values", "huber_loss": "values", "soft_margin_loss": "values",
    "multilabel_soft_margin_loss": "values", "poisson_nll_loss": "values",
}  # fmt: skip
"""Losses of scores and targets, and what their targets are."""
READERS = frozenset((
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "matmul", "mm", "lstm", "gru", "rnn_tanh", "rnn_relu", "batch_norm", "layer_norm", "group_norm", "instance_norm",
))  # fmt: skip
"""Calls that read data first, with a weight beside them."""
PASSING = frozenset(("log_softmax", "sigmoid", "squeeze", "flatten", "view", "reshape"))
"""Calls between a head and its loss that keep the samples apart."""


@dataclass(frozen=True)
class Place:
    """Where in the program data are met.

    Attributes:
        op: the call (a loss, or what reads the data).
        location: the user's line.
        shape: of one sample.
        turn: how many calls of the step at this line came before.
    """

    op: str
    location: Location
    shape: tuple[int, ...]
    turn: int


@dataclass(frozen=True)
class Sample:
    """A few rows of one batch.

    Attributes:
        step: number of the training step, 1 is the first.
        size: length of the batch.
        rows: the rows that were kept, as a matrix.
        features: of a loss: the same rows of what the head was given; None when they are not known.
        sliced: whether the batch is a contiguous part of a larger tensor.
        made: whether a model of the program makes such tensors (the fakes of a GAN, the targets of a teacher).
        loss: of a loss that returned one number: that number.
    """

    step: int
    size: int
    rows: Tensor
    features: Tensor | None = None
    sliced: bool = False
    made: bool = False
    loss: Tensor | None = None


class Sampler(TorchFunctionMode):
    """Follows the data of the first `STEPS` steps.

    Attributes:
        targets: samples of each loss's target by place.
        inputs: samples of what weights read from outside by place.
        active: whether calls are looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.targets: dict[Place, list[Sample]] = {}
        self.inputs: dict[Place, list[Sample]] = {}
        self.active = False
        self.step = 1
        self._over = False
        self._turns: dict[tuple[str, Location, tuple[int, ...]], int] = {}
        self._heads: deque[tuple[weakref.ref[Tensor], Tensor]] = deque(maxlen=4)
        self._made: set[tuple[int, ...]] = set()
        self._taught: set[int] = set()
        self._idle: nn.Module | None = None
        self._handles: list[Any] = []

    # -- when it looks ---------------------------------------------------------------------------

    def resume(self) -> None:
        """See calls."""
        if self._over:
            stack.remove(self)  # one that ended inside a call came back to the stack after it
            return
        if self._idle is not None:
            return
        if not self._handles:
            self._handles = [
                hooks.register_module_forward_pre_hook(self._enter),
                hooks.register_module_forward_hook(self._leave, always_call=True),
            ]
        self.active = True
        if not stack.holds(self):
            stack.insert(self)

    def suspend(self) -> None:
        """Stop seeing calls until `resume`; nothing is left in their way."""
        self.active = False
        stack.remove(self)

    def next_step(self) -> None:
        """A step has ended."""
        self.step += 1
        self._turns.clear()
        self._heads.clear()
        self._taught.clear()
        if self.step > STEPS:
            self.stop()

    def stop(self) -> None:
        """Take no more samples."""
        self._over = True
        self._heads.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.suspend()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self.active and self._idle is None and not _learns(module):
            self._idle = module
            self.suspend()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._idle is module:
            self._idle = None
            if type(output) is Tensor and output.ndim:
                self._made.add(tuple(output.shape[1:]))
                self._taught.add(len(output))
            self.resume()

    # -- what it sees ----------------------------------------------------------------------------

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self.active and getattr(function, "__name__", "") in _NAMES:
            self.look(op_name(function), args, kwargs, result)
        return result

    def look(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any = None) -> None:
        """A call was made; a failure in here ends the sampling and nothing else."""
        if self._over or op not in _OPS or _elsewhere():
            return
        if not torch.is_grad_enabled():
            return
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                self._look(op, args, kwargs, result)
        except Exception:
            self.stop()

    def _look(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if op in LOSSES:
            self._loss(op, args, kwargs, result)
        elif op in PASSING:
            self._pass_on(args, result)
        elif op == "detach":
            if plain(args[0]) and args[0].requires_grad:
                self._made.add(tuple(args[0].shape[1:]))
        else:
            self._read(op, args, kwargs)
            if op in ("linear", "matmul", "mm") and plain(args[0] if args else None) and plain(result):
                self._heads.append((weakref.ref(result), args[0].detach()))

    def _read(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Data reach a weight: kept when they come from outside and not from a model."""
        data = args[0] if args else kwargs.get("input")
        if not plain(data) or data.requires_grad or not data.is_floating_point() or data.ndim < 2 or not len(data):
            return
        if op in RECURRENT:
            if data.ndim < 3 or len(args) < 9:
                return  # packed, or a single sequence: its rows are no samples
            data = data if args[8] else data.transpose(0, 1)
        if not any(plain(a) and a.requires_grad for a in _flat((*args[1:], *kwargs.values()))):
            return
        place = self._place(op, tuple(data.shape[1:]))
        if place is not None:
            rows = thin(data)
            made = tuple(data.shape[1:]) in self._made
            sample = Sample(self.step, len(data), rows, sliced=_sliced(data), made=made)
            self.inputs.setdefault(place, []).append(sample)

    def _loss(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        pair = [kwargs.get(name, args[n] if len(args) > n else None) for n, name in enumerate(("input", "target"))]
        if plain(pair[1]) and pair[1].requires_grad:
            pair.reverse()
        scores, target = pair
        if not (plain(scores) and plain(target) and scores.requires_grad) or target.requires_grad:
            return
        if target.ndim < 1 or not len(target):
            return
        place = self._place(op, tuple(scores.shape[1:]))
        if place is None:
            return
        head = next((h for made, h in self._heads if made() is scores or made() is scores._base is not None), None)
        kept = thin(head) if head is not None and len(head) == len(target) else None
        number = result.detach() if plain(result) and result.ndim == 0 else None
        taught = len(target) in self._taught
        sample = Sample(self.step, len(target), thin(target), kept, _sliced(target), taught, number)
        self.targets.setdefault(place, []).append(sample)

    def _pass_on(self, args: tuple[Any, ...], result: Any) -> None:
        if not args or not plain(args[0]) or not plain(result):
            return
        source = args[0]
        for made, head in list(self._heads):
            if made() is source and len(head) == len(result):
                self._heads.append((weakref.ref(result), head))
                return

    def _place(self, op: str, shape: tuple[int, ...]) -> Place | None:
        """Where the program is; None once enough places are known."""
        location = locate(sys._getframe(1))
        key = (op, location, shape)
        turn = self._turns[key] = self._turns.get(key, -1) + 1
        place = Place(op, location, shape, turn)
        table = self.targets if op in LOSSES else self.inputs
        return place if place in table or len(table) < STREAMS else None


_OPS = frozenset(LOSSES) | READERS | PASSING | {"detach"}
_NAMES = _OPS | {"__matmul__", "__rmatmul__", "squeeze_", "sigmoid_"}


def _learns(module: nn.Module) -> bool:
    """Whether what a module computes is part of a step."""
    return torch.is_grad_enabled() and (module.training or any(p.requires_grad for p in module.parameters()))


def plain(item: Any) -> TypeGuard[Tensor]:
    """Whether something is an ordinary tensor with numbers behind it."""
    return type(item) in (Tensor, nn.Parameter) and not item.is_meta and item.layout is torch.strided


def thin(x: Tensor) -> Tensor:
    """A copy of evenly spaced samples and of evenly spaced elements of each; at most `ROWS` by `COLUMNS`.

    Equal lengths give equal rows, so that inputs and targets of a batch stay side by side.
    """
    flat = x.detach().reshape(len(x), -1)
    rows, columns = (max(1, -(-length // most)) for length, most in zip(flat.shape, (ROWS, COLUMNS), strict=True))
    return flat[::rows, ::columns].clone()


def _sliced(x: Tensor) -> bool:
    base = x._base
    return base is not None and base.ndim == x.ndim and len(base) > len(x) and x.is_contiguous()


def _flat(items: tuple[Any, ...]) -> list[Any]:
    return [part for item in items for part in (item if isinstance(item, (tuple, list)) else (item,))]


def _elsewhere() -> bool:
    """Whether calls are traced, transformed or captured rather than made."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


__all__ = ["COLUMNS", "LOSSES", "ROWS", "STEPS", "Place", "Sample", "Sampler", "plain", "thin"]
