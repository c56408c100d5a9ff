"""Remedies on the way from the last layer to the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from tightrope.checks.loss.heads import LossTerm, loss_terms
from tightrope.checks.loss.last_layer_init import class_frequencies, last_bias
from tightrope.checks.trace import learned, producers
from tightrope.edit import Edit, rewrite_call, sibling
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.live import parameter, replacing
from tightrope.remedies.registry import remedy
from tightrope.study import Study
from tightrope.tape.tape import Entry

_HEADS = (
    nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.Softmax, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid,
    nn.LogSoftmax, nn.LogSigmoid,
)  # fmt: skip
"""Activations that a head may end in."""


@remedy("match-shapes")
def match_shapes(study: Study, finding: Finding) -> Remedy | None:
    """Say which operand of a comparison lacks a dimension, or has one too many."""
    entry = _entry(study, finding)
    if entry is None:
        return None
    values, depends = study.tape.values, learned(study.tape)
    scores, target = sorted(entry.inputs[:2], key=lambda i: i not in depends)
    patch = f"output = output.reshape(target.shape)  # {values[scores].shape} to {values[target].shape}"
    return Remedy("match-shapes", "Give output and target one shape", patch, "none", Safety.ADVICE)


@remedy("fix-labels")
def fix_labels(study: Study, finding: Finding) -> Remedy | None:
    """Say how the labels are to be coded for the loss, or which loss reads them as they are."""
    term = _term(study, finding)
    if term is None:
        return None
    low = next((item.measured for item in finding.evidence if item.quantity == "smallest label"), 0.0)
    high = next((item.measured for item in finding.evidence if item.quantity == "largest label"), 1.0)
    title, patch = "Use the loss that reads class numbers", "loss = torch.nn.functional.cross_entropy(scores, label)"
    if term.kind in ("bce", "bce_logits") and low < 0:
        title, patch = f"Code the labels {low:.0f} and {high:.0f} as 0 and 1", "target = (target > 0).float()"
    elif term.kind in ("bce", "bce_logits"):
        patch = f"{patch}  # with {high + 1:.0f} units in the last layer"
    elif term.kind == "hinge":
        title, patch = "Code the labels 0 and 1 as -1 and +1", "target = 2 * target - 1"
    elif term.kind in ("cross_entropy", "soft") and low < 0:
        title, patch = "Hand the loss probabilities", "target = torch.softmax(target, -1)"
    elif term.kind in ("cross_entropy", "soft", "kl") and finding.evidence[0].quantity == "sum of a row of the target":
        dim = 1 if term.kind == "cross_entropy" else -1
        title, patch = "Let the probabilities of a row sum to 1", f"target = target / target.sum({dim}, keepdim=True)"
    elif term.kind in ("cross_entropy", "soft"):
        title = "Use one binary cross-entropy a label"
        patch = "loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, target)"
    return Remedy("fix-labels", title, patch, "none", Safety.ADVICE)


@remedy("open-head")
def open_head(study: Study, finding: Finding) -> Remedy | None:
    """Take the last activation away; or say that the target is to be brought into its range."""
    entry = _entry(study, finding)
    if entry is None:
        return None
    if any(term.entry.index == entry.index for term in loss_terms(study.tape)):
        patch = "target = (target - low) / (high - low)  # of the training data"
        return Remedy("open-head", "Scale the target to [0, 1]", patch, "none", Safety.ADVICE)
    patch = f"delete the {entry.op} behind the last layer  # or scale the target into its range"
    action = _swap(study, entry, lambda _: nn.Identity())
    return Remedy(
        "open-head", f"End the model in its last layer, without {entry.op}", patch, "outputs are no longer bounded",
        Safety.SAFE if action else Safety.REVIEW, action, _replaced(finding.location, entry, "Identity"),
    )  # fmt: skip


@remedy("binary-head")
def binary_head(study: Study, finding: Finding) -> Remedy | None:
    """Put a sigmoid in the place of a softmax over one unit; or name the loss of one score."""
    entry = _entry(study, finding)
    if entry is None:
        return None
    if entry.op != "softmax":
        patch = "loss = torch.nn.functional.binary_cross_entropy_with_logits(score, target)"
        return Remedy("binary-head", "Use the loss of one score", patch, "the target is a float", Safety.REVIEW)
    regression = any(term.kind in ("mse", "l1", "gaussian") for term in loss_terms(study.tape))
    if regression and finding.check == "constant-head" and not _binary(study):
        patch, action = "delete the softmax behind the last layer", _swap(study, entry, lambda _: nn.Identity())
        title = "End the model in its last layer"
    else:
        patch, action = "torch.nn.Sigmoid()", _swap(study, entry, lambda _: nn.Sigmoid())
        title = "Use a sigmoid for one unit"
    edit = _replaced(finding.location, entry, "Sigmoid" if patch.endswith("Sigmoid()") else "Identity")
    return Remedy("binary-head", title, patch, "none", Safety.SAFE if action else Safety.REVIEW, action, edit)


@remedy("prior-bias")
def prior_bias(study: Study, finding: Finding) -> Remedy | None:
    """Set the last bias to what the class frequencies of the batch say."""
    term = _term(study, finding)
    made = producers(study.tape)
    found = class_frequencies(study, made, term) if term is not None else None
    bias = parameter(study, last_bias(study, made, term)) if term is not None else None
    if term is None or found is None:
        return None
    logarithms = found[0].log()
    wanted = logarithms[1:] - logarithms[:1] if term.kind == "bce_logits" else logarithms

    def act() -> None:
        assert bias is not None
        with torch.no_grad():
            bias.copy_(wanted.to(bias))

    patch = "head.bias.data = torch.log(frequencies)  # of the training labels"
    if term.kind == "bce_logits":
        patch = f"torch.nn.init.constant_(head.bias, {float(wanted[0]):.3g})  # ln p / (1 - p)"
    fits = bias is not None and bias.shape == wanted.shape
    return Remedy(
        "prior-bias", "Start the last bias at the class frequencies", patch, "none before training", Safety.REVIEW,
        act if fits else None,
    )  # fmt: skip


def _binary(study: Study) -> bool:
    """Whether every target lies in [0, 1]."""
    units = (study.measurement.units.get(t.target) for t in loss_terms(study.tape) if t.target is not None)
    return all(found is not None and found.low >= 0 and found.high <= 1 for found in units)


def _entry(study: Study, finding: Finding) -> Entry | None:
    return next((entry for entry in study.tape.entries if entry.index == finding.index), None)


def _term(study: Study, finding: Finding) -> LossTerm | None:
    return next((term for term in loss_terms(study.tape) if term.entry.index == finding.index), None)


def _replaced(location: str, entry: Entry, leaf: str) -> Edit | None:
    """The line on which an activation module is built, with another one in its place."""

    def rewrite(name: str, arguments: Sequence[str], keywords: dict[str, str]) -> str:
        return f"{sibling(name, leaf)}()"

    names = [head.__name__ for head in _HEADS if head.__name__.lower() == entry.op.replace("_", "")]
    return rewrite_call(location, names, rewrite)


def _swap(study: Study, entry: Entry, make: Callable[[nn.Module], nn.Module]) -> Callable[[], None] | None:
    """An action that replaces an activation module that is called once; None for a function or a shared module."""
    calls = sum(other.module == entry.module for other in study.tape.entries)
    module = study.models.find(entry.module)
    return replacing(study, entry.module, make) if calls == 1 and isinstance(module, _HEADS) else None


__all__ = ["binary_head", "fix_labels", "match_shapes", "open_head", "prior_bias"]
