"""Which parameters weight decay is meant for, as parameter groups of an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from typing import Any

from torch import nn

from tightrope.errors import InputError

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
TABLES = (nn.Embedding, nn.EmbeddingBag)
MATRICES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Modules whose weights contract, however short a dimension is."""


def param_groups(
    model: nn.Module, weight_decay: float, *, embeddings: bool = False, skip: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """The model's parameters in two groups, for any torch optimizer: weights, which decay, and all others.

    Decay bounds the scale of a weight that multiplies its input. On gains and biases it has no such meaning: it pulls
    a normaliser's output law (beta, gamma) towards zero. What decays are tensors of two or more dimensions longer
    than one, and the weights of linear, convolutional, recurrent and attention layers of any shape; not biases,
    normalisers, single vectors and scalars.

    Every parameter appears once: frozen and unused ones too, and tied ones as what decays if any of their uses does
    (the table of an embedding that is the head as well).

    Args:
        model: any module; several in a `torch.nn.ModuleList`.
        weight_decay: of the weights, 0 or more.
        embeddings: whether embedding tables decay. By default they do not: rows of tokens that do not occur would
            shrink without a gradient that holds against it.
        skip: patterns of names that must not decay, for example "*.pos_embed".

    Returns:
        dictionaries with "params" and "weight_decay"; a group without parameters is left out.

    Raises:
        InputError: the model is no module, the decay is negative, a parameter has no shape yet, or a pattern of `skip`
            matches no name.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> [(len(group["params"]), group["weight_decay"]) for group in param_groups(model, 0.1)]
        [(2, 0.1), (4, 0.0)]

    References:
        Loshchilov, Hutter (2019), Decoupled weight decay regularization, ICLR; Van Laarhoven (2017), L2 regularization
        versus batch and weight normalization; Zhang, Wang, Xu, Grosse (2019), Three mechanisms of weight decay
        regularization, ICLR.
    """
    if not isinstance(model, nn.Module):
        raise InputError("make parameter groups", f"it was given a {type(model).__name__}", "Pass the model")
    if not weight_decay >= 0:
        raise InputError("make parameter groups", f"weight_decay is {weight_decay}", "Pass 0 or a positive number")
    patterns = tuple(skip)
    found: dict[nn.Parameter, bool] = {}
    kept: set[nn.Parameter] = set()
    matched: set[str] = set()
    for name, owner, parameter in _uses(model):
        found[parameter] = found.get(parameter, False) or _decays(name, owner, parameter, embeddings)
        hits = {pattern for pattern in patterns if fnmatch(name, pattern)}
        matched |= hits
        if hits:
            kept.add(parameter)
    missed = [pattern for pattern in patterns if pattern not in matched]
    if missed:
        raise InputError("make parameter groups", f"no parameter is called {missed[0]}", "See model.named_parameters()")
    weights = [parameter for parameter, decays in found.items() if decays and parameter not in kept]
    rest = [parameter for parameter, decays in found.items() if not decays or parameter in kept]
    groups = ({"params": weights, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _uses(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Every place where a parameter is held: its name there, the module, and the parameter."""
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{path}.{leaf}" if path else leaf, module, parameter


def _decays(name: str, owner: nn.Module, parameter: nn.Parameter, embeddings: bool) -> bool:
    """Whether one use of a parameter is that of a weight."""
    if isinstance(parameter, nn.UninitializedParameter):
        raise InputError("make parameter groups", f"{name} has no shape yet", "Run the model once before")
    leaf = name.rpartition(".")[2]
    if leaf.startswith("bias") or leaf.endswith("bias") or isinstance(owner, NORMS):
        return False
    if isinstance(owner, TABLES):
        return embeddings
    if isinstance(owner, MATRICES):
        return parameter.dim() >= 2
    return sum(size > 1 for size in parameter.shape) >= 2


__all__ = ["param_groups"]
