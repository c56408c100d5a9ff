"""Laws over sites: when a map is needed, and what stands for it when it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tightrope.roles import Role
from tightrope.rules.registry import Call
from tightrope.rules.state import State
from tightrope.tape.tape import Entry

_NORMS = frozenset({"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"})
_MOVES = frozenset(
    {"cat", "permute", "transpose", "view", "reshape", "flatten", "contiguous", "to", "movedim", "float"}
)


def collapsed(state: State, sites: Sequence[int]) -> State:
    """The law averaged over some dimensions of sites: what the mean spreads over them counts as `site`.

    Deviations from the average over n sites sum to zero, so that two of them are correlated by -1 / (n - 1).
    """
    over = [d for d in sites if any(f.shape[d] > 1 for f in state.fields)]
    if not over:
        return state
    mean = state.mean.mean(over, keepdim=True)
    spread = (state.mean - mean).square().mean(over, keepdim=True)
    flat = state.map(lambda f: f.mean(over, keepdim=True))
    pair = spread / max(math.prod(state.shape[d] for d in over) - 1, 1)
    return replace(flat, mean=mean, constant=flat.constant - pair, site=flat.site + spread + pair, lags=state.lags)


def site_dims(state: State) -> list[int]:
    """Dimensions that hold sites and no channels."""
    return [d for d in state.dims(Role.SITE) if d not in state.dims(Role.CHANNEL)]


def divided_out(call: Call) -> bool:
    """Whether every reader of the result normalises it, so that its unevenness over sites hardly matters."""
    return all(_normalised(call, reader) for number in call.entry.outputs for reader in call.readers(number))


def _normalised(call: Call, reader: Entry) -> bool:
    if reader.op == "batch_norm":
        return bool(reader.argument(5, "training", False))
    if reader.op in _NORMS:
        return True
    if reader.op in _MOVES:
        return all(_normalised(call, later) for number in reader.outputs for later in call.readers(number))
    return False


def settled(state: State) -> State:
    """A tensor without sites has no part that differs between them: its spread is the sample's, or constant."""
    if any(axis.role is Role.SITE and axis.size > 1 for dim in state.axes.dims for axis in dim):
        return state
    return replace(
        state, constant=state.constant + state.site, site=state.site * 0, sample=state.sample + state.residual,
        residual=state.residual * 0,
    )  # fmt: skip
