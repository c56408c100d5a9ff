"""Measure-valued gradients, and the exact gradient by enumeration of a discrete distribution's values."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Exponential, Normal, OneHotCategorical, Poisson

from tightrope.instruments.stochastic.problem import NotAdmittedError, Problem

EVALUATIONS = 512
"""Objectives a draw above which the estimator is not tried."""
STATES = 4096
"""Joint values up to which a discrete distribution is enumerated."""


def measure_valued(problem: Problem, count: int) -> Tensor:
    """c (f(z+) - f(z-)) for each coordinate, since dq = c (q+ - q-), with z+ and z- drawn together.

    References:
        Mohamed, Rosca, Figurnov, Mnih (2020), Monte Carlo gradient estimation in machine learning, JMLR 21, for the
        decompositions; Heidergott, Vazquez-Abad, Pflug, Farenhorst-Yuan (2010), Gradient estimation for discrete-event
        systems by measure-valued differentiation, ACM TOMACS 20, for the coupled Gaussian ones.
    """
    own, q = problem.replicate(count)
    core = problem.core(q)
    if isinstance(core, (Bernoulli, Categorical, OneHotCategorical)):
        surrogate = _states(problem, q, core)
    elif type(core) is Normal:
        surrogate = _normal(problem, core)
    elif type(core) is Poisson:
        surrogate = _shifted(problem, core.sample(), None, core.rate)
    elif type(core) is Exponential:
        surrogate = _shifted(problem, core.sample(), core.sample(), core.rate)
    else:
        raise NotAdmittedError(f"no decomposition of the derivative of {type(core).__name__} is known")
    made = problem.gradients(surrogate, own)
    if not problem.direct:
        return made
    with torch.no_grad():
        z = q.sample()
    return made + problem.explicit(z)


def _replaced(problem: Problem, z: Tensor, new: Tensor) -> Tensor:
    """Objective with one coordinate of a draw at a time replaced.

    Args:
        problem: the objective.
        z: draws, shape (draws, coordinates).
        new: what takes a coordinate's place, shape (kinds, draws, coordinates).

    Returns:
        Shape (kinds, draws, coordinates).
    """
    kinds, draws, places = new.shape
    if kinds * places > EVALUATIONS:
        raise NotAdmittedError(f"it takes {kinds * places} objectives a draw")
    here = torch.eye(places, dtype=torch.bool, device=z.device)
    made = torch.where(here, new.unsqueeze(-1), z.unsqueeze(1))
    with torch.no_grad():
        f = problem.values(made.reshape(kinds * draws * places, *problem.shape))
    return f.reshape(kinds, draws, places)


def _rows(x: Tensor) -> Tensor:
    """The coordinates of a draw in a row; shape (draws, coordinates)."""
    return x.reshape(len(x), -1)


def _normal(problem: Problem, core: Normal) -> Tensor:
    loc, scale = _rows(core.loc), _rows(core.scale)
    with torch.no_grad():
        z = _rows(core.sample())
        rayleigh = (-2 * torch.rand_like(z).clamp(min=1e-30).log()).sqrt()
        maxwell = torch.randn(3, *z.shape, dtype=z.dtype, device=z.device).norm(dim=0)
        maxwell = maxwell * (torch.randint(2, z.shape, device=z.device) * 2 - 1)
        steps = torch.stack([rayleigh, -rayleigh, maxwell, maxwell * torch.rand_like(z)])
        up, down, wide, narrow = _replaced(problem, z, loc + scale * steps)
        of_loc = (up - down) / (scale * math.sqrt(2 * math.pi))
        of_scale = (wide - narrow) / scale
    made: Tensor = loc * of_loc + scale * of_scale
    return made.sum()


def _shifted(problem: Problem, z: Tensor, more: Tensor | None, rate: Tensor) -> Tensor:
    """d E f = E f(z + 1) - f(z) for Poisson, (f(z) - f(z + z')) / rate for exponential variables."""
    z = _rows(z)
    step = torch.ones_like(z) if more is None else _rows(more)
    up = _replaced(problem, z, (z + step)[None])[0]
    with torch.no_grad():
        f = problem.values(z.reshape(-1, *problem.shape))[:, None]
    rate = _rows(rate)
    made: Tensor = rate * (up - f) if more is None else rate / rate.detach() * (f - up)
    return made.sum()


def _states(problem: Problem, q: Distribution, core: Distribution) -> Tensor:
    """sum_k p_k f(z with value k in one place), place by place: the other places stay drawn."""
    z = q.sample()
    count = len(z)
    values, probs = _support(core)
    places = probs[0, ..., 0].numel()
    width = values.shape[1]
    if places * len(values) > EVALUATIONS:
        raise NotAdmittedError(f"it takes {places * len(values)} objectives a draw")
    flat = z.reshape(count, 1, 1, places, width)
    here = torch.eye(places, dtype=torch.bool, device=z.device).reshape(1, 1, places, places, 1)
    made = torch.where(here, values.to(z).reshape(1, -1, 1, 1, width), flat)
    with torch.no_grad():
        f = problem.values(made.reshape(-1, *problem.shape)).reshape(count, len(values), places)
    return (probs.reshape(count, places, -1).transpose(1, 2) * f).sum()


def _support(core: Distribution) -> tuple[Tensor, Tensor]:
    """Values of one coordinate, shape (values, width), and their probabilities, shape (..., values)."""
    if isinstance(core, Bernoulli):
        p = core.probs
        return torch.tensor([[0.0], [1.0]], device=p.device), torch.stack([1 - p, p], -1)
    assert isinstance(core, (Categorical, OneHotCategorical))
    kinds, p = core.probs.shape[-1], core.probs
    if isinstance(core, Categorical):
        return torch.arange(kinds, device=p.device)[:, None], p
    return torch.eye(kinds, device=p.device), p


def exact(problem: Problem) -> Tensor | None:
    """The gradient itself, where all joint values can be enumerated; shape (parameters,)."""
    own, q = problem.replicate(1)
    core = problem.core(q)
    if not isinstance(core, (Bernoulli, Categorical, OneHotCategorical)):
        return None
    values, probs = _support(core)
    places = probs[0, ..., 0].numel()
    if places * math.log(len(values)) > math.log(STATES) + 1e-9:
        return None
    which = torch.cartesian_prod(*[torch.arange(len(values), device=probs.device)] * places).reshape(-1, places)
    z = values[which].reshape(len(which), *problem.shape)
    if not isinstance(core, Categorical):
        z = z.to(probs)
    with torch.no_grad():
        f = problem.values(z).double()
    chance = probs.reshape(places, -1).double()
    joint = chance[torch.arange(places, device=probs.device), which].prod(1)
    more = (joint.detach()[:, None] * problem.explicit(z)).sum(0) if problem.direct else 0.0
    return problem.gradients((joint * f).sum(), own)[0] + more


__all__ = ["exact", "measure_valued"]
