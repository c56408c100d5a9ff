"""What a check receives: the parts of a study, by type."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tightrope import Comparison, Forecast, Measurement
from tightrope.check import study
from tightrope.study import History, Models, Optimizers, Study
from tightrope.tape import Tape


@pytest.fixture(scope="module")
def example() -> Study:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return study(model, torch.randn(16, 4), optimizer=optimizer)


@pytest.mark.parametrize("kind", [Tape, Forecast, Measurement, Comparison, Models, Optimizers, Study])
def test_parts_are_given_by_type(example: Study, kind: type) -> None:
    assert isinstance(example.give(kind), kind)


def test_what_nothing_provides_is_an_error(example: Study) -> None:
    with pytest.raises(KeyError):
        example.give(dict)


def test_forecast_and_measurement_are_of_one_tape(example: Study) -> None:
    assert example.forecast.tape is example.measurement.tape is example.tape
    assert set(example.measurement.laws) >= set(example.forecast.laws)


def test_live_modules_are_found_by_their_path(example: Study) -> None:
    root = example.models.roots[""]
    assert isinstance(root, nn.Sequential)
    assert example.models.find("") is root
    assert example.models.find("2.0") is root[2][0]
    assert example.models.find("nowhere") is None


def test_wrappers_are_looked_through() -> None:
    inner = nn.Sequential(nn.Linear(2, 2))
    models = Models({"critic": nn.DataParallel(inner)})
    assert models.find("critic") is inner
    assert models.find("critic.0") is inner[0]
    assert models.find("0") is None
    assert len(list(example_optimizers().items)) == 1


def example_optimizers() -> Optimizers:
    return Optimizers((torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),))


def test_what_is_not_known_yet_is_none(example: Study) -> None:
    assert example.give(History) is None
    known = History({1: (0.5,)}, (), 1)
    assert replace(example, history=known).give(History) is known
