"""`softmax-dim`: the dimension that a softmax is to run over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from tightrope.checks.graph.wrong_softmax_axis import right_dim
from tightrope.edit import Edit, call, is_function, rewrite_call
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study

_MODULES = (nn.Softmax, nn.LogSoftmax)


@remedy("softmax-dim")
def softmax_dim(study: Study, finding: Finding) -> Remedy | None:
    """Let the softmax run over the dimension that its weights are summed over."""
    entry = next((e for e in study.tape.entries if e.index == finding.index), None)
    if entry is None:
        return None
    dim = right_dim(study.tape, entry)
    if dim is None:
        patch = f"{entry.op}(scores, dim=...)  # the dimension that is summed over"
        return Remedy("softmax-dim", "Name the dimension of the softmax", patch, "none", Safety.ADVICE)
    module = study.models.find(entry.module)
    return Remedy(
        "softmax-dim", f"Let the softmax run over dimension {dim}", f"{entry.op}(scores, dim={dim})", "none",
        Safety.SAFE if isinstance(module, _MODULES) else Safety.REVIEW, _action(module, dim),
        _edit(finding.location, entry.op, dim),
    )  # fmt: skip


def _action(module: nn.Module | None, dim: int) -> Callable[[], None] | None:
    if not isinstance(module, _MODULES):
        return None

    def act() -> None:
        module.dim = dim

    return act


def _edit(location: str, op: str, dim: int) -> Edit | None:
    """The call with its dimension replaced."""

    def rewrite(name: str, arguments: Sequence[str], keywords: dict[str, str]) -> str:
        leading = 1 if is_function(name) and not name.rpartition(".")[2][:1].isupper() else 0
        kept = {key: value for key, value in keywords.items() if key != "dim"}
        rest = list(arguments[leading + 1 :])
        return call(name, [*arguments[:leading], *rest], {"dim": str(dim), **kept})

    return rewrite_call(location, ("softmax", "log_softmax", "Softmax", "LogSoftmax"), rewrite)


__all__ = ["softmax_dim"]
