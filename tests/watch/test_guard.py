"""Numbers that are lost in a step that is not recorded are traced to the operation that loses them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.finding import Finding
from tightrope.run import Run, rehearse

STEP = 37
STEPS = 40


class Spoilt(nn.Module):
    """A function that a few numbers of one batch are bad for, behind dropout and a norm with running statistics."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        h = self.dropout(torch.relu(self.norm(self.first(x)))) + 1
        return self.last(self.function(h * flag))


def train(
    function: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor], losses: list[float], clip: bool
) -> None:
    torch.manual_seed(0)
    model = Spoilt(function)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for number in range(1, STEPS + 1):
        x, y, flag = torch.randn(16, 6), torch.arange(16) % 3, torch.ones(16, 8)
        if number == STEP:
            flag[(5, 7) if function is not torch.sqrt else 5] = 0.0
        value = loss(model(x, flag), y)
        optimizer.zero_grad()
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value.item())
    losses += [float(p.double().sum()) for p in model.state_dict().values()] + [float(torch.rand(()))]


def watch(function: Callable[[Tensor], Tensor], loss: Callable[..., Tensor], clip: bool = False) -> list[Finding]:
    plain: list[float] = []
    seen: list[float] = []
    train(function, loss, plain, clip)
    found = rehearse(lambda: train(function, loss, seen, clip), record=(1, 39))
    assert torch.equal(torch.tensor(plain).nan_to_num(7.0), torch.tensor(seen).nan_to_num(7.0))
    return lost(found)


def lost(found: Run) -> list[Finding]:
    assert found.report is not None
    assert not any("Observation stopped" in note for note in found.report.notes), found.report.notes
    return [f for f in found.report.findings if f.check == "non-finite"]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_the_first_operation_is_named_with_step_element_and_line(loss: Callable[..., Tensor], clip: bool) -> None:
    first, *others = watch(torch.log, loss, clip)
    assert first.step == STEP and first.caused_by in (None, "naive-log")
    assert first.summary.startswith("log makes 1 non-finite element (float32), the first at [5, 7]")
    assert "all inputs and parameters are finite" in first.summary
    lines, start = inspect.getsourcelines(Spoilt.forward)
    assert first.location.endswith(f"test_guard.py:{start + len(lines) - 1}")
    assert all(f.caused_by in ("non-finite", "naive-log") for f in others)


def test_a_slope_without_bound_is_found_though_the_loss_is_finite() -> None:
    (first, *_) = watch(torch.sqrt, F.cross_entropy)
    assert first.step == STEP and first.summary.startswith("the gradient of sqrt is not finite on inputs in [0,")


def test_an_overflow_in_half_precision() -> None:
    def cut(h: Tensor) -> Tensor:
        return torch.where(h == 0, h + 300.0, h).half().square().float()

    (first, *_) = watch(cut, F.cross_entropy)
    assert first.step == STEP and first.summary.startswith("square makes 1 non-finite element (float16)")


def test_a_loss_that_is_lost_outside_the_modules() -> None:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return (out - out[:1]).square().sum().sqrt().log() * 0 + F.cross_entropy(out, y)

    def constant(h: Tensor) -> Tensor:
        return h * (h != 0).all()

    (first, *others) = watch(constant, loss)
    assert first.step == STEP and "lost outside the modules" in first.summary and "test_guard.py" in first.location
    assert all(f.caused_by in ("non-finite", "naive-log") for f in others)


def test_a_parameter_that_its_last_update_broke() -> None:
    def body() -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for number in range(1, 8):
            optimizer.param_groups[0]["lr"] = 3e38 if number == 5 else 1e-6
            optimizer.zero_grad()
            (model(torch.randn(8, 4)) - 100).square().mean().backward()
            optimizer.step()

    (first, *_) = lost(rehearse(body, record=(1,)))
    assert first.step == 6 and first.summary.startswith("parameter 0.weight") and "a rate of 3e+38" in first.summary


def test_the_overflow_that_a_gradient_scaler_expects_is_no_fault() -> None:
    def body() -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1000)
        for number in range(1, 12):
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x).float().square().mean()
            if number == 7:
                scaler.update(3e38)
            scaler.scale(loss * 100).backward()
            scaler.step(optimizer)
            scaler.update()

    assert lost(rehearse(body, record=(1,))) == []


def test_ordinary_steps_leave_no_hook_and_nothing_stays_behind() -> None:
    seen = []

    def body() -> None:
        model = nn.Sequential(nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(3):
            seen.append(("__call__" in nn.Sequential.__dict__, len(model._forward_pre_hooks)))
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    rehearse(body, record=(1,))
    assert seen == [(False, 0), (True, 0), (True, 0)]
    assert "__call__" not in nn.Sequential.__dict__


def test_a_module_without_a_class_of_its_own_leaves_torch_alone() -> None:
    call = nn.Module.__dict__["__call__"]

    def body() -> None:
        model = nn.Module()
        model.weight = nn.Parameter(torch.ones(4))
        model.forward = lambda x: x * model.weight  # type: ignore[method-assign]
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(3):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            assert nn.Module.__dict__["__call__"] is call

    rehearse(body, record=(1,))
    assert nn.Module.__dict__["__call__"] is call


def test_a_logarithm_of_the_script_that_was_warned_of_is_the_cause_when_the_loss_is_lost() -> None:
    def body() -> None:
        torch.manual_seed(0)
        x = torch.randn(64, 8)
        y = (x[:, 0] > 0).float()
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        for _ in range(40):
            p = torch.sigmoid(3 * model(x).squeeze(1))
            loss = -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    report = rehearse(body, record=(1,)).report
    assert report is not None
    first, *rest = [f for f in report.findings if f.severity.value != "advice"]
    assert (first.check, first.caused_by) == ("naive-log", None) and 1 < first.step < 40
    assert "reads 1 - sigmoid" in first.summary and "though the models' outputs are finite" in first.summary
    assert rest and all(f.caused_by == "naive-log" for f in rest)
