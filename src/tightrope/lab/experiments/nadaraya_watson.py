"""`nadaraya-watson`: attention is the Nadaraya-Watson estimator, with its bias, its variance and its best bandwidth.

Law         softmax(q.k / sqrt d) v = sum_j K(q, k_j) v_j / sum_j K(q, k_j) with K = exp(q.k / h^2), h = d^(1/4);
            among keys of one length K is the Gaussian kernel exp(-|q - k|^2 / (2 h^2)). With that kernel, n keys on a
            regular grid of the unit interval and values cos(2 pi k) + noise of deviation s, the estimate at q is off
            by cos(2 pi q) (exp(-2 pi^2 h^2) - 1) on average and has the variance s^2 / (2 sqrt(pi) n h); it averages
            n h 2 sqrt(pi) values.
Setting     torch's `scaled_dot_product_attention` in double precision beside `tightrope.nn.kernel_attention` and
            beside the textbook formula in numpy; then `kernel_attention` as a regression of 400 noisy values, s =
            0.3, at 21 queries in the middle fifth of the interval, bandwidths from 0.01 to 0.08.
Band        equality: 64 units of rounding of the largest value. The regression's laws are sums over a grid of step 1
            / n, which equal their integrals to exp(-2 (pi n h)^2), and tails beyond the interval of exp(-0.4^2 / (2
            h^2)) = 4e-6 at the widest: exact.
Reading     the third panel is the choice that every attention head makes with the length of its queries and keys: a
            narrow kernel averages noise away badly, a wide one averages the signal away. The best bandwidth is where
            the two meet.
References  Nadaraya (1964), On estimating regression, Theory of Probability and its Applications 9; Watson (1964),
            Smooth regression analysis, Sankhya A 26; Tsai et al. (2019), Transformer dissection: a unified
            understanding of transformer's attention via the lens of kernel, EMNLP.
"""

from __future__ import annotations

import math

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.nn import kernel_attention

PRINCIPLES = ("P04",)
POINTS, NOISE = 400, 0.3
BANDWIDTHS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08)
GROUPS = 30
ROUNDING = 64 * torch.finfo(torch.float64).eps


def run(trial: Trial) -> Result:
    """Equality with torch and with the formula, then bias, variance and error over the bandwidth."""
    at = [f"h = {h}" for h in BANDWIDTHS]
    queries = torch.linspace(0.4, 0.6, 21, dtype=torch.float64)
    drawn = torch.stack([_regression(queries, trial.pick(50, 400), trial.seed + g) for g in range(GROUPS)])
    means, errors = drawn.mean(0), drawn.std(0) / math.sqrt(GROUPS)  # (bandwidth, quantity)
    truth = (2 * math.pi * queries).cos()
    biases = [float((truth * (math.exp(-2 * (math.pi * h) ** 2) - 1)).mean()) for h in BANDWIDTHS]
    variances = [NOISE**2 / (2 * math.sqrt(math.pi) * POINTS * h) for h in BANDWIDTHS]
    squares = [float((truth * (math.exp(-2 * (math.pi * h) ** 2) - 1)).square().mean()) for h in BANDWIDTHS]
    worth = [NOISE**2 / v for v in variances]
    laws = [biases, variances, [b + v for b, v in zip(squares, variances, strict=True)], worth]
    torch_off, formula_off = _equalities(trial.seed)
    claims = [
        Claim.below("largest distance to torch's attention, over the largest value", ROUNDING, torch_off),
        Claim.below("largest distance of torch's attention to the Gaussian formula", ROUNDING, formula_off),
        Claim.curve("variance of the estimate", at, variances, means[:, 1].tolist(), errors[:, 1].tolist()),
        Claim.curve("mean squared error", at, laws[2], means[:, 2].tolist(), errors[:, 2].tolist()),
        Claim.curve("keys averaged, 1 / sum of squared weights", at, worth, means[:, 3].tolist(), [0.0] * len(at),
                    within=1e-4),
        Claim.equal("bias at h = 0.08", biases[-1], float(means[-1, 0]), float(errors[-1, 0])),
    ]  # fmt: skip
    titles = (("bias", "mean error"), ("variance", "variance"), ("error", "mean squared error"),
              ("effective sample size", "keys averaged"))  # fmt: skip
    panels = []
    for i, (title, label) in enumerate(titles):
        bars = errors[:, i].tolist() if i < 3 else ()
        series = (Series("estimate", BANDWIDTHS, laws[i], kind="law"),
                  Series("estimate", BANDWIDTHS, means[:, i].tolist(), bars))  # fmt: skip
        panels.append(Panel(title, "bandwidth h", label, series, log_x=True, log_y=i > 0))
    return Result(tuple(claims), tuple(panels), tuple(range(trial.seed, trial.seed + GROUPS)))


def _equalities(seed: int) -> tuple[float, float]:
    """Over masks and shapes, and for keys of one length."""
    torch.manual_seed(seed)
    worst, formula = 0.0, 0.0
    for shape in ((2, 4, 33, 8), (1, 3, 128, 64), (16, 16, 1)):
        q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
        for causal in (False, True):
            theirs = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            worst = max(worst, _off(kernel_attention(q, k, v, is_causal=causal), theirs))
        k = F.normalize(k, dim=-1) * 1.7
        formula = max(formula, _off(_textbook(q, k, v), F.scaled_dot_product_attention(q, k, v)))
    return worst, formula


def _off(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).abs().max() / theirs.abs().max())


def _textbook(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """sum_j K(|q - k_j| / h) v_j / sum_j K(|q - k_j| / h), by numpy."""
    distance = ((q.numpy()[..., :, None, :] - k.numpy()[..., None, :, :]) ** 2).sum(-1)
    kernel = numpy.exp(-distance / (2 * math.sqrt(q.shape[-1])))
    return torch.from_numpy(kernel @ v.numpy() / kernel.sum(-1, keepdims=True))


def _regression(queries: Tensor, draws: int, seed: int) -> Tensor:
    """Mean error, variance, mean squared error and effective sample size of each bandwidth; shape (bandwidths, 4)."""
    torch.manual_seed(10_000 + seed)
    keys = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    values = (2 * math.pi * keys).cos()[:, None] + NOISE * torch.randn(POINTS, draws, dtype=torch.float64)
    truth = (2 * math.pi * queries).cos()[:, None]
    found = []
    for h in BANDWIDTHS:
        off = kernel_attention(queries[:, None], keys[:, None], values, kernel="gaussian", bandwidth=h) - truth
        weights = kernel_attention(
            queries[:, None], keys[:, None], torch.eye(POINTS, dtype=torch.float64), kernel="gaussian", bandwidth=h
        )
        worth = (1 / weights.square().sum(-1)).mean()
        found.append(torch.stack([off.mean(), off.var(1).mean(), off.square().mean(), worth]))
    return torch.stack(found)
