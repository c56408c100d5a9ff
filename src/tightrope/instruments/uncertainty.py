"""What a prediction leaves open: noise of the data (aleatoric), and what the model does not know (epistemic)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from tightrope.errors import InputError
from tightrope.instruments.classes import log_probabilities, output_tensor, slack
from tightrope.instruments.members import as_models, ensemble, masked
from tightrope.instruments.variance import Part, Parts, of_entropy, of_moments, of_probabilities

ASKED = "take the uncertainty apart"
Head = Literal["logits", "probabilities", "mean", "variance", "log-variance", "distribution"]
HEADS: tuple[Head, ...] = ("logits", "probabilities", "mean", "variance", "log-variance", "distribution")


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The law of total variance of every prediction: total = aleatoric + epistemic.

    All parts estimate the population that the members are drawn from (the law over trainings or masks), not the finite
    mixture; every error comes from the finite number of members.

    Attributes:
        mean: prediction, the members' mean: probabilities (samples, classes), or the regression's mean.
        mean_error: its standard error.
        total, aleatoric, epistemic: variances; for classes of the one-hot label, summed over classes. `aleatoric`
            and `total` are None where the head says nothing of the noise.
        entropy: the same three in nats for classification: total entropy, expected entropy, mutual information.
        members: how many predictions there were of each sample.
        source: what they come from.
        head: how outputs were read.
        identical: whether several members agree in every bit.
    """

    mean: Tensor = field(repr=False)
    mean_error: Tensor = field(repr=False)
    total: Part | None = field(repr=False)
    aleatoric: Part | None = field(repr=False)
    epistemic: Part = field(repr=False)
    entropy: Parts | None = field(repr=False)
    members: int
    source: str
    head: Head
    identical: bool

    @property
    def predictive_variance(self) -> Tensor | None:
        """Variance of the equally weighted mixture of just these members."""
        if self.aleatoric is None:
            return None
        return self.aleatoric.value + self.epistemic.value * (self.members - 1) / self.members

    @property
    def predictive_entropy(self) -> Tensor | None:
        """Entropy of the mean probabilities of just these members, in nats."""
        return None if self.entropy is None else torch.special.entr(self.mean).sum(-1)

    @property
    def verdict(self) -> str | None:
        """What makes the numbers say less than they seem to, in a sentence."""
        if self.members == 1:
            return "One member: the epistemic part is 0 by definition, and nothing is known of it."
        if self.identical:
            return f"All {self.members} members are one: they agree in every bit, and the epistemic part is 0."
        return None

    def __str__(self) -> str:
        shape = " x ".join(str(size) for size in self.epistemic.value.shape) or "1"
        lines = [f"Uncertainty of {shape} predictions, {self.source}, average"]
        columns: list[tuple[str, tuple[Part | None, ...]]] = []
        columns += [("variance", (self.total, self.aleatoric, self.epistemic))] if self.total is not None else []
        columns += [("entropy, nats", (e.total, e.aleatoric, e.epistemic))] if (e := self.entropy) is not None else []
        if not columns:
            lines.append(f"  {'epistemic':<11} {_number(self.epistemic)}  (the head says nothing of the noise)")
        else:
            lines.append(f"  {'':<11} " + "".join(f"{name:<26}" for name, _ in columns))
            for i, name in enumerate(("total", "aleatoric", "epistemic")):
                lines.append(f"  {name:<11} " + "".join(f"{_number(parts[i]):<26}" for _, parts in columns))
        lines += [f"  {self.verdict}"] if self.verdict else []
        return "\n".join(line.rstrip() for line in lines)


