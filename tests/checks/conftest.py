"""Run one check on one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from tightrope.check import study
from tightrope.checks.registry import get
from tightrope.finding import Finding

Judge = Callable[..., list[Finding]]


@pytest.fixture
def judge() -> Judge:
    """`judge(name, model, data, loss)` gives the findings of the named check on one step."""

    def run(
        name: str, model: nn.Module, data: Any, loss: Callable[..., Tensor] | None = nn.functional.cross_entropy
    ) -> list[Finding]:
        return get(name).judge(study(model, data, loss=loss))

    return run
