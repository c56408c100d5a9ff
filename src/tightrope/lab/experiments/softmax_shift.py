"""`softmax-shift`: softmax does not change when its logits move together, and exp ends at the edges of its dtype.

Law         p(z + c) = p(z): exp(c) cancels. Written out as exp(z) / sum exp(z) it is so until the dtype ends: a logit
            overflows past log(max), 88.7 in float32 and bfloat16, 11.1 in float16, 709.8 in float64, and is nothing
            below the logarithm of half the smallest number, -104.0, -92.9, -17.3 and -745.1. A row is lost when its sum
            passes the one, or its largest logit the other. Fused, the largest logit is subtracted first, and only the
            rounding of z + c is left, eps |z + c| / 2. The gradient of -log p_k is p - [k]; through the logarithm of a
            p that is written out it passes 1 / p_k, which overflows where p_k < 1 / max.
Setting     rows of 16 normal logits, moved by c, through both forms in float32; the edges of exp by bisection; the
            gradients of both forms, with the true class by a gap below 15 others.
Band        edges: the spacing of the dtype there. Fused: two roundings of eps (|c| + |z|) / 2 beside 8 eps of its own.
            Gradients: 16 eps.
Reading     of the naive form only what is a number is drawn. With 16 classes its gradient ends at a gap of
            log(max / 15), 8.4 in float16, where a net that is rightly sure of itself arrives soon.
References  Goldberg (1991), What every computer scientist should know about floating-point arithmetic, ACM Computing
            Surveys 23; Blanchard, Higham and Higham (2021), Accurately computing the log-sum-exp and softmax functions,
            IMA Journal of Numerical Analysis 41.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P23",)
DTYPES = {
    "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64,
}  # fmt: skip
CLASSES = 16
SHIFTS = (-108.0, -106.0, -105.0, -104.0, -100.0, -60.0, 0.0, 60.0, 80.0, 84.0, 85.0, 86.0, 87.0, 88.0, 92.0)
"""Around the edges of float32."""
FAR = (1.0, 10.0, 100.0, 1000.0, 10000.0)
GAPS = (0.0, 2.0, 4.0, 6.0, 8.0, 9.0, 14.0, 20.0, 30.0, 50.0, 70.0, 84.0, 85.5, 86.5, 88.0, 95.0, 110.0)
"""How far the true class's logit lies below the others."""


def run(trial: Trial) -> Result:
    """Edges of exp, what moving does to both forms, and their gradients."""
    rows = trial.pick(20_000, 200_000)
    z = torch.randn(rows, CLASSES)
    edges = [[(high(d), _edge(d, up=True)), (low(d), _edge(d, up=False))] for d in DTYPES.values()]
    at = [f"{side} edge, {name}" for name in DTYPES for side in ("upper", "lower")]
    off = [
        (found / law - 1) / torch.finfo(d).eps
        for d, row in zip(DTYPES.values(), edges, strict=True)
        for law, found in row
    ]
    text = "where exp leaves the dtype: off the law, in the dtype's spacing"
    claims = [Claim.curve(text, at, [0.0] * len(at), off, [0.0] * len(at), absolute=1.0)]
    told, lost = [_told(z, c) for c in SHIFTS], [_lost(z, c) for c in SHIFTS]
    claims.append(Claim.curve("share of rows that the naive form loses", SHIFTS, told, lost, [0.0] * len(SHIFTS)))
    fused = [_change(z, c) for c in FAR]
    for c, change in zip(FAR, fused, strict=True):
        if c in (1.0, 10000.0):
            claims.append(Claim.below(f"fused: largest relative change of p at c = {c:g}", _rounding(z, c), change))
    claims += _gradients()
    return Result(tuple(claims), (_rows(told, lost), _moved(z, fused), _slopes(), _edges(edges)), (trial.seed,))


def high(dtype: torch.dtype) -> float:
    """Largest logit whose exponential is a number."""
    return math.log(torch.finfo(dtype).max)


def low(dtype: torch.dtype) -> float:
    """Logit below which the exponential is rounded to zero."""
    info = torch.finfo(dtype)
    return math.log(info.smallest_normal) + math.log(info.eps) - math.log(2)


def _edge(dtype: torch.dtype, *, up: bool) -> float:
    """Where exp leaves the dtype, by bisection."""
    good, bad = 0.0, 2 * (high(dtype) if up else low(dtype))
    for _ in range(80):
        middle = float(torch.tensor((good + bad) / 2, dtype=dtype))
        if middle in (good, bad):
            break
        y = float(torch.tensor(middle, dtype=dtype).exp())
        good, bad = (middle, bad) if 0 < y < math.inf else (good, middle)
    return good


