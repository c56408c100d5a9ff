"""The spectral norm of the Jacobian as a random variable over the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.instruments.estimate import LEVEL, Estimate, plain, positive, student
from tightrope.instruments.lanczos import RISK, Run
from tightrope.instruments.robustness.function import Evaluated, evaluated, gradient

ASKED = "take Jacobian norms"
WHOLE = 64
"""Outputs or inputs up to which the Gram matrix is made: no more passes than a search with its certificate takes."""
MEMORY = 2**27
"""Numbers that the Jacobians of a part of the batch, or the bases of its runs, may hold."""
ROUNDING = 16.0
"""Units in the last place of the norm that autograd may be off."""
STEPS = 300
"""Most steps of a search."""
LEVELS = (0.05, 0.5, 0.95)
SMALL = 0.01
"""Part of the distance between samples that counts as a small perturbation."""


@dataclass(frozen=True, eq=False)
class JacobianNorms:
    """The law of ||df/dx|| over the samples of a batch.

    Attributes:
        values: largest singular value of each sample's Jacobian, a lower bound of it; shape (samples,).
        errors: how far above its value the norm may lie: rounding where the whole matrix was made, else the search's
            certificate, which holds up to a probability of 1e-6 a sample.
        converged: whether each error is within `tolerance` of its value.
        mean, sd: over the data, from which these samples were drawn.
        quantiles: 5 %, 50 % and 95 %, with intervals that assume no law.
        spread: rms distance of samples, and of their outputs, from their mean.
        samples, inputs, outputs: how many there are.
        tolerance: relative error that was asked for.
        modes: how the model was found.
    """

    values: Tensor = field(repr=False)
    errors: Tensor = field(repr=False)
    converged: bool
    mean: Estimate
    sd: Estimate
    quantiles: dict[float, Estimate]
    spread: tuple[float, float]
    samples: int
    inputs: int
    outputs: int
    tolerance: float
    modes: tuple[str, ...] = ()

    @property
    def largest(self) -> float:
        """The largest of the samples; no smaller than that is any Lipschitz constant."""
        return float(self.values.max())

    @property
    def relative(self) -> Estimate:
        """The 95 % quantile in units of the outputs' over the inputs' spread: 1 for a rotation of the data."""
        before, after = self.spread
        q, unit = self.quantiles[0.95], before / after if after > 0 else math.nan
        return Estimate(q.value * unit, q.error * unit, q.low * unit, q.high * unit)

    @property
    def verdict(self) -> str | None:
        """`unstable-jacobian` where a hundredth of the distance between samples carries an output across the data.

        The lower end of the 95 % quantile's interval decides: at least one sample in twenty is that unstable.
        """
        return "unstable-jacobian" if self.relative.low > 1 / SMALL else None

    def __str__(self) -> str:
        lines = [f"Jacobian norm of {self.samples} samples, {self.outputs} outputs by {self.inputs} inputs"]
        lines += [f"  {'mean':<10} {self.mean}", f"  {'sd':<10} {self.sd}"]
        lines += [f"  {f'{level:.0%}':<10} {found}" for level, found in self.quantiles.items()]
        lines.append(f"  {'largest':<10} {self.largest:.4g}, of the samples")
        lines.append(f"  {'relative':<10} {self.relative.value:.3g} at 95 %, in spreads of outputs over inputs")
        if not self.converged:
            worst = float((self.errors / self.values).max())
            lines.append(f"  not converged: a norm may be {worst:.2g} of itself larger")
        lines += [f"  {mode}" for mode in self.modes]
        return "\n".join([*lines, *([f"  {self.verdict}"] if self.verdict else [])])


def jacobian_norms(model: nn.Module, inputs: Any, *, tolerance: float = 0.01, seed: int = 0) -> JacobianNorms:
    """The law over the data of the largest singular value of the Jacobian of outputs in inputs.

    With up to 64 outputs (or inputs) each sample's Gram matrix is made from as many backward passes over the whole
    batch, else a Lanczos search runs for all samples at once, each with its own certificate.

    Args:
        model: any module; it is looked at as it is evaluated, and left as found.
        inputs: a batch as the model takes it; the Jacobian is that in its first floating-point tensor.
        tolerance: relative error to reach in a search.
        seed: of the search's start.

    Raises:
        InputError: no floating-point input, samples that see each other, or something not finite.
        RecordError: the model raised, or an operation has no second derivative in a search.

    References:
        Novak et al. (2018), Sensitivity and generalization in neural networks, ICLR; Golub, Van Loan (2013), Matrix
        computations, chapter 10; for the certificate see `tightrope.instruments.lanczos`.
    """
    if not 0 < tolerance < 1:
        raise InputError(ASKED, f"tolerance is {tolerance!r}", "Pass a relative error between 0 and 1")
    with evaluated(model, inputs, ASKED) as function:
        function.refuse_mixing()
        with torch.no_grad():
            output = function(function.x)
        values, errors = norms(function, function.x, tolerance, seed)
        spread = _spread(function.x.flatten(1)), _spread(output)
    count = len(values)
    mean, sd = _moments(values)
    return JacobianNorms(
        values, errors, bool((errors <= tolerance * values).all()), mean, sd,
        {level: quantile(values, level) for level in LEVELS}, spread, count, function.width, output.shape[1],
        tolerance, function.modes,
    )  # fmt: skip


def norms(function: Evaluated, x: Tensor, tolerance: float, seed: int) -> tuple[Tensor, Tensor]:
    """Norm of the Jacobian at each row of x, one for each sample, and how much larger it may be."""
    with torch.no_grad():
        outputs = function(x[:1], torch.tensor([0], device=x.device)).shape[1]
    inputs = x[0].numel()
    per = outputs * inputs if outputs <= WHOLE else STEPS * min(inputs, outputs)
    part = max(MEMORY // max(per, 1), 1)
    made = []
    for begin in range(0, len(x), part):
        rows = torch.arange(begin, min(begin + part, len(x)), device=x.device)
        at = x[rows].clone().requires_grad_()
        output = function(at, rows)
        if outputs <= WHOLE:
            made.append(_whole(output, at))
        else:
            made.append(_searched(_ways(output, at), at, outputs, tolerance, seed))
    values, errors = zip(*made, strict=True)
    return torch.cat(values), torch.cat(errors)


def _whole(output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """From all rows of the Jacobian: one backward pass an output, for all samples."""
    rows = [gradient(output[:, k].sum(), x, retain_graph=True).flatten(1) for k in range(output.shape[1])]
    return _top(torch.stack(rows, 1).double(), output.dtype)


def _top(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    wide = matrix.shape[1] <= matrix.shape[2]
    gram = matrix @ matrix.mT if wide else matrix.mT @ matrix
    values = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt().cpu()
    return values, values * ROUNDING * torch.finfo(dtype).eps


Ways = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def _ways(output: Tensor, x: Tensor) -> Ways:
    """v -> J v and w -> J' w for all samples at once; the first as the derivative of the second along w."""
    dual = torch.zeros_like(output, requires_grad=True)
    pulled = gradient(output, x, grad_outputs=dual, create_graph=True)

    def push(v: Tensor) -> Tensor:
        return gradient(pulled, dual, grad_outputs=v.reshape(x.shape), retain_graph=True)

    def pull(w: Tensor) -> Tensor:
        return gradient(output, x, grad_outputs=w, retain_graph=True).flatten(1)

    return push, pull


