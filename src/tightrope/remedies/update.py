"""Remedies at the update: gradients that arrive and are cleared, rates, decay, clipping, loss scale."""

from __future__ import annotations

import gc
import math
import statistics
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from tightrope.checks.optim.l2_in_adam import is_coupled
from tightrope.checks.optim.parameter_not_optimised import left_out, root_of
from tightrope.checks.optim.progress import ratios
from tightrope.finding import Finding, Remedy, Safety, Severity
from tightrope.remedies.registry import remedy
from tightrope.study import Study

TARGET = 2e-2
"""Update over weight after `scale-learning-rate`, in the first steps: that of Adam at its default rate of 1e-3 in fresh
layers of 130 inputs."""


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
    title = "Clear the gradients in every step"
    return Remedy("clear-gradients", title, patch, "none", Safety.SAFE, act, whole=True, anytime=True)


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
    cost = "state of the optimizer grows with them"
    return Remedy("optimise-parameters", title, patch, cost, safety, action, anytime=True)


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
    lost = finding.check == "learning-rate-too-high"  # the weights that such updates leave are not worth keeping
    stepped = [group for group in updates.groups if group.steps]
    if lost:  # training starts again: what counts is the first update
        ratio = next(iter(ratios(updates, study.history)), ratio)
    momentum = max((group.number("momentum") for group in stepped if group.kind == "SGD"), default=0.0)
    target = TARGET * (1 - momentum)  # momentum adds up 1 / (1 - momentum) of what the first update shows
    factor = target / ratio
    rates = sorted({group.number("lr") for group in stepped})

    def act() -> None:
        for optimizer in {id(g.live): g.live for g in stepped if g.live is not None}.values():
            _scale_rates(optimizer, factor)

    safety = Safety.REVIEW if finding.severity is Severity.ADVICE else Safety.SAFE
    listed = ", ".join(f"{rate * factor:.2g} in place of {rate:.3g}" for rate in rates[-3:])
    patch = f"lr={listed}"
    title = f"Scale the learning rate by {factor:.2g}: updates of {target:.3g} of the weights"
    return Remedy("scale-learning-rate", title, patch, "none", safety, act, whole=True, anytime=True, restart=lost)


def _scale_rates(optimizer: Optimizer, factor: float) -> None:
    """Scale the rates of an optimizer and of the schedules that set them."""
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr", "max_lr", "min_lr"):
            if name in group:
                group[name] = group[name] * factor
    for found in gc.get_objects():
        if issubclass(type(found), LRScheduler) and getattr(found, "optimizer", None) is optimizer:
            found.base_lrs = [rate * factor for rate in found.base_lrs]


@remedy("keep-gradient")
def keep_gradient(study: Study, finding: Finding) -> Remedy | None:
    """Say what to write in the place of the call that ends the gradient."""
    entry = next((e for e in study.tape.entries if e.index == finding.index), None)
    op = entry.op if entry is not None else ""
    title, patch, cost = "Hand the tensor itself on", f"delete the {op}", "none"
    if entry is not None and not entry.grad:
        title, patch = "Compute it outside torch.no_grad()", "delete the `with torch.no_grad():`"
    elif op in ("tensor", "as_tensor", "from_numpy", "asarray", "new_tensor"):
        patch = "hand the tensor on as it is: no .tolist(), .numpy(), .item() and torch.tensor(...) between layers"
    elif op != "detach" and op != "data":
        title = "Replace the decision by a differentiable one"
        patch = "choice = torch.nn.functional.gumbel_softmax(scores, hard=True)  # then choice @ table.weight"
        cost = "a biased gradient; the score function is unbiased and noisier"
    return Remedy("keep-gradient", title, patch, cost, Safety.REVIEW)


@remedy("use-or-delete")
def use_or_delete(study: Study, finding: Finding) -> Remedy | None:
    """Say that a module is to be called or to go."""
    patch = f"call {finding.modules[0]} in forward, or delete it"
    return Remedy("use-or-delete", "Use the module, or delete it", patch, "none", Safety.ADVICE)


