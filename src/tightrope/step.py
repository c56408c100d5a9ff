"""One training step of a model: how it is called, what its loss is, and how it is recorded without a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.errors import InputError, RecordError, TightropeError
from tightrope.inputs import arguments
from tightrope.isolation import force_eager, preserved
from tightrope.measure.measurement import Measurement, Meter
from tightrope.predict import Forecast, Weights, default_projection, forecast
from tightrope.tape.recorder import Recorder
from tightrope.tape.tape import Tape
from tightrope.tape.tracer import Tracer

Loss = Callable[[Any], Tensor]


def predict(model: nn.Module, inputs: Any, *, loss: Loss | None = None, weights: Weights | None = None) -> Forecast:
    """Predict the law of every tensor of a step, and of its gradient, from theory.

    Shapes run through the model on the meta device; no sample does. Parameters may be real (their own numbers
    count) or meta (the laws of their initialisers count). Nothing is changed.

    Args:
        model: any module; real or on the meta device.
        inputs: a tensor, a tuple (positional) or a dict (keyword arguments); real, so that its law is
            measured, or meta (then standard normal).
        loss: maps the model's output to a scalar; None: the output's own `.loss`, else a fixed random
            projection of the output.
        weights: "actual" predicts this very network from its weights, "laws" all networks with weights of the same
            laws; None: the better one that the model allows. The forecast's `mode` says which it was.

    Raises:
        InputError: the model, the batch or the loss is no such thing, or the actual weights are asked for and the
            model has none.
        RecordError: the model could not be run on shapes.
    """
    if weights not in (None, "actual", "laws"):
        raise InputError("predict", f"weights is {weights!r}", 'Pass "actual", "laws" or None')
    return forecast(trace(model, inputs, loss=loss), weights=weights)


def trace(model: nn.Module, inputs: Any, *, loss: Loss | None = None) -> Tape:
    """Record a step on shapes alone; arguments and errors are those of `predict`."""
    content: dict[int, Tensor] = {}

    def abstract(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.is_meta:
            return x
        meta = x.detach().to("meta").requires_grad_(x.requires_grad)
        content[id(meta)] = x
        return meta

    args, kwargs = tree_map(abstract, arguments(model, inputs))
    tapes: list[Tape] = []
    tracer = Tracer(content=content, roots={"": model}, on_backward=tapes.append)
    with _unvalidated():
        record(model, args, kwargs, loss, tracer)
    return tapes[-1]


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Distributions do not look at the numbers of their arguments by default: on shapes alone there are none."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def measure(model: nn.Module, inputs: Any, *, loss: Loss | None = None) -> Measurement:
    """Measure the law of every tensor of one forward and backward pass, and of its gradient.

    Args:
        model, inputs, loss: as for `predict`, with real parameters and inputs.

    Raises:
        InputError: the model, the batch or the loss is no such thing.
        RecordError: the model raised, or its loss has no gradient.
    """
    meter = Meter()
    found: list[Measurement] = []
    args, kwargs = arguments(model, inputs)
    recorder = Recorder(meter, roots={"": model}, on_backward=lambda tape: found.append(meter.measurement(tape)))
    record(model, args, kwargs, loss, recorder)
    return found[-1]


def scalar(output: Any, loss: Loss | None) -> Tensor:
    """The number that backward starts from."""
    if loss is not None:
        return loss(output)
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    if dataclasses.is_dataclass(output) and not isinstance(output, (type, Mapping)):
        output = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    tensors = [
        t for t in tree_flatten(output)[0] if isinstance(t, Tensor) and t.is_floating_point() and t.requires_grad
    ]
    if not tensors:
        raise RecordError(
            "take the gradient of the model's output", f"{type(output).__name__} holds no tensor that requires one",
            "Pass loss=, or return a floating-point tensor that depends on the parameters",
        )  # fmt: skip
    total: Tensor | None = None
    for tensor in tensors:
        part = (tensor * default_projection(tuple(tensor.shape)).to(tensor.device, tensor.dtype)).sum()
        total = part if total is None else total + part
    assert total is not None
    return total


def record(model: nn.Module, args: Any, kwargs: Any, loss: Loss | None, recorder: Recorder) -> None:
    """Run one step, forward and backward, inside a recorder; everything is left as it was found.

    Raises:
        InputError: the loss is no number.
        RecordError: the model raised, or its loss has no gradient.
    """
    with preserved(model), torch.enable_grad(), force_eager():
        try:
            with recorder:
                output = model(*args, **kwargs)
                value = scalar(output, loss)
                if not isinstance(value, Tensor) or value.numel() != 1:
                    found = (
                        f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                    )
                    raise InputError(
                        "take the loss", f"loss returned {found}", "Return one number, for example its mean"
                    )
                if not value.requires_grad:
                    raise RecordError(
                        "take the gradient of the loss", "it depends on no parameter that requires one",
                        "Unfreeze a parameter (requires_grad_()), or check that the loss uses the model's output",
                    )  # fmt: skip
                value.backward()
        except TightropeError:
            raise
        except Exception as error:
            message = str(error).splitlines()[0].rstrip(".") if str(error) else ""
            what = f"{type(error).__name__}: {message}, {recorder.where()}"
            raise RecordError("run the step", what, "See the exception above for the model's own traceback") from error


__all__ = ["Loss", "force_eager", "measure", "predict", "preserved", "record", "scalar", "trace"]