class _Row(Run):
    """One sample's Lanczos run, of which the coefficients are known."""

    def __init__(self, alphas: list[float], betas: list[float], dimension: int, complete: bool) -> None:
        self.alphas, self.betas, self.dimension, self.complete = alphas, betas, dimension, complete
        off = np.array(betas[:-1])
        self.values = np.linalg.eigvalsh(np.diag(np.array(alphas)) + np.diag(off, 1) + np.diag(off, -1))


def _searched(ways: Ways, x: Tensor, outputs: int, tolerance: float, seed: int) -> tuple[Tensor, Tensor]:
    """Lanczos on J J' or J' J, whichever is smaller, for all samples at once; each until its certificate holds."""
    push, pull = ways
    count, inputs = len(x), x[0].numel()
    size = min(inputs, outputs)

    def product(v: Tensor) -> Tensor:
        return push(pull(v)) if outputs <= inputs else pull(push(v))

    if size <= WHOLE:
        eye = torch.eye(size, dtype=x.dtype, device=x.device)
        return _roots(torch.stack([product(row.expand(count, -1)) for row in eye], 1).double(), x.dtype)
    chance = torch.Generator().manual_seed(seed)
    here = torch.randn(count, size, dtype=x.dtype, generator=chance).to(x.device)
    here = here / here.norm(dim=1, keepdim=True)
    basis, alphas, betas = here[:, None], [], []
    found: list[tuple[float, float] | None] = [None] * count
    for step in range(1, min(STEPS, size) + 1):
        made = product(basis[:, -1])
        alphas.append((basis[:, -1].double() * made.double()).sum(1))
        for _ in range(2):  # what is left of the first time is rounding
            made = made - ((basis @ made[..., None]).mT @ basis)[:, 0]
        beta = made.norm(dim=1)
        betas.append(beta.double())
        last = step == min(STEPS, size)
        if step % 5 == 0 or last:
            _judge(found, alphas, betas, size, tolerance, last, torch.finfo(x.dtype).eps)
            if all(f is not None for f in found):
                break
        basis = torch.cat([basis, (made / beta.clamp(min=torch.finfo(x.dtype).tiny)[:, None])[:, None]], 1)
    values = torch.tensor([f[0] for f in found if f is not None], dtype=torch.float64)
    ceilings = torch.tensor([f[1] for f in found if f is not None], dtype=torch.float64)
    values, ceilings = values.clamp(min=0).sqrt(), ceilings.clamp(min=0).sqrt()
    return values, ceilings - values + values * ROUNDING * torch.finfo(x.dtype).eps


