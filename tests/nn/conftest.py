"""Hold the forecast of a layer against a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tightrope as tr

Covered = Callable[..., None]


@pytest.fixture
def covered() -> Covered:
    """`covered(model, x, simulated=0)`: nothing unknown, little simulated, stds and gradients right."""

    def run(model: nn.Module, x: Tensor, *, simulated: int = 0, relative: float = 0.35, miss: float = 4.0) -> None:
        torch.manual_seed(0)
        forecast = tr.predict(model, x)
        assert not forecast.unknown
        assert len(forecast.simulated) <= simulated
        measured = tr.measure(model, x)
        rows = [row for row in tr.compare(forecast, measured).rows if not row.trivial and row.z is not None]
        assert rows
        wrong = [
            f"{row.op}: {row.measured_std:.3g}, predicted {row.predicted_std:.3g}"
            for row in rows
            if row.predicted_std and row.measured_std and abs(row.z or 0) > miss
            and abs(math.log(row.measured_std / row.predicted_std)) > relative
        ]  # fmt: skip
        assert wrong == []
        last = rows[-1]
        assert last.predicted_std == pytest.approx(last.measured_std, rel=0.1)
        by_name = {v.name: v.id for v in forecast.tape.values.values() if v.name}
        for value in measured.tape.values.values():
            if value.trained and value.name in by_name and len(value.shape) > 1 and value.id in measured.gradients:
                predicted = forecast.gradients[by_name[value.name]].rms
                assert predicted == pytest.approx(measured.gradients[value.id].rms, rel=0.5), value.name

    return run
