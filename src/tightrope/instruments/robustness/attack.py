"""Projected gradient ascent against a classifier: what a small change of its input does to its answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.instruments.estimate import Estimate
from tightrope.instruments.robustness.function import Evaluated, evaluated, gradient

ASKED = "attack the model"
STEP = 2.5
"""The whole way of all steps in radii: from any start every point of the ball is within reach (Madry et al. 2018)."""
HALVINGS = 12
"""Of the way back along a successful change: its length is then known to 1/4000."""
NEAR = 0.1
"""Part of the way to the middle between two classes that counts as a small change."""
Norm = Literal["inf", "2"]


@dataclass(frozen=True, eq=False)
class Attack:
    """Answers before and after a change of at most `eps` of each sample.

    Attributes:
        clean: share of samples that are classified right, with its interval.
        robust: share that is still right after the attack: an upper bound of the share that no change of that size
            turns.
        flipped: share of the right ones that were turned.
        distances: length of the shortest change found that turns a sample; 0 where it was wrong, infinite where none
            was found; shape (samples,).
        margins: logit of the true class less the largest other one, before; shape (samples,).
        spacing: half the distance of each sample to the nearest of another class; infinite in a batch of one class.
        perturbed: the changed samples: turned by the shortest change found, else as hard as was found.
        eps, norm: radius and norm of the ball.
        masked: share of the samples whose gradient is zero: an attack by gradients says nothing of them.
        modes: how the model was found.
    """

    clean: Estimate
    robust: Estimate
    flipped: Estimate
    distances: Tensor = field(repr=False)
    margins: Tensor = field(repr=False)
    spacing: Tensor = field(repr=False)
    perturbed: Tensor = field(repr=False)
    eps: float
    norm: str
    masked: float
    modes: tuple[str, ...] = ()

    @property
    def near(self) -> Estimate:
        """Share of the right samples turned by a tenth of half the distance to another class, or less."""
        right = self.margins > 0
        return share(int((self.distances[right] <= NEAR * self.spacing[right]).sum()), int(right.sum()))

    @property
    def verdict(self) -> str | None:
        """`fragile` where most samples turn by a tenth of the way that the nearest neighbour's answer would bear."""
        several = bool(torch.isfinite(self.spacing).any())
        return "fragile" if several and self.near.low > 0.5 else None

    def __str__(self) -> str:
        name = "L-inf" if self.norm == "inf" else "L2"
        lines = [
            f"Attack on {len(self.margins)} samples, {name} ball of {self.eps:.3g}",
            f"  right before  {self.clean}",
            f"  right after   {self.robust}, at most",
        ]
        found = self.distances[torch.isfinite(self.distances) & (self.distances > 0)]
        if len(found):
            lines.append(f"  a change of   {float(found.median()):.3g} turns those that turn (median)")
        if self.masked > 0:
            lines.append(f"  {self.masked:.1%} of the samples have no gradient: for them the attack says nothing")
        lines += [f"  {mode}" for mode in self.modes]
        return "\n".join([*lines, *([f"  {self.verdict}"] if self.verdict else [])])


