"""How predictions of classes and their labels are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from tightrope.errors import InputError

SUM = 1e-3
"""How far probabilities may be from summing to one, or as far as the rounding of their dtype leaves them."""
IGNORE = -100
"""Label of what has none, as in torch's losses."""

Reading = Literal["logits", "probabilities"]


def output_tensor(output: Any, asked: str) -> Tensor:
    """The tensor of an output: itself, or what it calls its logits, or the first of several."""
    if isinstance(output, Mapping):
        output = output["logits"] if "logits" in output else next(iter(output.values()), None)
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise InputError(asked, f"a model returns {type(output).__name__}", "Pass models that return a tensor")
    return output


def slack(x: Any) -> float:
    """How far probabilities of this dtype may be from summing to one."""
    return max(SUM, torch.finfo(x.dtype).eps) if isinstance(x, Tensor) and x.is_floating_point() else SUM


def log_probabilities(x: Tensor, head: Reading, asked: str, near: float = SUM) -> Tensor:
    """Logarithms of probabilities over the last dimension, float64; minus infinity for a probability of 0.

    Args:
        x: probabilities or logits.
        head: which of them.
        asked: words for errors.
        near: how far sums may be from one; see `slack`.

    Raises:
        InputError: something is not finite, or the probabilities are none.
    """
    if bool(x.isnan().any()) or bool((x == math.inf).any()):
        raise InputError(asked, "predictions hold NaN or infinity", "Look for where they come from")
    if head == "logits":
        return x.double().log_softmax(-1)
    least, off = float(x.min()), float((x.double().sum(-1) - 1).abs().max())
    if least < 0 or off > near:
        found = f"these are no probabilities: the least is {least:.3g}, sums miss 1 by up to {off:.3g}"
        raise InputError(asked, found, 'Pass head="logits", or apply a softmax')
    x = x.double()
    return (x / x.sum(-1, keepdim=True)).log()


def labelled(predicted: Any, labels: Any, head: Reading | None, asked: str) -> tuple[Tensor, Tensor, Reading]:
    """Log probabilities (samples, classes), labels (samples,), and how the predictions were read.

    Args:
        predicted: (..., classes) or, as torch's losses have it, (N, classes, ...); one number a label is for two
            classes: logit or probability of the second.
        labels: class indices; `IGNORE` is left out.
        head: None for probabilities if all are in [0, 1], else logits.
        asked: words for errors.

    Raises:
        InputError: shapes do not fit, labels are no classes, there is none, or numbers in [0, 1] do not sum to one.
    """
    near = slack(predicted)
    x, y = torch.as_tensor(predicted).detach().cpu().double(), torch.as_tensor(labels).detach().cpu()
    if x.numel() == 0 or y.numel() == 0:
        raise InputError(asked, "there is no prediction", "Pass at least one sample")
    single = x.shape == y.shape or (x.shape == (*y.shape, 1))
    if single:
        x = x.reshape(-1, 1)
    elif x.shape[:-1] == y.shape:
        x = x.reshape(-1, x.shape[-1])
    elif x.dim() >= 2 and (x.shape[0], *x.shape[2:]) == y.shape:
        x = x.movedim(1, -1).reshape(-1, x.shape[1])
    else:
        found = f"predictions have shape {tuple(x.shape)}, labels {tuple(y.shape)}"
        raise InputError(asked, found, "Pass one class index for each row of predictions")
    y = y.reshape(-1)
    x, y = x[y != IGNORE], y[y != IGNORE]
    classes = 2 if single else x.shape[1]
    whole = not y.is_floating_point() or bool((y == y.round()).all())
    if not len(y) or not whole or not 0 <= float(y.min()) <= float(y.max()) < classes:
        found = f"labels are no indices of {classes} classes" if len(y) else "every label is ignored"
        raise InputError(asked, found, f"Pass whole numbers from 0 to {classes - 1}")
    head = head or _guess(x, single, near, asked)
    if single:
        x = torch.cat([torch.zeros_like(x), x], 1) if head == "logits" else torch.cat([1 - x, x], 1)
    return log_probabilities(x, head, asked, near), y.long(), head


def _guess(x: Tensor, single: bool, near: float, asked: str) -> Reading:
    inside = bool(((x >= 0) & (x <= 1)).all())
    if not inside:
        return "logits"
    off = 0.0 if single else float((x.sum(1) - 1).abs().max())
    if off > near:
        found = f"all predictions are in [0, 1], but sums miss 1 by up to {off:.3g}"
        raise InputError(asked, found, 'Say what they are: head="logits" or head="probabilities"')
    return "probabilities"


__all__ = ["IGNORE", "Reading", "labelled", "log_probabilities", "output_tensor", "slack"]