def _roots(gram: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = torch.linalg.eigvalsh((gram + gram.mT) / 2)[:, -1].clamp(min=0).sqrt().cpu()
    return values, values * ROUNDING * torch.finfo(dtype).eps


def _judge(
    found: list[tuple[float, float] | None], alphas: list[Tensor], betas: list[Tensor], size: int, tolerance: float,
    last: bool, eps: float,
) -> None:  # fmt: skip
    """Note value and ceiling of each sample whose certificate holds; on the last step of all that are left."""
    a, b = torch.stack(alphas, 1).tolist(), torch.stack(betas, 1).tolist()
    for i, known in enumerate(found):
        if known is not None:
            continue
        scale = max(max(map(abs, a[i])), max(b[i]))
        end = next((k for k, beta in enumerate(b[i]) if beta <= ROUNDING * eps * scale), None)
        cut = len(a[i]) if end is None else end + 1  # behind it the basis is rounding alone
        row = _Row(a[i][:cut], b[i][:cut], size, end is not None or cut == size)
        top = float(row.values[-1])
        if top <= 0 or row.excludes(top * (1 + tolerance) ** 2, RISK):
            found[i] = top, max(top, row.ceiling(RISK))
        elif last:
            found[i] = top, row.ceiling(RISK)


def _spread(rows: Tensor) -> float:
    rows = rows.detach().double()
    return float((rows - rows.mean(0)).square().sum(1).mean().sqrt())


def _moments(values: Tensor) -> tuple[Estimate, Estimate]:
    """Mean and standard deviation, the latter's error from the fourth moment."""
    count = len(values)
    if count < 3:
        unknown = Estimate(math.nan, math.inf, 0.0, math.inf)
        mean = Estimate(float(values.mean()), math.inf, 0.0, math.inf)
        return mean, unknown
    t = student(count - 1)
    off = values - values.mean()
    variance = float(off.square().sum()) / (count - 1)
    fourth = max(float(off.pow(4).mean()) - variance**2, 0.0)
    sd = math.sqrt(variance)
    of_sd = fourth / (4 * variance * count) if variance > 0 else 0.0
    return plain(float(values.mean()), variance / count, t), positive(sd, of_sd, t)


def quantile(values: Tensor, level: float) -> Estimate:
    """A quantile between the order statistics that enclose it with 95 % probability, whatever the law.

    References:
        David, Nagaraja (2003), Order statistics, section 7.1.
    """
    ordered = values.double().sort().values
    count = len(ordered)
    below = _binomial(count, level)
    tail = (1 - LEVEL) / 2
    low = int((below <= tail).sum())  # P(fewer than `low` lie below the quantile) <= 2.5 %
    high = int((below < 1 - tail).sum()) + 1
    left = float(ordered[low - 1]) if low >= 1 else 0.0
    right = float(ordered[high - 1]) if high <= count else math.inf
    value = float(torch.quantile(ordered, level))
    return Estimate(value, (right - left) / (2 * 1.96), left, right)


def _binomial(count: int, level: float) -> Tensor:
    """P(at most k of `count` lie below the quantile), k = 0 .. count."""
    k = torch.arange(count + 1, dtype=torch.float64)
    log = math.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
    return (log + k * math.log(level) + (count - k) * math.log1p(-level)).exp().cumsum(0)


__all__ = ["JacobianNorms", "jacobian_norms", "norms", "quantile"]
