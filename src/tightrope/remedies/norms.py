"""`group-norm`, `blended-norm`, `larger-batch`: normalise by statistics that rest on enough values."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from tightrope.checks.norm.tiny_batch_norm import ENOUGH, values
from tightrope.edit import Edit, call, rewrite_call, sibling
from tightrope.finding import Finding, Remedy, Safety, Severity
from tightrope.nn.blended_norm import BlendedNorm
from tightrope.remedies.live import replacing
from tightrope.remedies.registry import remedy
from tightrope.study import Study

BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
GROUPS = 32
"""Most groups of a group norm: the number of its paper."""
Norm = nn.modules.batchnorm._BatchNorm
Make = Callable[[nn.Module], nn.Module]


@remedy("group-norm")
def group_norm(study: Study, finding: Finding) -> Remedy | None:
    """Put group norms in the place of the batch norms; they keep the parameters, so that the optimizer has them."""
    groups = {path: number for path in finding.modules if (number := _groups(study, path)) is not None}
    if not groups:
        return None
    makes = {path: _grouped(number) for path, number in groups.items()}
    number = groups.get(finding.module, next(iter(groups.values())))
    return Remedy(
        "group-norm", f"Normalise within each sample: {_several(len(makes), 'group norm')}",
        f"torch.nn.GroupNorm({number}, channels)  # instead of BatchNorm",
        "trained running statistics are lost", _safety(study, finding, makes), _acting(study, makes),
        _edit(finding, lambda name, width: call(sibling(name, "GroupNorm"), [str(number), width], {})),
    )  # fmt: skip


@remedy("blended-norm")
def blended_norm(study: Study, finding: Finding) -> Remedy | None:
    """Put blended norms in the place of the batch norms; their gates join the optimizer that has the gains."""
    norms = [path for path in finding.modules if isinstance(study.models.find(path), Norm)]
    makes = {path: _blended(study) for path in norms}
    if not makes:
        return None
    return Remedy(
        "blended-norm", f"Mix in the statistics of each sample: {_several(len(makes), 'blended norm')}",
        "tightrope.nn.BlendedNorm(channels)  # instead of BatchNorm", "one more parameter a channel",
        _safety(study, finding, makes), _acting(study, makes),
        _edit(finding, lambda _, width: call("tightrope.nn.BlendedNorm", [width], {})),
    )  # fmt: skip


@remedy("larger-batch")
def larger_batch(study: Study, finding: Finding) -> Remedy | None:
    """Say how large a batch the statistics ask for."""
    m = round(finding.evidence[0].measured)
    samples = study.tape.samples or m
    wanted = math.ceil(samples * ENOUGH / max(m, 1))
    return Remedy(
        "larger-batch", f"Show batch norm at least {wanted} samples at a time",
        f"torch.utils.data.DataLoader(dataset, batch_size={wanted}, shuffle=True, drop_last=True)",
        "memory; accumulated gradients are no substitute, since each part is normalised by itself "
        "(torch.nn.SyncBatchNorm joins the parts that run on several devices at once)",
        Safety.ADVICE,
    )  # fmt: skip


def _several(number: int, what: str) -> str:
    return f"{number} {what}s" if number > 1 else f"a {what}"


def _groups(study: Study, path: str) -> int | None:
    """Groups of channels that hold enough values each, as many as there can be; None where even all hold too few."""
    norm = study.models.find(path)
    entry = next((e for e in study.tape.entries if e.module == path and values(study, e) is not None), None)
    if not isinstance(norm, Norm) or entry is None:
        return None
    shape = study.tape.values[entry.inputs[0]].shape
    channels, sites = shape[1], math.prod(shape[2:])
    fitting = [g for g in range(1, min(GROUPS, channels) + 1) if channels % g == 0 and channels // g * sites >= ENOUGH]
    return max(fitting, default=None)


def _grouped(groups: int) -> Make:
    def make(old: nn.Module) -> nn.Module:
        assert isinstance(old, Norm)
        new = nn.GroupNorm(groups, old.num_features, eps=old.eps, affine=old.affine)
        new.register_parameter("weight", old.weight)
        new.register_parameter("bias", old.bias)
        return new

    return make


def _blended(study: Study) -> Make:
    def make(old: nn.Module) -> nn.Module:
        new = BlendedNorm.from_batch_norm(old)
        new.register_parameter("weight", old.weight)  # type: ignore[arg-type]
        new.register_parameter("bias", old.bias)  # type: ignore[arg-type]
        for optimizer in study.optimizers.items:
            for group in optimizer.param_groups:
                if any(parameter is old.weight for parameter in group["params"]):
                    group["params"].append(new.log_pseudo)
        return new

    return make


def _safety(study: Study, finding: Finding, makes: dict[str, Make]) -> Safety:
    """Before training nothing is lost; statistics and weights that were learnt together with batch norm may be, and
    where the batch is nearly large enough batch norm may do better than what takes its place.
    """
    norms = [study.models.find(path) for path in makes]
    counts = [norm.num_batches_tracked for norm in norms if isinstance(norm, Norm)]
    fresh = all(count is None or int(count) <= 1 for count in counts)
    worth = finding.severity is not Severity.ADVICE
    return Safety.SAFE if worth and study.step <= 1 and fresh else Safety.REVIEW


def _acting(study: Study, makes: dict[str, Make]) -> Callable[[], None] | None:
    """All replacements in one; None where not every module can be replaced."""
    actions = [replacing(study, path, make) for path, make in makes.items()]
    if any(action is None for action in actions):
        return None

    def act() -> None:
        for action in actions:
            if action is not None:
                action()

    return act


def _edit(finding: Finding, write: Callable[[str, str], str]) -> Edit | None:
    """The edit of the one line where the batch norm is built; None where there are several layers."""

    def rewrite(name: str, arguments: object, keywords: dict[str, str]) -> str:
        given = list(arguments) if isinstance(arguments, (list, tuple)) else []
        width = given[0] if given else keywords.get("num_features")
        plain = len(given) + len(keywords) == 1 and width is not None
        return write(name, str(width)) if plain else call(name, given, keywords)

    return rewrite_call(finding.location, BATCH_NORMS, rewrite) if len(finding.modules) == 1 else None


__all__ = ["blended_norm", "group_norm", "larger_batch"]
