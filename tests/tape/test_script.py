"""Unmodified scripts are run, their steps are found, and not a number of theirs changes."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tightrope.errors import InputError
from tightrope.isolation import undisturbed
from tightrope.run import Run, run
from tightrope.tape import stack
from tightrope.tape.modules import remember_construction
from tightrope.tape.recorder import Recorder
from tightrope.tape.sampler import STEPS
from tightrope.tape.script import run_script
from tightrope.tape.steps import Steps
from tightrope.watch.watcher import Watcher

SCRIPTS = Path(__file__).parent.parent / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def watched(name: str, *arguments: str, record: tuple[int, ...] = (1, 2, 4), **options: bool) -> tuple[Run, str]:
    """Run a script in this process; what came of it and what it printed."""
    out = io.StringIO()
    with redirect_stdout(out):
        found = run(str(SCRIPTS / name), arguments, record=record, **options)
    return found, out.getvalue()


def plain(name: str, *arguments: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        run_script(str(SCRIPTS / name), arguments)
    return out.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        ("mlp_dropout.py", "--record", "theirs"),
        ("gan.py",),
        ("amp_accumulation.py",),
        ("by_hand.py",),
        ("checkpointing.py",),
    ],
    ids=lambda a: a[0],
)
def test_numbers_are_bit_identical_with_and_without(arguments: tuple[str, ...]) -> None:
    script = [str(SCRIPTS / arguments[0]), *arguments[1:]]
    ours = [sys.executable, "-m", "tightrope", "run", "--record", "1,2,10", "--format", "none", *script]
    theirs = [sys.executable, *script]
    both = [
        subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for c in (ours, theirs)
    ]
    (with_out, with_err), (without_out, _) = (process.communicate(timeout=120) for process in both)
    assert with_out == without_out
    assert len(without_out.splitlines()) > 20
    assert "step 10 recorded" in with_err
    assert both[0].returncode in (0, 1), with_err


@pytest.mark.parametrize(
    ("name", "arguments", "steps"),
    [
        ("by_hand.py", ("grad",), 20),
        ("lbfgs.py", (), 4),
        ("vae.py", (), 20),
        ("word_language_model.py", (), 19),
        ("reinforce.py", (), 12),
        ("dcgan.py", (), 10),
        ("nano_gpt.py", (), 12),
    ],
)
def test_scripts_of_all_kinds(name: str, arguments: tuple[str, ...], steps: int) -> None:
    lines: list[str] = []
    out = io.StringIO()
    with redirect_stdout(out):
        found = run(str(SCRIPTS / name), arguments, record=(1, 4), say=lines.append)
    assert found.outcome.code == 0 and found.report is not None
    assert found.report.steps == (1, 4) and not found.report.notes
    assert f"after {steps} steps" in lines[-1]
    assert out.getvalue() == plain(name, *arguments)


@pytest.mark.parametrize("way", ["ddp", "compile", "workers"])
def test_wrapped_models_and_loaders_with_workers(way: str) -> None:
    found, out = watched("wrapped.py", way, record=(1, 4))
    assert out == plain("wrapped.py", way)
    assert found.report is not None and found.report.steps == (1, 4) and not found.report.notes
    assert [row.module for row in found.report.laws] == ["first", "", "last", ""]


def test_a_step_of_two_optimizers_ends_when_both_have_stepped() -> None:
    found, _ = watched("gan.py")
    assert found.report is not None and found.report.steps == (1, 2, 4)
    # The generator's pass stands for the step: it runs through both networks, named after their variables.
    modules = {row.module.partition(".")[0] for row in found.report.laws}
    assert {"netG", "netD"} <= modules


def test_accumulated_gradients_and_a_step_that_the_scaler_leaves_out_make_one_step_each() -> None:
    lines: list[str] = []
    with redirect_stdout(io.StringIO()):
        found = run(str(SCRIPTS / "amp_accumulation.py"), record=(1, 10), say=lines.append)
    assert "after 20 steps" in lines[-1]
    # The loss is the script's own, a quarter of about ln 4, not what the scaler made of it.
    assert found.report is not None and all(0.1 < loss < 1 for loss in found.report.loss.values())


def test_findings_point_at_the_line_where_a_layer_was_built() -> None:
    found, _ = watched("vae.py")
    assert found.report is not None
    source = (SCRIPTS / "vae.py").read_text().splitlines()
    places = {row.module: row.location for row in found.report.laws if row.op == "linear"}
    for name in ("fc1", "fc21", "fc4"):
        assert f"self.{name} = " in source[int(places[name].rpartition(":")[2]) - 1]


def test_a_crash_is_reported_with_the_step_that_it_left_half_done(capfd: pytest.CaptureFixture[str]) -> None:
    found, _ = watched("broken.py", "crash-first")
    assert found.code == 1 and found.outcome.error is not None and "shapes cannot be multiplied" in found.outcome.error
    assert found.report is not None and any("ended with RuntimeError" in note for note in found.report.notes)
    assert [row.op for row in found.report.laws] == ["linear", "relu", "linear"] and not found.report.loss
    trace = capfd.readouterr().err
    assert "return model(x) @ torch.ones(2, 2)" in trace and "Traceback" in trace
    assert "tightrope/" not in trace.replace("tests/", "")


def test_a_crash_later_keeps_what_was_recorded(capfd: pytest.CaptureFixture[str]) -> None:
    found, out = watched("broken.py", "crash")
    assert found.code == 1 and out.splitlines()[-1] == "step 2"
    assert found.report is not None and found.report.steps == (1, 2)
    assert capfd.readouterr().err.splitlines()[-1].endswith("ValueError: the disk is full")


@pytest.mark.parametrize(("way", "code"), [("exit", 7), ("message", 1), ("interrupt", 130), ("well", 0)])
def test_the_exit_code_is_the_scripts_own(way: str, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    found, _ = watched("broken.py", way)
    assert found.outcome.code == code
    assert ("no such data set" in capfd.readouterr().err) == (way == "message")


def test_the_operation_that_made_the_first_non_finite_number_is_named() -> None:
    found, _ = watched("broken.py", "log")
    assert found.report is not None
    (first, *_) = found.report.notes
    assert "The loss is nan at step 1" in first or "The loss is inf at step 1" in first
    assert "log makes 16 non-finite elements" in first and "broken.py:29)" in first


def test_data_that_are_lost_between_recorded_steps_are_named() -> None:
    found, _ = watched("broken.py", "gap", record=(1,))
    assert found.report is not None and found.report.steps == (1,)
    assert "At step 3 the loss is nan: the input: 1 of its 64 numbers" in found.report.notes[0]
    assert [f.check for f in found.report.findings if f.caused_by is None] == ["non-finite-input"]


def test_a_loss_that_is_lost_outside_the_models_has_the_next_step_recorded() -> None:
    found, _ = watched("broken.py", "overflow", record=(1,))
    assert found.report is not None and found.report.steps == (1, 4)
    assert found.report.notes[0] == "At step 3 the loss is inf; the step after it was recorded."
    (first,) = [f for f in found.report.findings if f.caused_by is None]
    assert (first.check, first.step) == ("non-finite", 3) and "lost outside the modules" in first.summary


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("print('no training here')", "no training step was seen"),
        ("import torch; torch.nn.Linear(2, 2)(torch.ones(1, 2))", None),
    ],
)
def test_a_script_without_a_training_step(tmp_path: Path, text: str, found: str | None) -> None:
    script = tmp_path / "s.py"
    script.write_text(text)
    if found is None:  # a forward pass that nothing came of is studied as far as it went
        result = run(str(script))
        assert result.report is not None and not result.report.loss
        return
    with pytest.raises(InputError, match=found):
        run(str(script))


def test_steps_that_never_came(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it made 5 steps, none of them is number 50"), redirect_stdout(io.StringIO()):
        run(str(SCRIPTS / "broken.py"), ["well"], record=(50,))


@pytest.mark.parametrize(
    ("target", "module", "message"),
    [
        ("nowhere.py", False, "no such file"),
        ("nowhere.nothing", True, "finds no module"),
        ("json", True, "finds no module json that can be run"),
    ],
)
def test_a_target_that_does_not_exist(target: str, module: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(target, module=module)


def test_a_script_finds_itself_as_the_interpreter_would_run_it(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("VALUE = 3\n")
    (tmp_path / "s.py").write_text(
        "import sys, neighbour, pickle, __main__\nclass A: pass\n"
        "print(__name__, sys.argv[1:], __file__ == __main__.__file__, type(pickle.loads(pickle.dumps(A()))) is A)\n"
    )
    before = list(sys.path), list(sys.argv), sys.modules["__main__"]
    out = io.StringIO()
    with redirect_stdout(out):
        run_script(str(tmp_path / "s.py"), ["--a", "-m", "b"])
    assert out.getvalue() == "__main__ ['--a', '-m', 'b'] True True\n"
    assert (sys.path, sys.argv, sys.modules["__main__"]) == before


def test_nothing_is_left_behind_and_nothing_stands_between_recorded_steps() -> None:
    seen: list[tuple[int, bool, int]] = []
    hooks = nn.modules.module._global_forward_hooks
    watcher = Watcher(frozenset({STEPS + 2}))
    originals = torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad, torch.optim.Optimizer.__init__
    with watcher:
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(STEPS + 4):
            model(torch.randn(5, 3)).mean().backward()
            modes = len(torch.overrides._get_current_function_mode_stack())
            seen.append((watcher.steps + 1, modes > 0, len(hooks)))
            optimizer.step()
    after = [(step - STEPS, mode, hooked) for step, mode, hooked in seen if step > STEPS]
    assert after == [(1, False, 0), (2, True, 1), (3, False, 0), (4, False, 0)]
    assert not torch.overrides._get_current_function_mode_stack()
    now = torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad, torch.optim.Optimizer.__init__
    assert now == originals


def test_a_failure_of_the_observation_is_told_once_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("tightrope.watch.judge.forecast", fail)
    lines: list[str] = []
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(InputError, match="observation failed"):
        run(str(SCRIPTS / "broken.py"), ["well"], record=(1, 2, 3), say=lines.append)
    assert sum("observation stopped" in line for line in lines) == 1
    assert out.getvalue().splitlines()[-1] == "step 5"


def test_what_is_computed_undisturbed_leaves_every_random_state() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with undisturbed():
            torch.rand(9), np.random.rand(9), random.random()
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_the_recorder_stands_below_the_scripts_own_modes() -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return function(*args, **(kwargs or {}))

    recorder = Recorder()
    with torch.device("cpu"), Mode() as own:
        with Mode():
            recorder.resume()
        current = torch.overrides._get_current_function_mode_stack()
        assert [type(m).__name__ for m in current] == ["DeviceContext", "Recorder", "Mode"] and current[-1] is own
        assert recorder.suspend() and not recorder.suspend()
    assert not stack.holds(recorder) and not torch.overrides._get_current_function_mode_stack()


def test_a_long_way_to_the_first_backward_pass_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tightrope.tape.recorder.COLLECT_ENTRIES", 50)
    watcher = Watcher(frozenset({1}))
    with watcher:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(200):
            model(torch.randn(5, 3))
        assert watcher._recorder is not None
        assert len(watcher._recorder.tape.entries) < 100 and len(watcher._meter.laws) < 200
        kept = [model(torch.randn(5, 3)) for _ in range(40)]  # these are needed later and stay
        torch.stack(kept).mean().backward()
        optimizer.step()
    (found,) = watcher.passes
    assert sum(entry.op == "linear" for entry in found.study.tape.entries) == 80


def test_evaluation_without_gradients_is_left_out() -> None:
    watcher = Watcher(frozenset({1}))
    with watcher:
        model = nn.Linear(3, 1)
        with torch.no_grad():
            model(torch.randn(5, 3))
        assert watcher._recorder is not None and not watcher._recorder.tape.entries
        target = model(torch.randn(5, 3)).sum()
        assert len(watcher._recorder.tape.entries) == 2
        target.backward()


def test_layers_that_replace_the_call_of_a_module_have_paths_too() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 2))

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    plain = Own.__call__
    watcher = Watcher(frozenset({1}))
    with remember_construction(), watcher:
        net = nn.Module()
        net.first, net.second = Own(), nn.Linear(2, 1)
        net.second(net.first(torch.randn(4, 3))).mean().backward()
    (found,) = watcher.passes
    assert [entry.module for entry in found.study.tape.entries] == ["first", "second", ""]
    assert Own.__call__ is plain


class Listener:
    """Writes down what `Steps` tells."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def watching(self) -> bool:
        return True

    def on_built(self, optimizer: object) -> None: ...

    def on_pass(self) -> None: ...

    def on_passed(self) -> None: ...

    def on_clip(self, limit: float, norm: object) -> None: ...

    def on_scaled(self, scaler: object, *, skipped: bool, unscaled: bool) -> None: ...

    def on_update(self, last: bool, optimizer: object, closure: bool) -> bool:
        self.told.append("last" if last else "more")
        return False

    def during_update(self):  # type: ignore[no-untyped-def]
        raise AssertionError("no closure here")

    def on_updated(self, optimizer: object) -> None: ...

    def on_step(self, late: bool) -> None:
        self.told.append(late)

    def on_loss(self, value: float) -> None:
        self.told.append(value)


def test_the_end_of_a_step_is_seen_late_only_when_an_optimizer_rests() -> None:
    listener = Listener()
    weight = nn.Parameter(torch.ones(1))
    with Steps(listener):
        first, second = torch.optim.SGD([weight], 0.0), torch.optim.SGD([weight], 0.0)
        for resting in (False, True, True):
            (weight * 2).sum().backward()
            first.step()
            if not resting:
                second.step()
    # Once the cycle is known to be the first one's alone, its steps end when they end.
    assert listener.told == [2.0, "more", "last", False, 2.0, "more", 2.0, True, "last", False]


def test_a_backward_pass_that_is_part_of_a_loss_is_no_step() -> None:
    listener = Listener()
    x = torch.ones(2, requires_grad=True)
    with Steps(listener):
        (slope,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        torch.autograd.backward(slope.square().sum())
    assert listener.told == [2.0, 18.0, "last", False]
