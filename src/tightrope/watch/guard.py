"""Guards the steps that are not recorded: where a loss or a gradient is not finite, the operation it is from is found.

An ordinary step keeps references to the calls of its models and tests one number before each update. Where that is not
finite the same calls are made again, from the same random states and with the same weights, under a recorder.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from tightrope.isolation import force_eager, undisturbed
from tightrope.measure.measurement import Meter
from tightrope.replay import held, repeatable
from tightrope.tape.calls import Call, Calls
from tightrope.tape.modules import unwrap
from tightrope.tape.recorder import Recorder
from tightrope.tape.tape import Tape


class Guard:
    """Tests the steps between recorded ones.

    Attributes:
        calls: of the models in the step under way.
        loss: the first loss of the step that is not finite; None while all are.
        replaying: whether calls are made again just now.
        rates: of the last update of each parameter.
    """

    def __init__(self) -> None:
        self.calls = Calls()
        self.loss: float | None = None
        self.replaying = False
        self.rates: dict[int, Any] = {}
        self._names: dict[nn.Module, str] = {}
        self._clipped = False

    @property
    def ready(self) -> bool:
        """Whether the calls of this step can be made again."""
        return bool(self.calls.kept) and self.calls.whole

    def follow(self, names: dict[nn.Module, str]) -> None:
        """Keep the calls of these models from now on."""
        self._names = names
        self.calls.watch(names)

    def next_step(self) -> None:
        """Another step begins."""
        self.calls.clear()
        self.loss, self._clipped = None, False

    def clipped(self, norm: Any) -> None:
        """The script knows the norm of its gradients; a finite one needs no test of ours."""
        known = isinstance(norm, Tensor) and norm.device.type == "cpu" and norm.numel() == 1
        self._clipped = known and math.isfinite(float(norm))

    def spoilt(self, optimizer: Optimizer) -> bool:
        """Whether a gradient that the optimizer is about to use holds NaN or infinity; of the CPU's alone."""
        if self._clipped:
            self._clipped = False
            return False
        rows = [(p, p.grad, g.get("lr")) for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        rows = [row for row in rows if row[1].device.type == "cpu" and not row[1].is_sparse]
        if not rows:
            return False
        gradients = [gradient.detach() for _, gradient, _ in rows]
        self.rates.update({id(p): rate for p, _, rate in rows})
        with torch.no_grad():  # a sum reads least; what is lost in one number is lost in the sum
            total = sum(float(gradient.sum()) for gradient in gradients)
        if math.isfinite(total):
            return False
        return not all(bool(gradient.isfinite().all()) for gradient in gradients)  # a sum may overflow by itself

    def replay(self, *, backward: bool) -> tuple[Tape, Recorder, Meter] | None:
        """Make the calls of this step again; None where that cannot be done.

        Args:
            backward: follow the gradient too: of the loss where a module makes it, else of the outputs' mean.
        """
        calls = list(self.calls.kept)
        modules = {call.module for call in calls}
        hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for m in modules for p in m.parameters())
        if not self.ready or not all(call.unchanged for call in calls) or not all(map(repeatable, modules)):
            return None
        meter, tapes = Meter(), list[Tape]()
        recorder = Recorder(meter, roots={self._names[m]: m for m in modules}, on_backward=tapes.append)
        self.replaying = True
        try:
            with ExitStack() as context:
                for part in (undisturbed(), force_eager(), *map(held, modules)):
                    context.enter_context(part)
                for stream in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                    context.enter_context(stream(io.StringIO()))
                context.enter_context(torch.enable_grad())
                context.enter_context(recorder)
                outputs = _again(calls)
                if backward and not hooked:
                    _differentiate(outputs, modules)
        except Exception:
            return None
        finally:
            self.replaying = False
        return (tapes[-1] if tapes else recorder.tape), recorder, meter

    def last_update(self, parameter: Tensor | None) -> str:
        """What the last update of a parameter was made of, as a clause; empty when it is not known."""
        rate = self.rates.get(id(parameter))
        if not isinstance(rate, (int, float, Tensor)):
            return ""
        return f"; its last update had a finite gradient and a rate of {float(rate):.3g}"


def _again(calls: Sequence[Call]) -> list[Tensor]:
    """Make calls again, each on what the earlier ones make now; the outputs that have a gradient.

    They end before a call on numbers that the script has made outside and that are not finite.
    """
    made: dict[int, Tensor] = {}
    outputs: list[Tensor] = []
    for call in calls:
        tensors = [t for t in tree_leaves((call.args, call.kwargs)) if isinstance(t, Tensor)]
        if any(t.grad_fn is not None and id(t) not in made and not bool(t.isfinite().all()) for t in tensors):
            break
        with torch._C.DisableTorchFunction():
            args, kwargs = tree_map(partial(_now, made), (call.args, call.kwargs))
        with _as_it_was(call):
            result = unwrap(call.module)(*args, **kwargs)
        now = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        before = [t for t in tree_leaves(call.output) if isinstance(t, Tensor)]
        if len(now) == len(before):
            made.update({id(old): new for old, new in zip(before, now, strict=True)})
        outputs += [t for t in now if t.requires_grad and t.is_floating_point()]
    return outputs


def _now(made: dict[int, Tensor], item: Any) -> Any:
    """What stands for an argument: the same output of an earlier call, else the tensor without its history."""
    if not isinstance(item, Tensor):
        return item
    return made[id(item)] if id(item) in made else item.detach()


@contextmanager
def _as_it_was(call: Call) -> Iterator[None]:
    """Random states and autocast as they were when a call began."""
    torch.set_rng_state(call.state)
    if call.devices:
        torch.cuda.set_rng_state_all(list(call.devices))
    with ExitStack() as context:
        for kind, dtype in call.autocast.items():
            context.enter_context(torch.autocast(kind, dtype))
        yield


def _differentiate(outputs: Sequence[Tensor], modules: set[nn.Module]) -> None:
    """Let a gradient run back: that of a number that is a loss, else that of a mean of all outputs."""
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    if not outputs or not parameters:
        return
    loss = outputs[-1] if outputs[-1].numel() == 1 else torch.stack([t.float().mean() for t in outputs]).sum()
    torch.autograd.grad(loss, parameters, allow_unused=True)


__all__ = ["Guard"]
