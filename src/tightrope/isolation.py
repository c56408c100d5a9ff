"""Keeps what tightrope computes from touching the script and the model that it is computed with."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is computed in here leaves the script's random states, autocast and warnings as they are."""
    cpu, python = torch.get_rng_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    try:
        with ExitStack() as context:
            for kind in kinds:
                context.enter_context(torch.autocast(kind, enabled=False))
            context.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if numpy is not None:
            sys.modules["numpy"].random.set_state(numpy)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Leave parameters, buffers, gradients, modes and random states as they were found."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    tables = [(module, dict(module._buffers)) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    state = torch.get_rng_state()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for module, table in tables:  # a buffer may have been replaced by another tensor
            module._buffers.update(table)
        with torch.no_grad():
            for buffer, before in buffers:
                if not buffer.is_meta and not torch.equal(buffer, before):
                    buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode


@contextmanager
def force_eager() -> Iterator[None]:
    """Compiled modules run as plain Python, so that their calls are seen."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
        yield


def raised_at(error: BaseException) -> str:
    """`file:line` where an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
