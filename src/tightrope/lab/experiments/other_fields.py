"""`other-fields`: small batches of volumes and batches of a laboratory obey the laws of correlated statistics.

Law         volumes: let c_k be the spectrum of a channel, of mean 1, c_0 that of its level. Statistics over n maps of S
            voxels have the mean's variance c_0 / (n S); the variance is ((n - 1) c_0 + n sum of the others) / (n S) on
            average, with the variance 2 ((n - 1) c_0^2 + n sum of the others' squares) / (n S)^2. Batch norm at two
            volumes has n = 2, instance norm 1, group norm the channels of a group. Expression: a batch effect of
            variance b^2 beside 1 within has the share b^2 / (1 + b^2), and -1 / (n - 1) once each batch of n is
            centred. What centring leaves of a difference between groups that make up q and 1 - q of a batch, in turns,
            is 4 q (1 - q).
Setting     normal fields of 10 x 10 x 10 voxels, smooth over up to three of them, with a level of each patient that has
            a tenth of the variance; statistics by torch's normalisers. Expression of 400 genes in 8 batches of 64.
Band        exact, but for the draws. Group differences are read behind BatchNorm1d, whose standard deviation of 64
            samples is off by 1 / 64 on average.
Reading     voxels of smooth volumes add little: the error of the mean stays that of as many numbers as there are
            patients, and of instance norm it is the level itself, which it deletes. Centring removes the batch, and
            with it what the batches had of the groups.
References  Ioffe and Szegedy (2015), Batch normalization, ICML; Johnson, Li and Rabinovic (2007), Adjusting batch
            effects in microarray expression data using empirical Bayes methods, Biostatistics 8; Nygaard, Rodland and
            Hovig (2016), Methods that remove batch effects while retaining group differences may lead to exaggerated
            confidence in downstream analyses, Biostatistics 17.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.measure.batches import split

PRINCIPLES = ("P33",)
SIDE, LEVEL, GROUP = 10, 0.1, 4
"""Voxels along an edge; share of a patient's level in the variance; channels of group norm's groups."""
VOXELS = SIDE**3
KINDS = {"batch norm, 2 volumes": 2, "instance norm": 1, "group norm": GROUP}
"""Maps that a statistic of each is over."""
SMOOTH = (0.0, 1.0, 2.0, 3.0)
"""Standard deviation of the smoothing, in voxels."""
GENES, BATCHES, SIZE = 400, 8, 64
EFFECTS = (0.0, 0.25, 0.5, 1.0, 2.0)
MIXES = (0.5, 0.625, 0.75, 0.875, 1.0)
"""Share of the cases in every other batch; of the controls in the rest."""


def run(trial: Trial) -> Result:
    """Errors of the normalisers' statistics on volumes; batch effects before and after they are removed."""
    seeds, draws = trial.seeds(6, 12), trial.pick(1024, 3072)
    claims = []
    found = {name: _figures(torch.cat([_volumes(name, draws, seed) for seed in seeds]), n) for name, n in KINDS.items()}
    told = {name: torch.tensor([law(width, n) for width in SMOOTH]) for name, n in KINDS.items()}
    at = [f"{name}, smooth over {width:g}" for name in KINDS for width in SMOOTH]
    for part, text in enumerate(("error of the mean", "mean of the variance", "error of the variance")):
        mean, error = (torch.cat([found[name][i][:, part] for name in KINDS]).tolist() for i in (0, 1))
        line = torch.cat([told[name][:, part] for name in KINDS]).tolist()
        claims.append(Claim.curve(f"volumes: {text}", at, line, mean, error))
    shares = torch.tensor([[_shares(b, seed) for b in EFFECTS] for seed in seeds])
    law_of = [b * b / (1 + b * b) for b in EFFECTS]
    claims.append(
        Claim.curve("share of the batch effect, b", EFFECTS, law_of, *_summary(shares[..., 0]), absolute=1e-3)
    )
    none, gone = [0.0] * len(EFFECTS), [-1 / (SIZE - 1)] * len(EFFECTS)
    claims.append(
        Claim.curve("the same behind batch norm, b", EFFECTS, gone, shares[..., 1].mean(0).tolist(), none, within=1e-3)
    )
    left = torch.tensor([[_left(q, seed) for q in MIXES] for seed in seeds])
    kept = [4 * q * (1 - q) for q in MIXES]
    claims.append(Claim.curve("group difference left, q", MIXES, kept, *_summary(left), within=1 / SIZE, absolute=0.01))
    return Result(tuple(claims), (*_volume_panels(found), *_gene_panels(shares, law_of, left, kept)), seeds)


