"""`minibatch-law`: the variance of a mini-batch mean falls as 1 / m, but not below the floor of its correlation.

Law         Var(mean of m) = sigma^2 / m (1 + (m - 1) rho), where rho is the correlation of two samples of one batch.
            The floor is rho sigma^2, and the batch is worth m / (1 + (m - 1) rho) independent samples. If each sample
            belongs to the class that is the theme of its batch with probability s, rho = s^2 B / sigma^2, with B the
            variance between the classes' means.
Setting     gradients of a classifier of handwritten digits, 64-16-10, at its initial weights, all parameters summed.
            sigma^2 and B are those of the 1,797 digits, exactly. Batches of 1 to 256 are drawn with s of 0, 0.5 and
            0.9; `batch_noise` sees 64 batches of 16 only.
Band        none: the law is exact, the digits are drawn with replacement.
Reading     lines are the law from sigma^2 and B, points the variance of drawn batches, and what the instrument says.
            Without a theme the variance falls for ever; with one, sixteen times the samples may buy nothing.
References  Kish (1965), Survey sampling, Wiley; McCandlish, Kaplan, Amodei et al. (2018), An empirical model of
            large-batch training, arXiv 1812.06162.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tightrope.instruments.batch_noise import batch_noise
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P15",)
SIZES = (1, 4, 16, 64, 256)
THEMES = (0.0, 0.5, 0.9)
SEEN, BATCHES = 16, 64
"""Batches that the instrument sees."""


def run(trial: Trial) -> Result:
    """Variance over sizes and themes, and what the instrument makes of it."""
    data = _Digits()
    seeds = trial.seeds(14, 32)
    claims, variances, told_curves = [], list[Series](), list[Series]()
    for theme in THEMES:
        rho = theme**2 * data.between / data.sigma2
        law = [data.sigma2 / m * (1 + (m - 1) * rho) for m in SIZES]
        drawn = torch.tensor([[data.variance(m, theme, seed, trial.pick(130, 400)) for m in SIZES] for seed in seeds])
        mean, error = _mean(drawn)
        name = "no theme" if theme == 0 else f"theme {theme:g}"
        claims.append(
            Claim.curve(f"variance of the mean gradient, {name}", [f"m = {m}" for m in SIZES], law, mean, error)
        )
        fine = [2 ** (i / 2) for i in range(17)]
        variances += [
            Series(name, fine, [data.sigma2 / m * (1 + (m - 1) * rho) for m in fine], kind="law"),
            Series(name, SIZES, mean, error),
        ]
        told = [
            batch_noise(data.net, data.loader(theme, seed), loss=F.cross_entropy, batches=BATCHES) for seed in seeds
        ]
        told_mean, told_error = _mean(torch.tensor([[noise.variance(m) for m in SIZES] for noise in told]))
        told_curves += [
            Series(name, fine, [data.sigma2 / m * (1 + (m - 1) * rho) for m in fine], kind="law"),
            Series(name, SIZES, told_mean, told_error),
        ]
        if theme:
            middle, spread = _mean(torch.tensor([noise.rho.value for noise in told if noise.rho is not None]))
            claims.append(Claim.equal(f"rho by `batch_noise`, {name}", rho, middle[0], spread[0]))
            text = f"variance at m = {SIZES[-1]} as `batch_noise` extrapolates it, {name}"
            claims.append(Claim.equal(text, law[-1], told_mean[-1], told_error[-1]))
    middle, spread = _mean(torch.tensor([noise.sigma2.value for noise in told]))
    claims.append(Claim.equal("sigma^2 by `batch_noise`, theme 0.9", data.sigma2, middle[0], spread[0]))
    panels = (
        Panel("variance of a batch's gradient", "batch size", "variance, all parameters", tuple(variances), True, True),
        Panel(
            "as batch_noise extrapolates from batches of 16",
            "batch size",
            "variance, all parameters",
            tuple(told_curves),
            True,
            True,
        ),
    )
    return Result(tuple(claims), panels, seeds)


def _mean(values: Tensor) -> tuple[list[float], list[float]]:
    values = values.double().reshape(len(values), -1)
    return values.mean(0).tolist(), (values.std(0) / math.sqrt(len(values))).tolist()


class _Digits:
    """The digits, the net, and the gradient of every digit."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        self.x = torch.tensor(found.data, dtype=torch.float32) / 8 - 1
        self.y = torch.tensor(found.target)
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        parameters = {name: p.detach() for name, p in self.net.named_parameters()}

        def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(self.net, parameters, x[None]), y[None])

        made = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, self.x, self.y)
        self.gradients = torch.cat([g.flatten(1) for g in made.values()], 1)
        self.members = [torch.nonzero(self.y == c)[:, 0] for c in range(10)]
        means = torch.stack([self.gradients[members].double().mean(0) for members in self.members])
        weights = torch.tensor([len(members) for members in self.members], dtype=torch.float64) / len(self.y)
        overall = self.gradients.double().mean(0)
        self.sigma2 = float((self.gradients.double() - overall).square().sum(1).mean())
        self.between = float(weights @ (means - overall).square().sum(1))

    def draw(self, batches: int, size: int, theme: float, chance: torch.Generator) -> Tensor:
        """Indices of batches, each with a theme; (batches, size)."""
        free = torch.randint(len(self.y), (batches, size), generator=chance)
        classes = self.y[torch.randint(len(self.y), (batches,), generator=chance)]
        counts = torch.tensor([len(members) for members in self.members])[classes]
        places = (torch.rand(batches, size, generator=chance) * counts[:, None]).long()
        table = nn.utils.rnn.pad_sequence(self.members, batch_first=True)[classes]
        own = table.gather(1, places)
        return torch.where(torch.rand(batches, size, generator=chance) < theme, own, free)

    def variance(self, size: int, theme: float, seed: int, batches: int) -> float:
        """Unbiased variance of the mean gradient over drawn batches, summed over parameters."""
        chance = torch.Generator().manual_seed(1000 * seed + size)
        count = torch.zeros(batches, len(self.y))
        drawn = self.draw(batches, size, theme, chance)
        count.scatter_add_(1, drawn, torch.ones(batches, size))
        means = count @ self.gradients / size
        return float(means.double().var(0).sum())

    def loader(self, theme: float, seed: int) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the size that the instrument sees."""
        drawn = self.draw(BATCHES, SEEN, theme, torch.Generator().manual_seed(seed + 7))
        return DataLoader(TensorDataset(self.x, self.y), batch_sampler=drawn.tolist())