def uncertainty(
    models: nn.Module | Sequence[nn.Module],
    inputs: Any,
    *,
    head: Head,
    draws: int = 64,
    noise: float | Tensor | None = None,
    seed: int = 0,
) -> Uncertainty:
    """Noise of the data and ignorance of the model, of every prediction, by the law of total variance.

    Several models are an ensemble, each in evaluation mode. A single one is drawn under dropout masks (MC-dropout):
    what draws random numbers in training mode is on, everything else, normalisers above all, is as in evaluation.
    Nothing of the models is changed.

    Args:
        models: a model, or the members of an ensemble.
        inputs: a batch, as the models take it.
        head: how an output is read. "logits" or "probabilities" of classes, in the last dimension; "mean" of a
            regression; "variance" or "log-variance": a pair (mean, that), or a tensor whose last dimension holds first
            the means, then as many of those; "distribution": a `torch.distributions` object.
        draws: of a single model.
        noise: variance of the target about its mean, for a head that is "mean".
        seed: of the masks.

    Raises:
        InputError: no model, an unknown head, or outputs that are no such thing.

    References:
        Kendall, Gal (2017), What uncertainties do we need in Bayesian deep learning for computer vision? NeurIPS;
        Lakshminarayanan, Pritzel, Blundell (2017), Simple and scalable predictive uncertainty estimation using deep
        ensembles, NeurIPS; Gal, Ghahramani (2016), Dropout as a Bayesian approximation, ICML.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise InputError(ASKED, f"draws is {draws!r}", "Pass a positive whole number")
    found = as_models(models)
    if len(found) > 1:
        return decompose(ensemble(found, inputs), head=head, noise=noise, source=f"ensemble of {len(found)} models")
    made, names = masked(found[0], inputs, draws, seed)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    what = [f"{len(made)} draws of {name or type(found[0]).__name__}{more}" for name in names[:1]]
    source = what[0] if what else "a single model without dropout"
    return decompose(made, head=head, noise=noise, source=source)


def decompose(
    outputs: Sequence[Any] | Tensor, *, head: Head, noise: float | Tensor | None = None, source: str = ""
) -> Uncertainty:
    """The same of outputs that are at hand.

    Args:
        outputs: one output for each member: a list, or a tensor whose first dimension is the members'.
        head, noise: as in `uncertainty`.
        source: words for where they come from.

    Raises:
        InputError: no output, an unknown head, or outputs that are no such thing.
    """
    if head not in HEADS:
        raise InputError(ASKED, f"head is {head!r}", f"Pass one of {', '.join(HEADS)}")
    if noise is not None and head != "mean":
        raise InputError(ASKED, f"noise is given beside a head that is {head!r}", 'Leave it out, or pass head="mean"')
    outputs = list(outputs)
    if not outputs:
        raise InputError(ASKED, "there is no output", "Pass one for each member")
    source = source or (f"{len(outputs)} members" if len(outputs) > 1 else "one member")
    if head == "distribution" and isinstance(outputs[0], Categorical):
        return _classes(_stack([o.logits for o in outputs]), source, head)
    if head in ("logits", "probabilities"):
        tensors = [output_tensor(o, ASKED) for o in outputs]
        return _classes(_stack(tensors), source, head, slack(tensors[0]))
    return _numbers(*_moments(outputs, head, noise), source, head)


def _classes(x: Tensor, source: str, head: Head, near: float = 0.0) -> Uncertainty:
    if x.dim() < 2 or x.shape[-1] < 2:
        raise InputError(
            ASKED, f"outputs have shape {tuple(x.shape[1:])}", "Pass one number for each of K >= 2 classes"
        )
    log_p = log_probabilities(x, "probabilities" if head == "probabilities" else "logits", ASKED, near)
    parts = of_probabilities(log_p)
    p = log_p.exp()
    return Uncertainty(
        p.mean(0), _error(p), parts.total, parts.aleatoric, parts.epistemic, of_entropy(log_p), len(x), source, head,
        _identical(x),
    )  # fmt: skip


def _numbers(means: Tensor, variances: Tensor | None, source: str, head: Head) -> Uncertainty:
    for name, x in (("means", means), ("variances", variances)):
        if x is not None and not bool(x.isfinite().all()):
            raise InputError(ASKED, f"predicted {name} are NaN or infinite", "Look for where they come from")
    if variances is not None and float(variances.min()) < 0:
        found = f"{int((variances < 0).sum())} of {variances.numel()} variances are negative"
        raise InputError(ASKED, found, 'Pass head="log-variance" if those are logarithms')
    parts = of_moments(means, torch.zeros_like(means) if variances is None else variances.expand_as(means))
    known = variances is not None
    return Uncertainty(
        means.mean(0), _error(means), parts.total if known else None, parts.aleatoric if known else None,
        parts.epistemic, None, len(means), source, head,
        _identical(means) and (variances is None or _identical(variances)),
    )  # fmt: skip


def _moments(outputs: list[Any], head: Head, noise: float | Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Mean and variance of each member, (members, ...)."""
    if head == "distribution":
        if not all(isinstance(o, Distribution) for o in outputs):
            found = f"a member returns {type(outputs[0]).__name__}"
            raise InputError(ASKED, found, "Pass a head that says how to read it")
        return _stack([o.mean for o in outputs]), _stack([o.variance for o in outputs])
    if head == "mean":
        means = _stack([output_tensor(o, ASKED) for o in outputs])
        return means, None if noise is None else torch.as_tensor(noise).detach().double().cpu().expand_as(means)
    pairs = [_pair(o) for o in outputs]
    means, spread = _stack([p[0] for p in pairs]), _stack([p[1] for p in pairs])
    if means.shape != spread.shape:
        found = f"means have shape {tuple(means.shape[1:])}, {head}s {tuple(spread.shape[1:])}"
        raise InputError(ASKED, found, "Return one for each mean")
    return means, spread.exp() if head == "log-variance" else spread


def _pair(output: Any) -> tuple[Tensor, Tensor]:
    values = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(values, (tuple, list)) and len(values) == 2 and all(isinstance(v, Tensor) for v in values):
        return values[0], values[1]
    if isinstance(values, Tensor) and values.dim() > 0 and values.shape[-1] % 2 == 0:
        mean, spread = values.chunk(2, -1)
        return mean, spread
    found = f"an output is {type(output).__name__}" + (
        f" of {len(values)}" if isinstance(values, (tuple, list)) else ""
    )
    raise InputError(ASKED, found, "Return a pair (mean, variance), or a tensor whose last dimension holds both")


def _stack(outputs: list[Tensor]) -> Tensor:
    if len({o.shape for o in outputs}) > 1:
        found = f"members return the shapes {', '.join(sorted({str(tuple(o.shape)) for o in outputs}))}"
        raise InputError(ASKED, found, "Pass members that predict the same")
    return torch.stack([o.detach().double().cpu() for o in outputs])


def _error(x: Tensor) -> Tensor:
    return x.std(0) / math.sqrt(len(x)) if len(x) > 1 else torch.full_like(x[0], math.inf)


def _identical(x: Tensor) -> bool:
    return len(x) > 1 and bool((x == x[0]).all())


def _number(part: Part | None) -> str:
    if part is None:
        return "unknown"
    error = "" if math.isinf(part.average_error) else f" ± {part.average_error:.1g}"
    return f"{part.average:.4g}{error}"


__all__ = ["Uncertainty", "decompose", "uncertainty"]
