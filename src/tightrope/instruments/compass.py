"""The validation compass: in which direction a hyperparameter lowers the validation loss, without training again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.instruments.heading import Compass, Heading
from tightrope.instruments.hessian import modes, twice_differentiable
from tightrope.instruments.hypergradient import Survey
from tightrope.instruments.objective import (
    ASKED,
    DECAY,
    DROPOUT,
    RATES,
    SMOOTHING,
    STRENGTH,
    Loss,
    Masks,
    Task,
    Values,
    gathered,
    guarded,
    smoothed,
    training,
)
from tightrope.isolation import force_eager, preserved, undisturbed


def compass(
    model: nn.Module,
    *,
    train: Any,
    val: Any,
    hyperparameters: Mapping[str, float],
    loss: Loss | None = None,
    criterion: Loss | None = None,
    augment: Callable[[Any, float], Any] | None = None,
    penalty: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None,
    decayed: Iterable[Tensor] | None = None,
    draws: int = 16,
    damping: float = 0.0,
    tolerance: float | None = None,
    products: int = 500,
    seed: int = 0,
) -> Compass:
    """The derivative of the validation loss in each hyperparameter, as the weights follow the training minimum.

    At a minimum w of the training objective F(w, h), dw/dh = -H⁻¹ ∂²F/∂w∂h with H its Hessian, so that

        dE_val/dh = -∇E_val' H⁻¹ ∂²F/∂w∂h

    needs no training. Below 0 is the overfitting side of the U-curve of a regulariser, above 0 the underfitting side,
    and 0 its best. Both H⁻¹∇E_val and H⁻¹∂²F are solved for: the error of the value is then the product of their
    residuals, and what each validation sample and each mask adds to it is known.

    Args:
        model: trained, to near a minimum; nothing is changed.
        train: the batch `(inputs, target)` that it was trained on, or a loader, of which all batches are held.
        val: the same for validation.
        hyperparameters: present values by name. "weight_decay": the coefficient of |w|²/2, as SGD's (not decoupled);
            "dropout": the rate of all dropout modules that have this rate; "label_smoothing": as cross-entropy's;
            "augmentation": the strength that `augment` takes; any other name: one of `penalty`.
        loss: None for a model that returns its loss. A mean over samples.
        criterion: the validation loss, where it is another one; without label smoothing if that is a hyperparameter.
        augment: `augment(inputs, strength)`, may draw from torch's random numbers.
        penalty: `penalty(model, values)`: a term of the objective, differentiable in `values`, which are tensors.
        decayed: the parameters that weight decay acts on; all trainable ones by default.
        draws: masks and augmentations under fixed seeds that expectations are taken over.
        damping: added to the Hessian's diagonal; raised where negative curvature is met.
        tolerance: relative residual to reach; 1e-10 in double precision, 1e-4 in single.
        products: budget of products for each linear system.
        seed: of the draws.

    Raises:
        InputError: model, batch, loss, name or value is no such thing, or something is not finite.
        RecordError: the model raised, or an operation has no second derivative.

    References:
        Larsen et al. (1996), Design and regularization of neural networks: the optimal use of a validation set, IEEE
        NNSP; Bengio (2000), Gradient-based optimization of hyperparameters, Neural Computation 12; Pedregosa (2016),
        Hyperparameter optimization with approximate gradient, ICML; Lorraine, Vicol, Duvenaud (2020), Optimizing
        millions of hyperparameters by implicit differentiation, AISTATS.
    """
    values = {name: float(value) for name, value in hyperparameters.items()}
    _refuse(values, loss, augment, penalty, draws, products)
    batches, shares = gathered(train, "train")
    if not isinstance(model, nn.Module):
        raise InputError(ASKED, f"the model is of type {type(model).__name__}", "Pass the model itself")
    task = Task(
        model, batches, shares, loss, augment, penalty,
        tuple(model.parameters() if decayed is None else decayed), _masked(model, values), (seed,),
    )  # fmt: skip
    against = criterion if criterion is not None else loss
    if criterion is None and loss is not None and SMOOTHING in values:
        against = smoothed(loss, 0.0)
    held = gathered(val, "val")
    with (
        undisturbed(), preserved(model), torch.enable_grad(), force_eager(), twice_differentiable(), guarded(),
        training(model),
    ):  # fmt: skip
        if _noisy(task, values):
            task = replace(task, seeds=tuple(seed + 100_003 * k for k in range(draws)))
        return Survey(task, held, against, tolerance, products, damping).read(values, modes(model))


def _refuse(values: Values, loss: Any, augment: Any, penalty: Any, draws: int, products: int) -> None:
    if not values:
        raise InputError(
            ASKED, "no hyperparameter was named", 'Pass for example hyperparameters={"weight_decay": 1e-3}'
        )
    for name, value in values.items():
        if not math.isfinite(value) or value < 0 or (name in RATES and value >= 1):
            raise InputError(
                ASKED, f"{name} is {value}", "Pass a rate in [0, 1)" if name in RATES else "Pass 0 or more"
            )
        if name not in (DECAY, DROPOUT, SMOOTHING, STRENGTH) and penalty is None:
            known = ", ".join((DECAY, DROPOUT, SMOOTHING, STRENGTH))
            raise InputError(ASKED, f"{name} is none of {known}", "Pass penalty=, the term of the loss that holds it")
    if STRENGTH in values and augment is None:
        raise InputError(
            ASKED, "augmentation is asked for without a way to do it", "Pass augment=, of inputs, strength"
        )
    if augment is not None and STRENGTH not in values:
        raise InputError(ASKED, "augment was passed without its strength", f'Name "{STRENGTH}" among hyperparameters')
    if SMOOTHING in values and loss is None:
        raise InputError(ASKED, "label smoothing is asked for without a loss", "Pass loss=F.cross_entropy")
    for name, count in (("draws", draws), ("products", products)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise InputError(ASKED, f"{name} is {count!r}", "Pass a whole number of 2 or more")


def _masked(model: nn.Module, values: Values) -> tuple[Masks, ...]:
    if DROPOUT not in values:
        return ()
    every = [m for m in model.modules() if isinstance(m, Masks)]
    found = tuple(m for m in every if m.p == values[DROPOUT])
    if not found:
        there = ", ".join(sorted({f"{m.p:g}" for m in every})) or "none"
        raise InputError(
            ASKED, f"no dropout module has the rate {values[DROPOUT]:g}; there is {there}", "Pass that one"
        )
    return found


def _noisy(task: Task, values: Values) -> bool:
    """Whether the training loss depends on the random state."""
    if DROPOUT in values:
        return True
    with torch.no_grad(), preserved(task.model):
        return _plain(task, values, 1) != _plain(task, values, 2)


def _plain(task: Task, values: Values, seed: int) -> float:
    with torch.enable_grad():  # a loss without a gradient is refused
        return float(task.value(0, seed, values).detach())


__all__ = ["Compass", "Heading", "compass"]
