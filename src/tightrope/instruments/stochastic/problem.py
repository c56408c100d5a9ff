"""An objective and a distribution, made ready to have the gradient of every single draw taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from tightrope.errors import InputError
from tightrope.instruments.stochastic.parts import ASKED, Parts, checked, leaves

ABREAST = 128
"""Draws whose direct gradients are taken together; the time of one grows with their number."""


class NotAdmittedError(Exception):
    """The distribution or the objective does not admit an estimator; the message says why."""


@dataclass(frozen=True)
class Problem:
    """The gradient of E f(z) over z ~ q(z; theta).

    Attributes:
        parts: of q.
        names: of the parameters theta.
        theta: the parameters; empty where the distribution's own arguments are meant.
        shape: of a draw.
        function: the objective of one draw.
        together: whether draws are evaluated side by side, by `torch.func.vmap`.
        temperature: of relaxations.
        direct: whether the objective depends on the parameters also directly, as an evidence bound does.
    """

    parts: Parts
    names: tuple[str, ...]
    theta: tuple[Tensor, ...]
    shape: tuple[int, ...]
    function: Callable[[Tensor], Any]
    together: bool
    temperature: float
    direct: bool = False

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What the gradient is taken of."""
        return self.theta or self.parts.tensors

    def replicate(self, count: int) -> tuple[list[Tensor], Distribution]:
        """The distribution's arguments with a copy for every draw, and the distribution of all draws."""
        own = [t.detach().expand(count, *t.shape).clone().requires_grad_() for t in self.parts.tensors]
        return own, self.parts.build(own)

    def values(self, z: Tensor) -> Tensor:
        """The objective of each draw; shape (draws,)."""
        if self.together:
            return _scalars(torch.func.vmap(self.function, randomness="different")(z), len(z))
        return torch.cat([_scalars(self.function(one), 1) for one in z])

    def gradients(self, scalar: Tensor, own: Sequence[Tensor]) -> Tensor:
        """Of a sum over draws, its gradients in the parameters, draw by draw; shape (draws, parameters), double."""
        found = torch.autograd.grad(scalar, own, allow_unused=True)
        if all(g is None for g in found):
            raise NotAdmittedError("no parameter of the distribution reaches it")
        made = [torch.zeros_like(t) if g is None else g for g, t in zip(found, own, strict=True)]
        return self.chained(made)

    def chained(self, made: Sequence[Tensor]) -> Tensor:
        """Gradients in the distribution's arguments, to those in the parameters."""
        if self.theta:
            pairs = [(t, g) for t, g in zip(self.parts.tensors, made, strict=True) if t.requires_grad]
            back = torch.autograd.grad(
                [t for t, _ in pairs], self.theta, [g for _, g in pairs], retain_graph=True, is_grads_batched=True
            )
            made = list(back)
        return torch.cat([g.reshape(len(g), -1).double() for g in made], 1)

    def explicit(self, z: Tensor) -> Tensor:
        """Gradient of the objective in the parameters with the draw held, draw by draw; 0 where there is none."""
        if not self.direct:
            return torch.zeros((), dtype=torch.float64, device=z.device)
        rows = []
        for some in z.detach().split(ABREAST):
            f = self.values(some)
            one = torch.eye(len(some), dtype=f.dtype, device=f.device)
            found = torch.autograd.grad(
                f, self.theta, one, retain_graph=True, is_grads_batched=True, allow_unused=True
            )  # fmt: skip
            made = [
                torch.zeros(len(some), p.numel(), dtype=torch.float64, device=p.device)
                if g is None else g.reshape(len(some), -1).double()
                for g, p in zip(found, self.theta, strict=True)
            ]  # fmt: skip
            rows.append(torch.cat(made, 1))
        return torch.cat(rows)

    def core(self, q: Distribution) -> Distribution:
        """The distribution without `Independent` around it."""
        while isinstance(q, Independent):
            q = q.base_dist
        return q

    def density(self, q: Distribution, z: Tensor) -> Tensor:
        """Logarithm of the density of each draw; shape (draws,)."""
        return q.log_prob(z).flatten(1).sum(1) if q.batch_shape[1:] else q.log_prob(z)


def _scalars(made: Any, count: int) -> Tensor:
    if not isinstance(made, Tensor) or made.numel() != count:
        found = f"of shape {tuple(made.shape[1:])}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise InputError(ASKED, f"the objective of a draw is {found}", "Return one number for a draw")
    return made.reshape(count)


def pose(objective: Callable[[Tensor], Any], distribution: Distribution, given: Any, temperature: float) -> Problem:
    """The problem, tried on two draws.

    Raises:
        InputError: as `compare_estimators` says.
    """
    if not callable(objective):
        raise InputError(ASKED, f"the objective is a {type(objective).__name__}", "Pass a function of a draw")
    made = checked(distribution)
    theta = leaves(made, given)
    if given is not None and not theta:
        raise InputError(ASKED, "no argument of the distribution requires a gradient", "Leave parameters out")
    shape = (*distribution.batch_shape, *distribution.event_shape)
    names = tuple(theta) or made.names
    problem = Problem(made, names, tuple(theta.values()), tuple(shape), objective, True, temperature)
    with torch.no_grad():
        z = made.build([t.detach() for t in made.tensors]).sample((2,))
    if not math.prod(shape):
        raise InputError(ASKED, "a draw of the distribution is empty", "Pass a distribution of at least one value")
    try:
        values = problem.values(z)
    except InputError:
        raise
    except Exception:  # what torch.func cannot run, it may say in any way
        problem = Problem(made, names, tuple(theta.values()), tuple(shape), objective, False, temperature)
        values = problem.values(z)
    if not bool(torch.isfinite(values).all()):
        raise InputError(ASKED, "the objective of a draw is NaN or infinite", "Pass one that is finite on all draws")
    direct = False
    if values.requires_grad and theta:
        found = torch.autograd.grad(values.sum(), tuple(theta.values()), allow_unused=True, retain_graph=True)
        direct = any(g is not None for g in found)
    return replace(problem, direct=direct)


__all__ = ["NotAdmittedError", "Problem", "pose"]
