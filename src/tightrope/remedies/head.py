"""Remedies at the end of the net: `remove-softmax`, `scale-head`, `standardize-target`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.checks.loss.heads import LossTerm, loss_terms
from tightrope.checks.trace import CHANCE, VIEWS, origin, producers, weight_of
from tightrope.edit import Edit, call, is_function, rewrite_call, sibling
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.live import parameter, replacing
from tightrope.remedies.registry import remedy
from tightrope.study import Study
from tightrope.tape.tape import Entry, Kind

LOGIT_STD = 0.5
"""Of the scores after `scale-head`: cross-entropy then starts an eighth of a nat above ln K."""
_ACTIVATIONS = (nn.Softmax, nn.Sigmoid, nn.LogSoftmax, nn.Softmax2d)


@remedy("remove-softmax")
def remove_softmax(study: Study, finding: Finding) -> Remedy | None:
    """Take away the activation between the scores and a loss that has its own; or name the loss that fits."""
    entry = next((e for e in study.tape.entries if e.index == finding.index), None)
    if entry is None:
        return None
    title, patch = "Hand the loss the scores themselves", f"delete the {entry.op} before the loss"
    if entry.op == "nll_loss":
        title, patch = "Use the loss that takes scores", "torch.nn.functional.cross_entropy(scores, target)"
    module = study.models.find(finding.module)
    action = replacing(study, finding.module, lambda _: nn.Identity()) if isinstance(module, _ACTIVATIONS) else None
    likelihood = any(term.kind == "nll" for term in loss_terms(study.tape))
    if likelihood and entry.op == "softmax":
        title, patch = "Use log_softmax before nll_loss", "torch.nn.LogSoftmax(dim=-1)"
        dim = getattr(module, "dim", -1)
        action = action and replacing(study, finding.module, lambda _: nn.LogSoftmax(dim))
    cost = "probabilities at inference are then torch.softmax(scores, -1)"
    edit = _scores_instead(finding.location, entry, likelihood)
    return Remedy("remove-softmax", title, patch, cost, Safety.SAFE if action else Safety.REVIEW, action, edit)


def _scores_instead(location: str, entry: Entry, likelihood: bool) -> Edit | None:
    """The source without the activation: of the module that was built on the line, or of the call itself."""

    def rewrite(name: str, arguments: Sequence[str], keywords: dict[str, str]) -> str:
        leaf = name.rpartition(".")[2]
        if entry.op == "nll_loss":
            return call(
                sibling(name, "CrossEntropyLoss" if leaf == "NLLLoss" else "cross_entropy"), arguments, keywords
            )
        if likelihood:
            return call(sibling(name, "LogSoftmax" if leaf == "Softmax" else "log_softmax"), arguments, keywords)
        if leaf[:1].isupper():
            return sibling(name, "Identity") + "()"
        return arguments[0] if is_function(name) and arguments else name.rpartition(".")[0] or name

    if entry.op == "nll_loss":
        return rewrite_call(location, ("NLLLoss", "nll_loss"), rewrite)
    return rewrite_call(location, ("Softmax", "LogSoftmax", "Sigmoid", "Softmax2d", entry.op), rewrite)


@remedy("scale-head")
def scale_head(study: Study, finding: Finding) -> Remedy | None:
    """Scale the last layer so that its scores say little before they know anything."""
    term = _term(study, finding)
    law = study.measurement.laws.get(term.scores) if term else None
    if term is None or law is None or not law.rms or finding.evidence[0].quantity == "rms of the target":
        return None
    target = study.measurement.laws.get(term.target) if term.kind in ("mse", "l1") and term.target is not None else None
    factor = (target.rms if target is not None else LOGIT_STD) / law.rms
    return Remedy(
        "scale-head", f"Scale the last layer by {factor:.3g}",
        f"with torch.no_grad():\n    head.weight.mul_({factor:.3g}); head.bias.mul_({factor:.3g})",
        "none at initialisation; not for a trained head", Safety.SAFE, _scaling(study, term, factor),
    )  # fmt: skip


@remedy("standardize-target")
def standardize_target(study: Study, finding: Finding) -> Remedy | None:
    """Bring the target of a squared or absolute error to unit scale; in memory the model undoes it behind its head."""
    if finding.evidence[0].quantity != "rms of the target":
        return None
    patch = "mean, std = y_train.mean(0), y_train.std(0)\nloss = criterion(model(x), (y - mean) / std)"
    cost = "predictions are then model(x) * std + mean"
    term = _term(study, finding)
    action = _undoing(study, term) if term is not None else None
    title, safety = "Standardise the target on the training data", Safety.SAFE if action else Safety.ADVICE
    return Remedy("standardize-target", title, patch, cost, safety, action)


def _term(study: Study, finding: Finding) -> LossTerm | None:
    return next((t for t in loss_terms(study.tape) if t.entry.index == finding.index), None)


class _Unscale(torch.autograd.Function):
    """z std + mean, with the gradient that z has under the loss of the standardised target."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, mean: float, std: float, power: int) -> Tensor:
        ctx.factor = std ** (1 - power)
        return z * std + mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.factor, None, None, None


def _undoing(study: Study, term: LossTerm) -> Callable[[], None] | None:
    """An action after which a linear head answers in the target's units and learns in standard ones.

    A loss |y - (z std + mean)|^p is std^p times that of z and (y - mean) / std. None for a head that is no layer of
    its own, is used twice, or has no target of finite spread.
    """
    made, target = producers(study.tape), study.measurement.laws.get(term.target or -1)
    power = {"mse": 2, "l1": 1}.get(term.kind)
    last = _last_weighted(study, made, term.scores)
    module = study.models.find(last.module) if last is not None else None
    calls = sum(last is not None and entry.module == last.module for entry in study.tape.entries)
    if power is None or target is None or not target.std or not isinstance(module, nn.Linear) or calls != 1:
        return None
    mean, std = target.mean, target.std

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        made: Tensor = _Unscale.apply(output, mean, std, power)  # type: ignore[no-untyped-call]
        return made

    def act() -> None:
        assert module is not None
        module.register_forward_hook(hook)

    return act


def _scaling(study: Study, term: LossTerm, factor: float) -> Callable[[], None] | None:
    """An action on the last weight before the scores; None when other parts of the net share it."""
    tape, made = study.tape, producers(study.tape)
    last = _last_weighted(study, made, term.scores)
    weight = weight_of(tape, made, last) if last is not None else None
    if last is None or weight is None or len(tape.readers.get(weight, [])) > 1:
        return None
    sources = [tape.values[origin(made, i)] for i in last.inputs]
    found = [parameter(study, value.name) for value in sources if value.kind is Kind.PARAMETER]
    live = [p for p in found if p is not None]

    def act() -> None:
        with torch.no_grad():
            for p in live:
                p.mul_(factor)

    return act if live else None


def _last_weighted(study: Study, made: dict[int, Entry], number: int) -> Entry | None:
    entry = made.get(origin(made, number, VIEWS | CHANCE))
    return entry if entry is not None and weight_of(study.tape, made, entry) is not None else None


__all__ = ["remove_softmax", "scale_head", "standardize_target"]