def attack(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    eps: float | None = None,
    norm: Norm = "inf",
    steps: int = 40,
    restarts: int = 2,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Attack:
    """Projected gradient ascent in a ball about each sample, on the loss and on the logit margin in turn.

    The model is attacked as it is evaluated, whatever its mode. Each change that turns a sample is walked back as far
    as the sample stays turned.

    Args:
        model: a classifier that returns logits, shape (samples, classes), or one logit a sample for two classes.
        batch: `(inputs, labels)`.
        loss: of the logits and the labels; None: the cross-entropy.
        eps: radius, in the inputs' units; None: a tenth of the median half distance to another class.
        norm: "inf" or "2".
        steps: of each ascent.
        restarts: ascents; the first starts from the sample, the others from random points of the ball.
        bounds: least and largest value of valid inputs; None does not clip.
        seed: of the starts.

    Raises:
        InputError: no classifier, labels that are no classes, or a bad option.
        RecordError: the model raised.

    References:
        Madry, Makelov, Schmidt, Tsipras, Vladu (2018), Towards deep learning models resistant to adversarial attacks,
        ICLR; Carlini, Wagner (2017), Towards evaluating the robustness of neural networks, IEEE S&P, for the margin;
        Athalye, Carlini, Wagner (2018), Obfuscated gradients give a false sense of security, ICML.
    """
    if norm not in ("inf", "2"):
        raise InputError(ASKED, f"norm is {norm!r}", 'Pass "inf" or "2"')
    if steps < 1 or restarts < 1 or (eps is not None and not 0 <= eps < math.inf):
        raise InputError(ASKED, f"eps is {eps!r}, steps {steps!r}, restarts {restarts!r}", "Pass positive numbers")
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(ASKED, f"the batch is of type {type(batch).__name__}", "Pass (inputs, labels)")
    inputs, labels = batch
    with evaluated(model, inputs, ASKED) as function:
        with torch.no_grad():
            before = logits(function, function.x)
        labels = _labels(labels, before)
        spacing = _spacing(function.x, labels, norm)
        if eps is None:
            eps = _default(spacing)
        search = _Search(function, labels, loss or partial(F.cross_entropy, reduction="sum"), eps, norm, bounds)
        chance = torch.Generator().manual_seed(seed)
        for i in range(restarts):
            search.ascend(steps, i % 2 == 1, chance if i else None)
        distances = search.walk_back()
    margins = margin(before, labels).detach().cpu()
    count, right = len(margins), margins > 0
    kept = int((~torch.isfinite(distances)).sum())
    return Attack(
        share(int(right.sum()), count), share(kept, count), share(int(right.sum()) - kept, int(right.sum())),
        distances, margins, spacing.cpu(), search.best, eps, norm, float(search.masked.float().mean()), function.modes,
    )  # fmt: skip


def logits(function: Evaluated, x: Tensor) -> Tensor:
    """Logits of each class; a single logit is that of the second of two classes."""
    made = function(x)
    return torch.cat([torch.zeros_like(made), made], 1) if made.shape[1] == 1 else made


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Logit of the true class less the largest other one; shape (samples,)."""
    true = scores.gather(1, labels[:, None])[:, 0]
    other = scores.scatter(1, labels[:, None], -math.inf).amax(1)
    return true - other


def share(part: int, whole: int) -> Estimate:
    """A share with Wilson's 95 % interval.

    References:
        Wilson (1927), Probable inference, the law of succession, and statistical inference, JASA 22.
    """
    if whole == 0:
        return Estimate(math.nan, math.inf, 0.0, 1.0)
    z = 1.959964
    p = part / whole
    middle = (p + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z / (1 + z * z / whole) * math.sqrt(p * (1 - p) / whole + z * z / (4 * whole * whole))
    return Estimate(p, math.sqrt(p * (1 - p) / whole), max(middle - half, 0.0), min(middle + half, 1.0))


def _labels(labels: Any, scores: Tensor) -> Tensor:
    if not isinstance(labels, Tensor) or labels.numel() != len(scores):
        found = f"of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise InputError(ASKED, f"the labels are {found} for {len(scores)} outputs", "Pass one class a sample")
    flat = labels.reshape(-1)
    whole = flat.long()
    if not bool((whole == flat).all()) or int(whole.min()) < 0 or int(whole.max()) >= scores.shape[1]:
        what = f"labels from {float(flat.min()):.3g} to {float(flat.max()):.3g} are no classes of {scores.shape[1]}"
        raise InputError(ASKED, what, "Pass class numbers, and a model that has a logit for each")
    return whole.to(scores.device)


def _spacing(x: Tensor, labels: Tensor, norm: str) -> Tensor:
    """Half the distance of each sample to the nearest of another class."""
    flat = x.flatten(1).double()
    order = math.inf if norm == "inf" else 2.0
    found = []
    for rows, mine in zip(flat.split(256), labels.split(256), strict=True):
        apart = torch.cdist(rows, flat, p=order, compute_mode="donot_use_mm_for_euclid_dist")
        found.append(apart.masked_fill(mine[:, None] == labels, math.inf).amin(1) / 2)
    return torch.cat(found)


def _default(spacing: Tensor) -> float:
    finite = spacing[torch.isfinite(spacing)]
    if not len(finite):
        raise InputError(ASKED, "the batch holds one class, so that no radius can be chosen", "Pass eps=")
    return NEAR * float(finite.median())


class _Search:
    """The hardest points found so far."""

    def __init__(
        self, function: Evaluated, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], eps: float, norm: str,
        bounds: tuple[float, float] | None,
    ) -> None:  # fmt: skip
        self.function, self.labels, self.loss = function, labels, loss
        self.eps, self.norm, self.bounds = eps, norm, bounds
        self.x = function.x
        self.best = self.x.clone()
        self.least = self._margin(self.x)
        self.masked = torch.zeros(len(self.x), dtype=torch.bool)

    @torch.no_grad()
    def _margin(self, x: Tensor) -> Tensor:
        return margin(logits(self.function, x), self.labels)

    def ascend(self, steps: int, by_margin: bool, chance: torch.Generator | None) -> None:
        """One ascent; steps shrink in its second half, so that it settles."""
        x = self.x.clone()
        if chance is not None:
            noise = torch.rand(x.shape, generator=chance, dtype=torch.float64).to(x) * 2 - 1
            x = self._inside(self.x + noise * self.eps)
        for step in range(steps):
            at = x.clone().requires_grad_()
            scores = logits(self.function, at)
            rise = -margin(scores, self.labels) if by_margin else self.loss(scores, self.labels)
            slope = gradient(rise.sum(), at)
            if step == 0 and chance is None and not by_margin:
                self._note_masked(x)
            length = STEP * self.eps / steps * (1.0 if 2 * step < steps else 0.5)
            x = self._inside(x + length * self._direction(slope))
            self._keep(x)

    def _note_masked(self, x: Tensor) -> None:
        """Samples whose margin has no gradient; a cross-entropy that is saturated has none either, and is no mask."""
        at = x.clone().requires_grad_()
        slope = gradient(margin(logits(self.function, at), self.labels).sum(), at)
        self.masked = (slope.flatten(1) == 0).all(1).cpu()

    def _direction(self, slope: Tensor) -> Tensor:
        if self.norm == "inf":
            return torch.sign(slope)
        length: Tensor = slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
        return slope / length.view(-1, *[1] * (slope.dim() - 1))

    def _inside(self, x: Tensor) -> Tensor:
        """The nearest point of the ball, and of the valid inputs."""
        moved = x - self.x
        if self.norm == "inf":
            moved = moved.clamp(-self.eps, self.eps)
        else:
            length = moved.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
            moved = moved * (self.eps / length).clamp(max=1.0).view(-1, *[1] * (x.dim() - 1))
        made = self.x + moved
        return made if self.bounds is None else made.clamp(*self.bounds)

    def _keep(self, x: Tensor) -> None:
        found = self._margin(x)
        better = found < self.least
        self.least = torch.where(better, found, self.least)
        self.best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x, self.best)

    def walk_back(self) -> Tensor:
        """Shorten each change that turns its sample; lengths of what is left."""
        moved = self.best - self.x
        low, high = torch.zeros(len(moved)).to(moved), torch.ones(len(moved)).to(moved)
        turned = self.least <= 0
        wide = (-1, *[1] * (moved.dim() - 1))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            still = self._margin(self.x + moved * middle.view(wide)) <= 0
            high, low = torch.where(still, middle, high), torch.where(still, low, middle)
        self.best = torch.where(turned.view(wide), self.x + moved * high.view(wide), self.best)
        flat = (self.best - self.x).flatten(1).double()
        length = flat.abs().amax(1) if self.norm == "inf" else flat.norm(dim=1)
        right = self._margin(self.x) > 0
        return torch.where(turned, torch.where(right, length, 0.0), math.inf).cpu()


__all__ = ["Attack", "Norm", "attack", "logits", "margin", "share"]
