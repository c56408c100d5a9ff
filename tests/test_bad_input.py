"""What cannot be examined is refused: what was asked, what was found, what to do. What is odd but right works."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.errors import InputError, RecordError
from tightrope.tape import Kind

VERBS: dict[str, Callable[..., Any]] = {"predict": tr.predict, "measure": tr.measure, "check": tr.check}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def refuses(verb: str, model: Any, data: Any, kind: type[Exception] = InputError, **options: Any) -> tr.TightropeError:
    with pytest.raises(kind) as caught:
        VERBS[verb](model, data, **options)
    error = caught.value
    assert isinstance(error, tr.TightropeError)
    for part in (error.asked, error.found, error.remedy):
        assert part
        assert part in str(error)
    assert "?" not in str(error)
    return error


@pytest.fixture(params=list(VERBS))
def verb(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_something_that_is_no_model(verb: str) -> None:
    assert "relu is of type function" in refuses(verb, F.relu, torch.randn(2, 4)).found
    assert "Linear is of type type" in refuses(verb, nn.Linear, torch.randn(2, 4)).found


def test_a_model_without_parameters(verb: str) -> None:
    error = refuses(verb, nn.Sequential(nn.ReLU()), torch.randn(2, 4))
    assert "no parameters" in error.found


def test_a_model_whose_parameters_are_all_frozen(verb: str) -> None:
    error = refuses(verb, mlp().requires_grad_(False), torch.randn(2, 4))
    assert "4 parameters" in error.found
    assert "requires_grad_" in error.remedy


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_an_empty_batch(verb: str, shape: tuple[int, ...]) -> None:
    error = refuses(verb, mlp(), torch.randn(shape))
    assert str(shape) in error.found


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_batch_that_is_not_finite(verb: str, bad: float) -> None:
    x = torch.randn(6, 4)
    x[2, 1] = bad
    if verb == "check":  # a check's business is to say what is wrong: it is a finding there
        names = {finding.check for finding in tr.check(mlp(), x).findings}
        assert "non-finite-input" in names
        return
    error = refuses(verb, mlp(), x)
    assert "1 of 24" in error.found
    assert "(2, 1)" in error.found


def test_complex_inputs(verb: str) -> None:
    error = refuses(verb, mlp(), torch.randn(2, 4, dtype=torch.complex64))
    assert "complex64" in error.found


def test_complex_parameters(verb: str) -> None:
    model = nn.Linear(4, 2, dtype=torch.complex64)
    error = refuses(verb, model, torch.randn(2, 4))
    assert "complex64" in error.found
    assert "weight" in error.found


def test_a_wrong_shape_names_the_operation_and_the_line(verb: str) -> None:
    error = refuses(verb, mlp(), torch.randn(2, 5), RecordError)
    assert "in linear of 0 (" in error.found
    assert f"{Path(__file__).name}:" in error.found


def test_an_exception_in_the_model_is_kept_as_the_cause(verb: str) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.layer(x)
            raise KeyError("mine")

    error = refuses(verb, Broken(), torch.randn(2, 4), RecordError)
    assert isinstance(error.__cause__, KeyError)
    assert "after linear of layer (" in error.found


def test_a_loss_that_is_no_number(verb: str) -> None:
    error = refuses(verb, mlp(), torch.randn(2, 4), loss=lambda out: out)
    assert "(2, 2)" in error.found
    error = refuses(verb, mlp(), torch.randn(2, 4), loss=lambda out: 1.0)
    assert "float" in error.found


def test_a_loss_that_forgets_the_model(verb: str) -> None:
    refuses(verb, mlp(), torch.randn(2, 4), RecordError, loss=lambda out: torch.tensor(1.0))


def test_an_output_without_a_tensor(verb: str) -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> str:
            return str(tuple(self.layer(x).shape))

    error = refuses(verb, Silent(), torch.randn(2, 4), RecordError)
    assert "loss=" in error.remedy


def test_an_empty_loader() -> None:
    error = refuses("check", mlp(), torch.utils.data.DataLoader([], batch_size=2), loss=F.cross_entropy)
    assert "empty" in error.found


# -- odd, and right ------------------------------------------------------------------------------


def test_integer_inputs_have_no_law_and_do_not_matter() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(18, 2))
    ids = torch.randint(9, (5, 3))
    forecast, measurement = tr.predict(model, ids), tr.measure(model, ids)
    rows = tr.compare(forecast, measurement).rows
    assert [row.op for row in rows[:3]] == ["embedding", "flatten", "linear"]
    assert all(row.measured_std is not None for row in rows[:3])
    assert ids.dtype is torch.int64


def test_integers_where_the_model_wants_numbers() -> None:
    error = refuses("check", mlp(), torch.randint(9, (5, 4)), RecordError)
    assert "dtype" in error.found


def test_frozen_parameters_get_no_gradient_and_the_rest_does() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    measurement = tr.measure(model, torch.randn(16, 4))
    tape = measurement.tape
    names = {tape.values[number].name for number in measurement.gradients}
    assert {"2.weight", "2.bias"} <= names
    assert not {"0.weight", "0.bias"} & names
    tr.check(model, torch.randn(16, 4))


def test_tied_weights_gather_the_gradient_of_both_uses() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8, bias=False)
            self.outer = nn.Linear(8, 8, bias=False)
            self.outer.weight = self.inner.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(torch.tanh(self.inner(x)))

    model, x = Tied(), torch.randn(64, 8)
    measurement = tr.measure(model, x)
    (weight,) = list(measurement.tape.value_of(Kind.PARAMETER))
    forecast = tr.predict(model, x)
    (same,) = list(forecast.tape.value_of(Kind.PARAMETER))
    assert forecast.gradients[same.id].rms == pytest.approx(measurement.gradients[weight.id].rms, rel=0.3)


def test_a_module_used_twice_is_predicted_at_both_places() -> None:
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(256, 64)
    rows = tr.compare(tr.predict(model, x), tr.measure(model, x)).rows
    errors = [abs(r.predicted_std / r.measured_std - 1) for r in rows[:3] if r.predicted_std and r.measured_std]
    assert len(errors) == 3
    assert max(errors) < 0.1


def test_control_flow_that_differs_between_two_steps() -> None:
    class Alternating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.even, self.odd = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = torch.relu(self.first(x))
            return (self.odd if self.calls % 2 else self.even)(x)

    model, x = Alternating(), torch.randn(32, 8)
    comparison = tr.compare(tr.predict(model, x), tr.measure(model, x))
    modules = {row.module for row in comparison.rows}
    assert {"first"} <= modules
    assert "even" not in modules
    assert "odd" not in modules  # what only one of the two did is not compared


def test_module_names_with_markup_stay_text() -> None:
    nasty = "<script>alert(1)</script>"
    model = nn.Module()
    model.add_module(nasty, nn.Linear(4, 4))
    model.forward = lambda x: model.get_submodule(nasty)(x)  # type: ignore[assignment]
    report = tr.check(model, torch.randn(8, 4))
    assert any(nasty in row.module for row in report.laws)
    assert nasty not in report.to_html()
    assert tr.Report.from_json(report.to_json()).laws == report.laws


def test_a_batch_of_one_sample() -> None:
    report = tr.check(mlp(), torch.randn(1, 4))
    assert all(row.measured is None or math.isfinite(row.measured.std) for row in report.laws)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floating_point_types(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    rows = tr.compare(
        tr.predict(model, torch.randn(64, 4, dtype=dtype)), tr.measure(model, torch.randn(64, 4, dtype=dtype))
    ).rows
    assert rows[0].predicted_std == pytest.approx(rows[0].measured_std, rel=0.3)


def test_dict_dataclass_and_tuple_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return self.layer(x if scale is None else x * scale)

    @dataclass
    class Batch:
        x: Tensor
        scale: Tensor

    x, scale = torch.randn(8, 4), torch.rand(8, 4)
    counts = [
        len(tr.check(Two(), data).laws) for data in ((x, scale), {"x": x, "scale": scale}, Batch(x=x, scale=scale))
    ]
    assert len(set(counts)) == 1
