"""Estimators of the gradient of an expectation, each the gradients of single draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
)

from tightrope.errors import InputError
from tightrope.instruments.stochastic.measure_valued import measure_valued
from tightrope.instruments.stochastic.problem import NotAdmittedError, Problem


@dataclass(frozen=True)
class Way:
    """One estimator.

    Attributes:
        name: as the result lists it.
        gradients: of so many draws; shape (draws, parameters).
        unbiased: whether it is so for any objective (True), for none but special ones (False), or for those that are
            continuous (None).
    """

    name: str
    gradients: Callable[[Problem, int], Tensor]
    unbiased: bool | None


def _scores(problem: Problem, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Objective, score and direct gradient of each draw; shapes (draws,) and (draws, parameters)."""
    own, q = problem.replicate(count)
    with torch.no_grad():
        z = q.sample()
        f = problem.values(z).double()
    if _moves(q):
        raise NotAdmittedError("the support of the distribution moves with its parameters")
    try:
        log = problem.density(q, z)
    except NotImplementedError:
        raise NotAdmittedError("the distribution has no density to differentiate") from None
    return f, problem.gradients(log.sum(), own), problem.explicit(z)


def _moves(q: Distribution) -> bool:
    """Whether the support depends on what has a gradient."""
    try:
        support: Any = q.support
    except NotImplementedError:
        return False
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    return any(isinstance(held, Tensor) and held.requires_grad for held in vars(support).values())


def score(problem: Problem, count: int) -> Tensor:
    """f(z) d log q(z) (Williams 1992)."""
    f, s, more = _scores(problem, count)
    return f[:, None] * s + more


def mean_baseline(problem: Problem, count: int) -> Tensor:
    """(f(z) - mean of the other draws' f) d log q(z), unbiased since a draw is not in its own baseline."""
    f, s, more = _scores(problem, count)
    return (f - (f.sum() - f) / (count - 1))[:, None] * s + more


def best_baseline(problem: Problem, count: int) -> Tensor:
    """(f(z) - b) d log q(z), b = E f |s|^2 / E |s|^2 of least total variance, estimated on the other half of the draws.

    References:
        Greensmith, Bartlett, Baxter (2004), Variance reduction techniques for gradient estimates in reinforcement
        learning, JMLR 5.
    """
    f, s, more = _scores(problem, count)
    weight = s.square().sum(1)
    first = torch.arange(count, device=f.device) < count // 2
    b = torch.empty_like(f)
    for mine in (first, ~first):
        b[mine] = (f * weight)[~mine].sum() / weight[~mine].sum().clamp(min=1e-300)
    return (f - b)[:, None] * s + more


def pathwise(problem: Problem, count: int) -> Tensor:
    """d f(z(theta, noise)), the noise held (Kingma, Welling 2014; Rezende et al. 2014)."""
    own, q = problem.replicate(count)
    if not q.has_rsample:
        raise NotAdmittedError("draws of the distribution have no gradient (no rsample)")
    if isinstance(problem.core(q), OneHotCategoricalStraightThrough):
        raise NotAdmittedError("its rsample is the straight-through estimator, listed as such")
    return _through(problem, q.rsample(), own)


def _through(problem: Problem, z: Tensor, own: list[Tensor]) -> Tensor:
    try:
        f = problem.values(z)
    except InputError:
        raise
    except Exception as error:  # whatever an objective of whole numbers says to others
        raise NotAdmittedError(f"the objective does not take such a draw ({type(error).__name__})") from None
    if not f.requires_grad:
        raise NotAdmittedError("the objective has no gradient in the draw")
    try:
        return problem.gradients(f.sum(), own) + problem.explicit(z)
    except NotAdmittedError:
        raise NotAdmittedError("the objective has no gradient in the draw") from None


def straight_through(problem: Problem, count: int) -> Tensor:
    """d f(z) with dz replaced by the gradient of the mean of z (Bengio, Leonard, Courville 2013)."""
    own, q = problem.replicate(count)
    core = _discrete(problem, q)
    with torch.no_grad():
        hard = q.sample()
    return _through(problem, hard + (core.probs - core.probs.detach()), own)


def gumbel(problem: Problem, count: int) -> Tensor:
    """d f(y), y the relaxed draw (Jang, Gu, Poole 2017; Maddison, Mnih, Teh 2017)."""
    own, q = problem.replicate(count)
    return _through(problem, _relaxed(problem, q), own)


def straight_through_gumbel(problem: Problem, count: int) -> Tensor:
    """d f(z) with dz replaced by the gradient of the relaxed draw whose rounding z is (Jang, Gu, Poole 2017)."""
    own, q = problem.replicate(count)
    y = _relaxed(problem, q)
    hard = (y > 0.5).to(y) if isinstance(problem.core(q), Bernoulli) else F.one_hot(y.argmax(-1), y.shape[-1]).to(y)
    return _through(problem, hard.detach() + (y - y.detach()), own)


def _discrete(problem: Problem, q: Distribution) -> Bernoulli | OneHotCategorical:
    core = problem.core(q)
    if isinstance(core, Categorical):
        raise NotAdmittedError("draws are indices; those of OneHotCategorical can be relaxed")
    if not isinstance(core, (Bernoulli, OneHotCategorical)):
        raise NotAdmittedError("for draws of Bernoulli and OneHotCategorical only")
    return core


def _relaxed(problem: Problem, q: Distribution) -> Tensor:
    core = _discrete(problem, q)
    tau = core.logits.new_tensor(problem.temperature)
    kind = RelaxedBernoulli if isinstance(core, Bernoulli) else RelaxedOneHotCategorical
    made: Tensor = kind(tau, logits=core.logits, validate_args=False).rsample()
    return made


WAYS = (
    Way("score function", score, True),
    Way("score, mean baseline", mean_baseline, True),
    Way("score, optimal baseline", best_baseline, True),
    Way("pathwise", pathwise, None),
    Way("measure-valued", measure_valued, True),
    Way("straight-through", straight_through, False),
    Way("Gumbel-softmax", gumbel, False),
    Way("straight-through Gumbel", straight_through_gumbel, False),
)

__all__ = ["WAYS", "Way"]