def naive(z: Tensor) -> Tensor:
    """Softmax as it is written in a textbook."""
    e = z.exp()
    return e / e.sum(-1, keepdim=True)


def _told(z: Tensor, c: float) -> float:
    moved = (z + c).double()
    return float(((moved.logsumexp(-1) > high(z.dtype)) | (moved.amax(-1) < low(z.dtype))).double().mean())


def _lost(z: Tensor, c: float) -> float:
    total = naive(z + c).sum(-1)
    return float((~(total > 0)).double().mean())


def _change(z: Tensor, c: float) -> float:
    return float((F.softmax(z + c, -1) / F.softmax(z, -1) - 1).abs().max())


def _rounding(z: Tensor, c: float) -> float:
    eps = torch.finfo(z.dtype).eps
    return eps * (c + float(z.abs().max())) + 8 * eps


def _slope(gap: float, dtype: torch.dtype, form: Callable[[Tensor], Tensor]) -> float:
    """Gradient of -log p of the true class with respect to its logit."""
    z = torch.zeros(CLASSES, dtype=dtype)
    z[0] = -gap
    z.requires_grad_()
    (slope,) = torch.autograd.grad(-form(z)[0], z)
    return float(slope[0])


def last_gap(dtype: torch.dtype) -> float:
    """How far below the others the true class may lie for 1 / p to be a number."""
    return high(dtype) - math.log(CLASSES - 1)


def _log_naive(z: Tensor) -> Tensor:
    return naive(z).log()


def _log_fused(z: Tensor) -> Tensor:
    return F.log_softmax(z, -1)


def _exact(gap: float) -> float:
    p = math.exp(-gap)
    return p / (p + CLASSES - 1) - 1


def _gradients() -> list[Claim]:
    law, none = [_exact(gap) for gap in GAPS], [0.0] * len(GAPS)
    claims = []
    for name in ("float16", "float32"):
        dtype = DTYPES[name]
        fused = [_slope(gap, dtype, _log_fused) for gap in GAPS]
        band = 16 * torch.finfo(dtype).eps
        claims.append(Claim.curve(f"fused gradient, {name}, gap", GAPS, law, fused, none, absolute=band))
        kept = [float(math.isfinite(_slope(gap, dtype, _log_naive))) for gap in GAPS]
        expected = [float(gap < last_gap(dtype)) for gap in GAPS]
        claims.append(Claim.curve(f"naive gradient is a number, {name}, gap", GAPS, expected, kept, none))
    return claims


def _rows(told: list[float], lost: list[float]) -> Panel:
    series = (Series("law", SHIFTS, told, kind="law"), Series("naive form", SHIFTS, lost))
    return Panel("rows that are lost, float32", "c", "share of rows", series)


def _moved(z: Tensor, fused: list[float]) -> Panel:
    plain = [float((naive(z + c) / naive(z) - 1).abs().max()) for c in FAR]
    series = (
        Series("bound by rounding", FAR, [_rounding(z, c) for c in FAR], kind="law"), Series("fused", FAR, fused),
        Series("naive", FAR, plain),
    )  # fmt: skip
    return Panel("p(z + c) / p(z) - 1, float32", "c", "largest change", series, log_x=True, log_y=True)


def _slopes() -> Panel:
    series = []
    for name in ("float16", "float32"):
        dtype = DTYPES[name]
        edge = last_gap(dtype)
        series.append(Series(f"naive, {name}", (0.0, edge, edge, GAPS[-1]), (1.0, 1.0, 0.0, 0.0), kind="law"))
        kept = [float(math.isfinite(_slope(gap, dtype, _log_naive))) for gap in GAPS]
        series.append(Series(f"naive, {name}", GAPS, kept))
    fused = [float(math.isfinite(_slope(gap, torch.float16, _log_fused))) for gap in GAPS]
    series.append(Series("fused, float16", GAPS, fused, kind="reference"))
    text = "true class's logit below the others"
    return Panel("gradient of -log p", text, "1 where it is a number", tuple(series))


def _edges(edges: list[list[tuple[float, float]]]) -> Panel:
    series = []
    for n, name in enumerate(("largest", "smallest, negated")):
        series.append(Series(name, range(len(edges)), [abs(row[n][0]) for row in edges], kind="law"))
        series.append(Series(name, range(len(edges)), [abs(row[n][1]) for row in edges]))
    return Panel("logits whose exp is a number", "", "logit", tuple(series), log_y=True, ticks=tuple(DTYPES))
