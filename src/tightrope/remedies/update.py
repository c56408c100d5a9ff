"""Remedies at the update: `clear-gradients`, `optimise-parameters`, `scale-learning-rate`."""

from __future__ import annotations

import gc
import math
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from tightrope.checks.optim.parameter_not_optimised import left_out, root_of
from tightrope.finding import Finding, Remedy, Safety
from tightrope.remedies.registry import remedy
from tightrope.study import Study

TARGET = 3e-3
"""Update over weight after `scale-learning-rate`: the middle, on a log scale, of the 1e-3 to 1e-2 of usual training."""


@remedy("clear-gradients")
def clear_gradients(study: Study, finding: Finding) -> Remedy | None:
    """Clear the gradients before each backward pass; in memory, after each update."""
    if study.updates is None:
        return None
    held = {group.live for left in study.updates.leftovers for group in [left.group] if group.live is not None}

    def act() -> None:
        for optimizer in held:
            optimizer.register_step_post_hook(_clear)
            optimizer.zero_grad(set_to_none=False)

    patch = "optimizer.zero_grad()  # before loss.backward()"
    return Remedy("clear-gradients", "Clear the gradients in every step", patch, "none", Safety.SAFE, act)


def _clear(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    optimizer.zero_grad(set_to_none=False)


@remedy("optimise-parameters")
def optimise_parameters(study: Study, finding: Finding) -> Remedy | None:
    """Hand parameters that are left out to the optimizer that holds the rest of their model, or to the only one."""
    updates = study.updates
    if updates is None or finding.evidence[0].quantity == "updates by the optimizer":
        patch = "optimizer.step()  # for every optimizer, after its backward pass"
        return Remedy("optimise-parameters", "Step the optimizer", patch, "none", Safety.REVIEW)
    rows = [row for row in updates.rows if left_out(row, updates) and row.module in finding.modules]
    owner = root_of(study, rows[0]) if rows else ""
    near = {g.optimizer: g.live for r in updates.rows if root_of(study, r) == owner for g in r.groups if r.registered}
    every = {group.optimizer: group.live for group in updates.groups}
    chosen = next(iter((near or every).values()), None)
    sure = bool(near) or len(every) == 1
    listed = not any(row.registered for row in rows)

    def act() -> None:
        assert chosen is not None
        present = {id(p) for group in chosen.param_groups for p in group["params"]}
        new = [row.live for row in rows if row.live is not None and id(row.live) not in present]
        if new:
            chosen.add_param_group({"params": new})

    patch = "optimizer.add_param_group({'params': module.parameters()})  # or build the optimizer from all parameters"
    title = "Hand the parameters to the optimizer"
    if listed:
        title, patch = "Keep the modules in an nn.ModuleList", "self.layers = torch.nn.ModuleList(layers)"
    elif updates.foreign:
        title, patch = (
            "Build the optimizer after the module was replaced",
            "model.head = new_head  # then the optimizer",
        )
    action = act if rows and sure and chosen is not None else None
    safety = Safety.SAFE if action else Safety.REVIEW
    return Remedy("optimise-parameters", title, patch, "state of the optimizer grows with them", safety, action)


@remedy("scale-learning-rate")
def scale_learning_rate(study: Study, finding: Finding) -> Remedy | None:
    """Bring the updates to a usual size; schedules keep their form."""
    updates = study.updates
    quantity = "rms of the update over that of the weights"
    ratio = next((item.measured for item in finding.evidence if item.quantity.startswith(quantity)), None)
    if updates is None or ratio is None:
        patch = "scheduler.step()  # once an epoch, or a schedule over all steps"
        return Remedy("scale-learning-rate", "Step the schedule once an epoch", patch, "none", Safety.REVIEW)
    if not 0 < ratio < math.inf:
        return None
    factor = TARGET / ratio
    rates = sorted({group.number("lr") for group in updates.groups if group.steps})

    def act() -> None:
        for optimizer in {id(g.live): g.live for g in updates.groups if g.live is not None and g.steps}.values():
            _scale_rates(optimizer, factor)

    listed = ", ".join(f"{rate * factor:.2g} in place of {rate:.3g}" for rate in rates[-3:])
    patch = f"lr={listed}"
    title = f"Scale the learning rate by {factor:.2g}: updates of {TARGET:.3g} of the weights"
    return Remedy("scale-learning-rate", title, patch, "none", Safety.SAFE, act)


def _scale_rates(optimizer: Optimizer, factor: float) -> None:
    """Scale the rates of an optimizer and of the schedules that set them."""
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr", "max_lr", "min_lr"):
            if name in group:
                group[name] = group[name] * factor
    for found in gc.get_objects():
        if issubclass(type(found), LRScheduler) and getattr(found, "optimizer", None) is optimizer:
            found.base_lrs = [rate * factor for rate in found.base_lrs]


__all__ = ["clear_gradients", "optimise_parameters", "scale_learning_rate"]
