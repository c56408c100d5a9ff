"""Safe remedies are applied once, the data's first, and the weights' when all others are in place."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.finding import Finding, Remedy, Safety, Severity
from tightrope.remedies.update import _spare_vectors
from tightrope.repair import Repair, repair, safe_remedies
from tightrope.run import rehearse, run

SCRIPTS = Path(__file__).parent / "scripts"


def finding(check: str, *remedies: Remedy, caused_by: str | None = None) -> Finding:
    return Finding(check, Severity.FAULT, "net", "train.py:1", "", remedies=remedies, caused_by=caused_by)


def remedy(name: str, done: list[str], safety: Safety = Safety.SAFE) -> Remedy:
    return Remedy(name, name, f"{name}()", "none", safety, lambda: done.append(name))


def test_only_safe_remedies_of_causes_are_chosen_and_each_once() -> None:
    done: list[str] = []
    risky, safe = remedy("swap", done, Safety.REVIEW), remedy("scale", done)
    findings = [
        finding("a", risky, safe),
        finding("b", remedy("scale", done)),
        finding("c", remedy("other", done), caused_by="a"),
        finding("d", risky),
    ]
    assert [(f.check, r.name) for f, r in safe_remedies(findings)] == [("a", "scale")]


def test_weights_are_solved_in_a_round_of_their_own() -> None:
    done: list[str] = []
    both = [finding("init", remedy("initialize", done)), finding("data", remedy("standardize", done))]
    work = repair(lambda: both)  # what persists is not treated twice
    assert done == ["standardize", "initialize"]
    assert [r.name for _, r in work.applied] == done


def test_a_remedy_that_fails_is_named_and_the_others_are_applied() -> None:
    done: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError("no variance")

    broken = Remedy("broken", "broken", "broken()", "none", Safety.SAFE, fail)
    work = Repair()
    assert work.apply([finding("a", broken), finding("b", remedy("scale", done))]) == 1
    assert done == ["scale"]
    assert work.failed == ["broken could not be applied: ZeroDivisionError: no variance"]


def test_a_healthy_script_trains_on_as_if_nothing_had_been_asked() -> None:
    plain, fixed = io.StringIO(), io.StringIO()
    with redirect_stdout(plain):
        run(str(SCRIPTS / "mlp_dropout.py"), ["--steps", "4"])
    with redirect_stdout(fixed):
        found = run(str(SCRIPTS / "mlp_dropout.py"), ["--steps", "4"], fix=True)
    assert fixed.getvalue() == plain.getvalue()
    assert not found.applied and found.after is None


def test_a_repair_of_one_process_among_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="it runs in 2 processes"):
        run(str(SCRIPTS / "mlp_dropout.py"), fix=True)
    monkeypatch.setenv("RANK", "1")
    with redirect_stdout(io.StringIO()) as out:
        found = run(str(SCRIPTS / "mlp_dropout.py"), ["--steps", "2"])
    assert found.report is None and found.code == 0 and out.getvalue()


def test_one_remedy_serves_each_place_and_a_whole_program_once() -> None:
    done: list[str] = []
    gain, rate = remedy("gain", done), replace(remedy("rate", done), whole=True)
    places = [replace(finding("a", gain), module=name) for name in ("net.0", "net.4")]
    work = Repair()
    work.begin_round()
    assert work.apply([*places, finding("b", rate), replace(finding("c", rate), module="net.6")]) == 3
    work.begin_round()
    assert work.apply([replace(places[0], module="net.8"), *places, finding("b", rate)]) == 1
    assert done == ["gain", "gain", "rate", "gain"]


def test_late_in_training_only_what_spares_the_learnt_is_applied() -> None:
    done: list[str] = []
    draw, rate = remedy("draw", done), replace(remedy("rate", done), anytime=True)
    again = replace(remedy("again", done), restart=True)
    Repair().apply([finding("a", draw), finding("b", rate), finding("c", again)], late=True)
    assert done == ["rate", "again"]


def regression(rate: float, steps: int, losses: list[float]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    x = torch.randn(64, 16)
    y = (x[:, :4] @ torch.randn(4, 4)).argmax(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())


def test_training_starts_again_from_its_first_weights_at_a_rate_that_they_bear() -> None:
    losses: list[float] = []
    found = rehearse(lambda: regression(3.0, 40, losses), fix=True)
    number = next(f.step for f, r in found.applied if r.name == "scale-learning-rate")
    assert losses[number] == losses[0]  # the loss of the first batch, once more
    assert losses[-1] < 0.5 * losses[0]


def test_a_rate_that_is_too_low_is_raised_late_and_what_was_learnt_stays() -> None:
    losses: list[float] = []
    found = rehearse(lambda: regression(3e-6, 160, losses), fix=True)
    assert [(r.name, f.step > 2) for f, r in found.applied] == [("scale-learning-rate", True)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, nn.functional.l1_loss])
def test_a_head_that_answers_in_the_target_s_units_learns_as_on_a_standardised_target(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y = 175 + 150 * torch.tanh(x[:, :1] - x[:, 1:2])

    def train(target: Tensor, reached: list[Tensor]) -> None:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20 + (target is y)):  # the step that is spent on the remedy trains nothing
            optimizer.zero_grad()
            loss(model(x), target).backward()
            optimizer.step()
        reached += [p.detach() for p in model.parameters()]

    plain: list[Tensor] = []
    cured: list[Tensor] = []
    train((y - y.mean()) / y.std(correction=0), plain)
    found = rehearse(lambda: train(y, cured), fix=True)
    assert [r.name for _, r in found.applied] == ["standardize-target"]
    for one, other in zip(plain, cured, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_gains_and_biases_move_to_a_group_that_does_not_decay() -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5, betas=(0.8, 0.9))
    _spare_vectors(optimizer)
    kept, spared = optimizer.param_groups
    assert kept["params"] == [layer.weight] and kept["weight_decay"] == 0.5
    assert spared["params"][0] is layer.bias and spared["weight_decay"] == 0.0
    assert spared["betas"] == (0.8, 0.9) and spared["lr"] == 0.1
