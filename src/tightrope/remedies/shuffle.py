"""`shuffle`, `align-labels`, `look-at-labels`: the order of samples and labels, and labels of one class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from tightrope.checks.data.label_order import ONE_CLASS
from tightrope.edit import call, rewrite_call
from tightrope.finding import Finding, Remedy, Safety, Severity
from tightrope.remedies.registry import remedy
from tightrope.study import Study


@remedy("shuffle")
def shuffle(study: Study, finding: Finding) -> Remedy | None:
    """Shuffle what a loader reads in order; in words where the script cuts its batches itself.

    In memory the loader draws its next epoch at random; an epoch that has begun ends in the old order.
    """
    if _one_class(finding):
        return None
    batches = study.batches
    loader = batches.loader if batches is not None and batches.sequential else None
    title, cost = "Shuffle the training data", "batches are random; runs repeat only with a fixed seed"
    if loader is None:
        patch = (
            "order = torch.randperm(len(x))  # in each epoch, before it is cut into batches\nx, y = x[order], y[order]"
        )
        return Remedy("shuffle", title, patch, cost, Safety.ADVICE)
    patch = f"DataLoader(dataset, batch_size={loader.batch_size}, shuffle=True)"
    edit = rewrite_call(finding.location, ("DataLoader",), _shuffled)
    action = _action(loader)
    safety = Safety.SAFE if action and finding.severity is Severity.FAULT else Safety.REVIEW
    return Remedy("shuffle", title, patch, cost, safety, action, edit, whole=True, anytime=True)


@remedy("look-at-labels")
def look_at_labels(study: Study, finding: Finding) -> Remedy | None:
    """Say where to look when all labels are one."""
    if not _one_class(finding):
        return None
    patch = "print(labels.unique(return_counts=True))  # divided, cast or indexed one time too many"
    return Remedy("look-at-labels", "Look at the labels where they are made", patch, "none", Safety.ADVICE)


def _one_class(finding: Finding) -> bool:
    return bool(finding.evidence) and finding.evidence[0].quantity == ONE_CLASS


@remedy("align-labels")
def align_labels(study: Study, finding: Finding) -> Remedy | None:
    """Say how data and labels keep one order."""
    patch = (
        "order = torch.randperm(len(x))\n"
        "x, y = x[order], y[order]  # one permutation for both\n"
        "print(x[:3], y[:3])  # a few samples, judged by eye"
    )
    return Remedy("align-labels", "Give data and labels the same order", patch, "none", Safety.ADVICE)


def _shuffled(name: str, arguments: Sequence[str], keywords: dict[str, str]) -> str:
    """The call with `shuffle=True`, its third argument; one that names a sampler stays as it is."""
    if {"sampler", "batch_sampler"} & keywords.keys() or len(arguments) > 3:
        return call(name, arguments, keywords)
    if len(arguments) > 2:
        return call(name, [*arguments[:2], "True"], keywords)
    return call(name, arguments, {**keywords, "shuffle": "True"})


def _action(loader: Any) -> Callable[[], None] | None:
    sampler = loader.batch_sampler
    if type(sampler) is not BatchSampler or type(sampler.sampler) is not SequentialSampler:
        return None

    def act() -> None:
        sampler.sampler = RandomSampler(loader.dataset)

    return act


__all__ = ["align_labels", "look_at_labels", "shuffle"]
