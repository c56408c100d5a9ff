"""`standardize`, `impute`, `drop-missing`: centre, scale and complete the features of the data inside the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tightrope.checks.data.unscaled_input import readings
from tightrope.finding import Finding, Remedy, Safety
from tightrope.nn.standardize import Standardize
from tightrope.remedies.registry import remedy
from tightrope.study import Study
from tightrope.tape.sampler import LOSSES
from tightrope.tape.tape import Entry, Kind

LEARN = 4096
"""Samples from which the layer that is attached in memory still learns: the standard error of a mean is 1.6 %."""
_IMAGES = {"conv1d": 1, "conv2d": 1, "conv3d": 1, "conv_transpose1d": 1, "conv_transpose2d": 1, "conv_transpose3d": 1}


@remedy("standardize")
def standardize(study: Study, finding: Finding) -> Remedy | None:
    """Put a fitted `tightrope.nn.Standardize` before the weight that reads the data.

    In memory it is attached to the module that reads them, so that training and evaluation both pass it; it is fitted
    on the first batches that training shows it.
    """
    reader = next((entry for entry, _ in readings(study) if entry.module == finding.module), None)
    return _remedy(study, reader, "standardize", "Standardise the input on the training data, inside the model")


@remedy("impute")
def impute(study: Study, finding: Finding) -> Remedy | None:
    """Put a `tightrope.nn.Standardize` that takes NaN and infinity as missing before the weight that reads the data."""
    units = study.measurement.units
    inputs = [v.id for v in study.tape.values.values() if v.kind is Kind.INPUT and v.id in units]
    missing = {number for number in inputs if units[number].nonfinite}
    reader = next((e for e in study.tape.entries if missing.intersection(e.inputs) and e.op not in LOSSES), None)
    if missing and reader is None:
        return None  # targets are not made up
    if not missing:  # of another step: what is read first
        reader = next((e for e in study.tape.entries if set(inputs).intersection(e.inputs)), None)
    return _remedy(study, reader, "impute", "Standardise the input and take what is missing as the feature's mean")


@remedy("drop-missing")
def drop_missing(study: Study, finding: Finding) -> Remedy | None:
    """Leave out the samples whose target is missing."""
    patch = "keep = torch.isfinite(target).flatten(1).all(1)\ninput, target = input[keep], target[keep]"
    cost = "samples that may be missing for a reason are lost"
    return Remedy("drop-missing", "Leave out samples with missing numbers", patch, cost, Safety.ADVICE)


def _remedy(study: Study, reader: Entry | None, name: str, title: str) -> Remedy | None:
    if reader is None:
        return None
    fill = name == "impute"
    dim = _IMAGES.get(reader.op, -1)
    options = ", ".join(["dim=1"] * (dim == 1) + ["impute=True"] * fill)
    patch = (
        f"standardize = tightrope.nn.Standardize({options}).fit(train_loader)\n"
        "model = torch.nn.Sequential(standardize, model)"
    )
    return Remedy(
        name, title, patch, "one pass over the training data; inference uses the same statistics",
        Safety.REVIEW if fill else Safety.SAFE, _attach(study, reader, dim, fill),
    )  # fmt: skip


def _attach(study: Study, reader: Entry, dim: int, fill: bool) -> Callable[[], None] | None:
    """An action that standardises what a module is given; None when no single module reads the data."""
    module = study.models.find(reader.module)
    own = {value.name for value in (study.tape.values[i] for i in reader.inputs) if value.name}
    prefix = f"{reader.module}." if reader.module else ""
    direct = any(name == f"{prefix}{leaf}" for name in own for leaf in ("weight", "weight_ih_l0"))
    if module is None or not direct:
        return None
    width = study.tape.values[reader.inputs[0]].shape[dim]

    def act() -> None:
        layer = Standardize(width, dim=dim, learn=LEARN, impute=fill)
        module.add_module("standardize", layer.train(module.training))
        module.register_forward_pre_hook(_before)

    return act


def _before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    layer = module.get_submodule("standardize")
    assert isinstance(layer, Standardize)
    if not layer.fitted:  # evaluated before it was trained: learn the statistics from what there is
        layer.update(args[0])
    return (layer(args[0]), *args[1:])


__all__ = ["drop_missing", "impute", "standardize"]