@remedy("unfreeze")
def unfreeze(study: Study, finding: Finding) -> Remedy | None:
    """Let the frozen modules learn: in memory together with the rest of their model."""
    updates = study.updates
    if updates is None:
        return None
    rows = [row for row in updates.rows if row.module in finding.modules and not row.trained and row.live is not None]
    chosen = next((g.live for row in updates.rows if row.gradient for g in row.groups), None)

    def act() -> None:
        for row in rows:
            assert row.live is not None
            row.live.requires_grad_()
        if chosen is not None and any(not row.groups for row in rows):
            chosen.add_param_group({"params": [row.live for row in rows if not row.groups]})

    action = act if rows and chosen is not None else None
    patch = (
        f"{finding.modules[0] or 'model'}.requires_grad_()  # before the optimizer is built; or load trained weights"
    )
    safety = Safety.SAFE if action else Safety.REVIEW
    title = "Let the frozen weights learn"
    return Remedy("unfreeze", title, patch, "a longer backward pass", safety, action, anytime=True)


@remedy("unscale-first")
def unscale_first(study: Study, finding: Finding) -> Remedy | None:
    """Say where the gradients are to be divided by the loss scale, or how the scale is to be set."""
    scaler = "scaler = torch.amp.GradScaler(device)  # dynamic, from 65536"
    if finding.index >= 0:
        patch = f"{scaler}\nscaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()"
        return Remedy("unscale-first", "Scale the loss while gradients are float16", patch, "none", Safety.REVIEW)
    if finding.module:
        return Remedy("unscale-first", "Let the scale adapt itself", scaler, "none", Safety.REVIEW)
    patch = "scaler.unscale_(optimizer)  # before clip_grad_norm_"
    return Remedy("unscale-first", "Divide by the loss scale before clipping", patch, "none", Safety.REVIEW)


@remedy("relax-clipping")
def relax_clipping(study: Study, finding: Finding) -> Remedy | None:
    """Name the norm at which clipping acts on rare gradients alone."""
    clips = study.updates.clips if study.updates is not None else None
    if clips is None:
        return None
    usual = clips.limit * statistics.median(clips.ratios)
    patch = f"torch.nn.utils.clip_grad_norm_(parameters, {2 * usual:.2g})  # twice the usual norm, {usual:.2g}"
    return Remedy("relax-clipping", "Clip above the usual norm", patch, "review the learning rate", Safety.REVIEW)


@remedy("decouple-decay")
def decouple_decay(study: Study, finding: Finding) -> Remedy | None:
    """Take the decay out of the gradient that Adam divides."""
    updates = study.updates
    if updates is None:
        return None
    groups = [group for group in updates.groups if is_coupled(group) and "decoupled_weight_decay" in group.settings]

    def act() -> None:
        for group in groups:
            if group.live is not None:
                group.live.param_groups[group.index]["decoupled_weight_decay"] = True

    action = act if groups else None
    patch = "torch.optim.AdamW(...)  # in the place of Adam"
    safety = Safety.SAFE if action else Safety.REVIEW
    title = "Decouple the decay from the gradient"
    return Remedy("decouple-decay", title, patch, "review the decay", safety, action, whole=True, anytime=True)


@remedy("decay-weights-alone")
def decay_weights_alone(study: Study, finding: Finding) -> Remedy | None:
    """Keep decay from gains and biases; in memory they go to a group of their own."""
    decay = max((group.number("weight_decay") for group in study.updates.groups), default=0.0) if study.updates else 0.0
    patch = f"tightrope.param_groups(model, weight_decay={decay:.3g})  # in the place of model.parameters()"
    lives = {id(g.live): g.live for g in study.updates.groups if g.live is not None} if study.updates else {}

    def act() -> None:
        for optimizer in lives.values():
            _spare_vectors(optimizer)

    worth = bool(lives) and finding.severity is not Severity.ADVICE
    title, safety = "Decay the weights alone", Safety.SAFE if worth else Safety.REVIEW
    return Remedy("decay-weights-alone", title, patch, "none", safety, act if worth else None, whole=True, anytime=True)


def _spare_vectors(optimizer: Optimizer) -> None:
    """Move what has one dimension from each group that decays to one that does not and is else the same."""
    for group in list(optimizer.param_groups):
        vectors = [p for p in group["params"] if p.ndim < 2]
        if group.get("weight_decay") and vectors:
            group["params"] = [p for p in group["params"] if p.ndim > 1]
            optimizer.add_param_group({**group, "params": vectors, "weight_decay": 0.0})


__all__ = [
    "decay_weights_alone",
    "decouple_decay",
    "relax_clipping",
    "unscale_first",
    "keep_gradient",
    "unfreeze",
    "use_or_delete",
    "clear_gradients",
    "optimise_parameters",
    "scale_learning_rate",
]
