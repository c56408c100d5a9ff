"""`attention-scale` and `qk-norm`: bring attention logits to unit scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from tightrope.checks.attention.unscaled_attention import Attention, attentions
from tightrope.checks.trace import VIEWS, origin, producers
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.live import parameter
from tightrope.remedies.registry import remedy
from tightrope.study import Study
from tightrope.tape.tape import Entry, Kind, Ref

_CASTS = frozenset(("float", "half", "double", "bfloat16", "to", "type", "type_as", "cpu", "cuda"))


@remedy("attention-scale")
def attention_scale(study: Study, finding: Finding) -> Remedy | None:
    """Scale the logits; in memory the queries are scaled: the projection's result, or the rows that make them.

    (s W x) . k = s (W x . k): the function is the same, and so is its first gradient step under plain gradient descent
    on everything but the query weights.
    """
    made = producers(study.tape)
    found = next((a for a in attentions(study.tape, made) if a.entry.index == finding.index), None)
    if found is None:
        return None
    rows = study.measurement.rows.get(found.entry.outputs[0])
    if finding.check == "attention-saturation" and rows is not None:
        return Remedy(
            "attention-scale", "Bring the attention logits to unit standard deviation",
            f"query = query / {rows.logit_std:.3g}  # or draw the weights of q and k with std n_in**-0.5",
            "none: the query projection takes the factor in memory", Safety.SAFE,
            _action(study, made, found, 1 / rows.logit_std),
        )  # fmt: skip
    if rows is not None and rows.logit_std == 0:
        patch = "nn.init.xavier_uniform_(query.weight); nn.init.xavier_uniform_(key.weight)"
        return Remedy("attention-scale", "Draw the weights of q and k", patch, "none", Safety.ADVICE)
    patch = "logits = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])"
    if found.entry.op == "scaled_dot_product_attention":
        patch = "scaled_dot_product_attention(query, key, value)  # without scale=, which is 1/sqrt(d) then"
    return Remedy(
        "attention-scale", f"Scale the attention logits by 1/sqrt({found.width})", patch,
        "none: the query projection takes the factor in memory", Safety.SAFE,
        _action(study, made, found, found.width**-0.5 / found.factor),
    )  # fmt: skip


@remedy("qk-norm")
def qk_norm(study: Study, finding: Finding) -> Remedy:
    """Bound the logits whatever becomes of the weights."""
    patch = "query, key = F.rms_norm(query, query.shape[-1:]), F.rms_norm(key, key.shape[-1:])"
    cost = "two normalisations a layer; sharp attention then needs a learned gain"
    return Remedy("qk-norm", "Normalise queries and keys before their product", patch, cost, Safety.ADVICE)


def _action(study: Study, made: dict[int, Entry], found: Attention, factor: float) -> Callable[[], None] | None:
    """Multiply what makes the queries by a factor; None where that is no live projection."""
    tape = study.tape
    entry = made.get(found.source)
    if entry is None or entry.op not in ("linear", "addmm"):
        return None
    try:
        rows = query_rows(study, made, found.query, found.source)
    except (RuntimeError, TypeError, IndexError):  # a way that cannot be replayed
        return None
    sources = [tape.values[origin(made, i)] for i in entry.inputs]
    names = {value.name for value in sources if value.kind is Kind.PARAMETER}
    live = [p for p in (parameter(study, name) for name in names) if p is not None]
    if not live or len(live) != len(names):
        return None

    module = study.models.find(entry.module)
    calls = sum(other.module == entry.module for other in tape.entries)
    if isinstance(module, nn.Linear) and calls == 1 and len(rows) == tape.values[found.source].shape[-1]:
        return lambda: _scale_output(module, factor)

    def act() -> None:
        with torch.no_grad():
            for p in live:
                if p.ndim == 2 and entry.op == "addmm":
                    p[:, rows] *= factor
                else:
                    p[rows] *= factor

    return act


def _scale_output(module: nn.Module, factor: float) -> None:
    """Scale what a projection returns: unlike its weights, which updates of a rate of their own would move faster."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * factor

    module.register_forward_hook(hook)


def query_rows(study: Study, made: dict[int, Entry], query: int, start: int) -> Tensor:
    """Which outputs of the projection become queries: the views between are replayed on the outputs' numbers."""
    way: list[tuple[Entry, int]] = []
    number = query
    while number != start:
        entry = made[number]
        way.append((entry, entry.outputs.index(number)))
        number = next(i for i in entry.inputs if study.tape.values[i].kind is Kind.RESULT)
    shape = study.tape.values[start].shape
    numbers = torch.arange(shape[-1], dtype=torch.float64).expand(shape)
    for entry, position in reversed(way):
        if entry.op in _CASTS or entry.op not in VIEWS:
            continue
        numbers = _replay(entry, numbers, position)
    found: Tensor = numbers.unique().long()
    return found


def _replay(entry: Entry, x: Tensor, position: int) -> Tensor:
    first = entry.inputs[0]
    arguments = (entry.args, dict(entry.kwargs))
    args, kwargs = tree_map(lambda a: x if isinstance(a, Ref) and a.id == first else a, arguments)
    tensors = [t for t in tree_flatten(entry.function(*args, **kwargs))[0] if isinstance(t, Tensor)]
    return tensors[position]


__all__ = ["attention_scale", "qk_norm"]