def _summary(rows: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard error over seeds."""
    return rows.mean(0).tolist(), (rows.std(0) / math.sqrt(len(rows))).tolist()


# -- volumes -------------------------------------------------------------------------------------


def spectrum(width: float) -> Tensor:
    """Energies of the modes of a smooth field and of a patient's level, mean 1; shape (side, side, side)."""
    frequency = 2 * math.pi * torch.fft.fftfreq(SIDE, dtype=torch.float64)
    one = torch.exp(-((frequency * width) ** 2))
    energy = one.view(-1, 1, 1) * one.view(1, -1, 1) * one
    energy = (1 - LEVEL) * energy / energy.mean()
    energy[0, 0, 0] += LEVEL * VOXELS
    return energy


def law(width: float, maps: int) -> tuple[float, float, float]:
    """Standard error of the mean, mean and standard error of the variance, over so many maps."""
    mean, spread, _ = _moments(width, maps)
    return math.sqrt(float(spectrum(width)[0, 0, 0]) / (maps * VOXELS)), mean, math.sqrt(spread)


def _moments(width: float, maps: int) -> tuple[float, float, float]:
    """Mean, variance and excess kurtosis of the variance over so many maps: a sum of squares of normal modes."""
    energy = spectrum(width).flatten() / (maps * VOXELS)
    level, rest = float(energy[0]), energy[1:]

    def total(power: int) -> float:
        return (maps - 1) * level**power + maps * float(rest.pow(power).sum())

    return total(1), 2 * total(2), 12 * total(4) / total(2) ** 2


def _fields(count: int, channels: int, width: float) -> Tensor:
    """Normal volumes with that spectrum; shape (count, channels, side, side, side)."""
    noise = torch.fft.fftn(torch.randn(count, channels, SIDE, SIDE, SIDE), dim=(2, 3, 4))
    made: Tensor = torch.fft.ifftn(noise * spectrum(width).sqrt().float(), dim=(2, 3, 4)).real
    return made.contiguous()


def _volumes(name: str, draws: int, seed: int) -> Tensor:
    """Square of torch's mean, its variance, square of that about the law; shape (draws, widths, 3)."""
    torch.manual_seed(seed)
    rows = []
    for width in SMOOTH:
        if name.startswith("batch"):
            norm = nn.BatchNorm3d(draws, momentum=1.0)  # every channel is a draw
            norm(_fields(2, draws, width))
            assert norm.running_mean is not None and norm.running_var is not None
            mean, variance = norm.running_mean, norm.running_var * (2 * VOXELS - 1) / (2 * VOXELS)
        else:
            channels = draws * KINDS[name]
            x = _fields(1, channels, width)
            _, mean, scale = torch.native_group_norm(x, None, None, 1, channels, VOXELS, draws, 1e-12)
            mean, variance = mean.flatten(), scale.flatten() ** -2
        around = (variance - law(width, KINDS[name])[1]).square()
        rows.append(torch.stack([mean.square(), variance, around], 1))
    return torch.stack(rows, 1)


def _figures(draws: Tensor, maps: int) -> tuple[Tensor, Tensor]:
    """The three numbers of the law, and their standard errors; shape (widths, 3).

    The variance has so heavy a tail that draws tell too little of their own error: it is what the law says at least.
    """
    mean, error = draws.mean(0), draws.std(0) / math.sqrt(len(draws))
    for part in (0, 2):  # root mean squares
        mean[:, part] = mean[:, part].sqrt()
        error[:, part] /= 2 * mean[:, part]
    for n, width in enumerate(SMOOTH):
        _, spread, excess = _moments(width, maps)
        error[n, 2] = max(float(error[n, 2]), math.sqrt(spread * (2 + excess) / len(draws)) / 2)
    return mean, error


# -- expression ----------------------------------------------------------------------------------


def _shares(effect: float, seed: int) -> tuple[float, float]:
    """Intra-class correlation of the batches, before and behind a batch norm that sees one batch at a time."""
    torch.manual_seed(seed)
    batches = list(torch.randn(BATCHES, SIZE, GENES) + effect * torch.randn(BATCHES, 1, GENES))
    norm = nn.BatchNorm1d(GENES, affine=False)
    found = split(batches, scaled=False), split([norm(batch) for batch in batches], scaled=False)
    return tuple(math.nan if how is None else how.rho for how in found)  # type: ignore[return-value]


def _left(mix: float, seed: int) -> float:
    """Difference of the groups' means once each batch is normalised, as a share of the true one."""
    torch.manual_seed(seed)
    true, norm = torch.randn(GENES), nn.BatchNorm1d(GENES, affine=False)
    values, labels = list[Tensor](), list[Tensor]()
    for batch in range(BATCHES):
        cases = round(SIZE * (mix if batch % 2 else 1 - mix))
        label = (torch.arange(SIZE) < cases).float().unsqueeze(1)
        values.append(norm(torch.randn(SIZE, GENES) + label * true + torch.randn(GENES)))
        labels.append(label)
    y, label = torch.cat(values), torch.cat(labels)
    apart = (y * label).sum(0) / label.sum() - (y * (1 - label)).sum(0) / (1 - label).sum()
    expected = true / (1 + mix * (1 - mix) * true.square()).sqrt()
    return float((apart * expected).sum() / expected.square().sum())


def _volume_panels(found: dict[str, tuple[Tensor, Tensor]]) -> list[Panel]:
    panels, fine = [], [n / 8 for n in range(25)]
    for part, title in ((0, "volumes: error of the mean"), (2, "volumes: error of the variance")):
        series = []
        for name, (mean, error) in found.items():
            series += [
                Series(name, fine, [law(width, KINDS[name])[part] for width in fine], kind="law"),
                Series(name, SMOOTH, mean[:, part].tolist(), error[:, part].tolist()),
            ]
        panels.append(Panel(title, "smooth over, in voxels", "standard error, variance 1", tuple(series)))
    return panels


def _gene_panels(shares: Tensor, told: Sequence[float], left: Tensor, kept: Sequence[float]) -> list[Panel]:
    fine = [n / 20 for n in range(41)]
    effects = (
        Series("as measured", fine, [b * b / (1 + b * b) for b in fine], kind="law"),
        Series("as measured", EFFECTS, *_summary(shares[..., 0])),
        Series("behind batch norm", (0.0, EFFECTS[-1]), (-1 / (SIZE - 1),) * 2, kind="law"),
        Series("behind batch norm", EFFECTS, shares[..., 1].mean(0).tolist()),
    )
    mixes = [0.5 + n / 80 for n in range(41)]
    groups = (
        Series("", mixes, [4 * q * (1 - q) for q in mixes], kind="law"),
        Series("", MIXES, *_summary(left)),
    )
    return [
        Panel("expression: share of the batch effect", "standard deviation of the effect, b", "share", effects),
        Panel("expression: group difference left", "share of the cases in a batch, q", "share", groups),
    ]
