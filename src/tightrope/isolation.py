"""Keeps what tightrope computes in the middle of a script from touching the script."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


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


def raised_at(error: BaseException) -> str:
    """`file:line` where an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
