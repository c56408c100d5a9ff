"""A model as a function of one input, sample by sample, in the form in which it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.errors import InputError, RecordError, TightropeError
from tightrope.inputs import bind
from tightrope.isolation import force_eager, preserved


class Evaluated:
    """f(x) of the floating-point input x, all other inputs as they are.

    Attributes:
        x: the input, detached; shape (samples, ...).
        modes: what was found in the model's modes and changed for the evaluation.
    """

    def __init__(self, model: nn.Module, inputs: Any, asked: str) -> None:
        self._asked = asked
        if not isinstance(model, nn.Module):
            raise InputError(asked, f"{type(model).__name__} is no torch.nn.Module", "Pass the model itself")
        self._model, self._call = model, bind(model, inputs)
        flat = [t for t in tree_flatten(self._call)[0] if isinstance(t, Tensor)]
        found = next((t for t in flat if t.is_floating_point() and t.dim() > 0 and t.numel() > 0), None)
        if found is None:
            what = "no input is a floating-point tensor with samples"
            raise InputError(asked, what, "Pass a batch of them; tokens have no Jacobian: pass the model behind them")
        if not bool(torch.isfinite(found).all()):
            raise InputError(asked, "the input holds NaN or infinity", "Clean the data, or mask what is missing")
        self._given, self.x = found, found.detach()
        on = [m for m in model.modules() if m.training]
        self.modes = ("found in training mode, looked at as it is evaluated",) if on else ()

    @property
    def samples(self) -> int:
        return len(self.x)

    @property
    def width(self) -> int:
        """Numbers in a sample."""
        return self.x[0].numel()

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Outputs for another input in place of the samples `rows`, or of all of them; shape (samples, outputs)."""

        def put(t: Any) -> Any:
            if t is self._given:
                return x
            lead = isinstance(t, Tensor) and t.dim() > 0 and len(t) == self.samples
            return t[rows] if lead and rows is not None else t

        args, kwargs = tree_map(put, self._call)
        try:
            made = self._model(*args, **kwargs)
        except TightropeError:
            raise
        except Exception as error:
            what = f"the model raised {type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(".")
            raise RecordError(self._asked, what, "See the exception above for the model's own traceback") from error
        output = next((t for t in tree_flatten(made)[0] if isinstance(t, Tensor) and t.is_floating_point()), None)
        if output is None or output.dim() == 0 or len(output) != len(x):
            what = "the output holds no floating-point tensor with a row for each sample"
            raise InputError(self._asked, what, "Pass a model that returns one")
        if not bool(torch.isfinite(output).all()):
            raise InputError(self._asked, "the output holds NaN or infinity", "Find the cause with tightrope.check")
        return output.reshape(len(x), -1)

    def refuse_mixing(self) -> None:
        """Raise where samples see each other: their Jacobian is then no matter of one sample.

        Raises:
            InputError: an output depends on another sample's input.
        """
        if self.samples < 2:
            return
        x = self.x.clone().requires_grad_()
        slope = gradient(self(x)[::2].sum(), x)
        if bool((slope[1::2] != 0).any()):
            what = "the output of a sample depends on other samples of the batch"
            remedy = "Give batch norm running statistics (track_running_stats=True), or pass samples one at a time"
            raise InputError(self._asked, what, remedy)


def gradient(value: Tensor, x: Tensor, **options: Any) -> Tensor:
    """The gradient with respect to x, zero where there is none."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (made,) = torch.autograd.grad(value, x, materialize_grads=True, **options)
    return made


@contextmanager
def evaluated(model: nn.Module, inputs: Any, asked: str) -> Iterator[Evaluated]:
    """The model in evaluation mode, everything left as it was found."""
    function = Evaluated(model, inputs, asked)
    frozen = [p for p in model.parameters() if p.requires_grad]
    with preserved(model), force_eager(), torch.enable_grad(), _plain_attention():
        model.eval()
        try:
            for p in frozen:
                p.requires_grad_(False)
            yield function
        finally:
            for p in frozen:
                p.requires_grad_(True)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention out of operations that have a second derivative, and encoders out of their layers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


__all__ = ["Evaluated", "evaluated", "gradient"]
