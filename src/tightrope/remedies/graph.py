"""Remedies of the graph: activations and normalisers that are missing, misplaced or without effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.edit import call, rewrite_call
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@remedy("add-activation")
def add_activation(study: Study, finding: Finding) -> Remedy | None:
    """Put a rectifier behind each hidden layer; in memory it acts on what the layer returns."""
    return Remedy(
        "add-activation", "Put an activation behind each hidden layer", "torch.nn.ReLU()  # between two layers",
        "none: what one matrix can do, the net still can", Safety.SAFE, _rectify(study, finding.modules[:-1]),
    )  # fmt: skip


def _rectify(study: Study, paths: tuple[str, ...]) -> Callable[[], None] | None:
    """An action that rectifies the results of hidden layers; None when one of them is no module of its own."""
    found = [study.models.find(path) for path in paths]
    layers = [module for module in found if isinstance(module, _LAYERS)]
    if not layers or len(layers) < len(found):
        return None

    def act() -> None:
        for layer in layers:
            layer.register_forward_hook(_relu)

    return act


def _relu(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return nn.functional.relu(output)


@remedy("norm-axis")
def norm_axis(study: Study, finding: Finding) -> Remedy | None:
    """Name the layout, or the dimension, that the normaliser is to read."""
    entry = next((e for e in study.tape.entries if e.index == finding.index), None)
    if entry is None:
        return None
    shape = study.tape.values[entry.inputs[0]].shape
    if entry.op in ("batch_norm", "instance_norm", "group_norm"):
        width = shape[-1]
        patch = f"torch.nn.BatchNorm1d({width})  # on x.transpose(1, -1), turned back behind it"
        title = "Hand the normaliser its channels in dimension 1"
    elif entry.op == "layer_norm":
        title, patch = "Leave the batch out of the normalised shape", f"torch.nn.LayerNorm({list(shape[1:])})"
    else:
        title, patch = "Take mean and spread over the channels", "x.mean(-1, keepdim=True), x.var(-1, keepdim=True)"
    return Remedy("norm-axis", title, patch, "weights of the normaliser are trained again", Safety.REVIEW)


@remedy("restore-gamma")
def restore_gamma(study: Study, finding: Finding) -> Remedy | None:
    """Set the gains of a normaliser to 1."""
    module = study.models.find(finding.module)
    gain = getattr(module, "weight", None)

    def act() -> None:
        assert isinstance(gain, nn.Parameter)
        with torch.no_grad():
            gain.fill_(1.0)

    return Remedy(
        "restore-gamma", "Set the normaliser's gains to 1", "torch.nn.init.ones_(norm.weight)", "none before training",
        Safety.SAFE, act if isinstance(gain, nn.Parameter) else None,
    )  # fmt: skip


@remedy("drop-bias")
def drop_bias(study: Study, finding: Finding) -> Remedy | None:
    """Build the layers before a normaliser without bias."""

    def rewrite(name: str, arguments: Sequence[str], keywords: dict[str, str]) -> str:
        return call(name, arguments, {**keywords, "bias": "False"})

    names = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
    edit = rewrite_call(finding.location, names, rewrite)
    cost = "weights that were saved with the bias no longer load as they are"
    return Remedy("drop-bias", "Leave the bias out", "bias=False", cost, Safety.REVIEW, edit=edit)


@remedy("swap-norm")
def swap_norm(study: Study, finding: Finding) -> Remedy | None:
    """Put the normaliser before the activation."""
    patch = "torch.nn.Sequential(layer, norm, activation)"
    return Remedy(
        "swap-norm", "Put the normaliser before the activation", patch, "weights are trained again", Safety.ADVICE
    )


@remedy("open-skip")
def open_skip(study: Study, finding: Finding) -> Remedy | None:
    """Leave the identity path of residual blocks alone."""
    return Remedy(
        "open-skip", "Add the branch to the input itself", "x = x + branch(activation(norm(x)))",
        "weights are trained again", Safety.REVIEW,
    )  # fmt: skip


__all__ = ["add_activation", "drop_bias", "norm_axis", "open_skip", "restore_gamma", "swap_norm"]
