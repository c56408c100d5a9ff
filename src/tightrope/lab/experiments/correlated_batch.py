"""`correlated-batch`: batch norm underestimates the variance by the correlation inside its batches.

Law         the mean of (x - batch mean)^2 over a batch of m, which batch norm divides by in training, has the
            expectation sigma^2 (1 - rho) (m - 1) / m, where rho is the mean correlation over all pairs of samples of
            the batch. Its running variance, which uses m - 1, approaches sigma^2 (1 - rho), and in evaluation mode the
            layer's outputs have the standard deviation 1 / sqrt(1 - rho) over all data, not 1.
Setting     a real `nn.BatchNorm1d` on three streams. Clips: the frames of a batch share a part of the variance, rho. A
            process with x_t = phi x_{t-1} + noise in batches of m neighbours, rho = mean of phi^|i - j| over pairs. A
            video in which handwritten digits fade into one another, sixteen frames each; its rho is that of all pairs
            of frames as far apart, over the whole video.
Band        batches of clips and of the process: none, the law is exact. The outputs' standard deviation rests on
            estimated variances, the video on statistics of finitely many frames: 1 %.
Reading     the solid line is the law, points what the layer recorded. The same video with its frames shuffled is back
            at 1.
References  Ioffe and Szegedy (2015), Batch normalization, ICML; Cochran (1977), Sampling techniques, Wiley, for the
            variance inside clusters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P09",)
CHANNELS = 64
RHOS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
SIZES = (2, 4, 8, 16, 32, 64)
PHI = 0.95
VIDEO, FADE = 16, 16
"""Frames of a batch of the video, frames from one digit to the next."""


def run(trial: Trial) -> Result:
    """What batch norm records of clips, of a process, and of a video."""
    seeds = trial.seeds(24, 48)
    batches = trial.pick(50, 200)
    claims, clips, outputs = [], list[Series](), list[Series]()
    for m in (4, 32):
        told = torch.tensor([[_clips(rho, m, batches, seed) for rho in RHOS] for seed in seeds])
        mean, error = _mean(told[..., 0])
        law = [(1 - rho) * (m - 1) / m for rho in RHOS]
        claims.append(Claim.curve(f"variance of a batch of {m} frames of one clip", RHOS, law, mean, error))
        clips += _both(f"batches of {m}", RHOS, law, mean, error)
        if m == 32:
            mean, error = _mean(told[..., 1])
            law = [1 / math.sqrt(1 - rho) for rho in RHOS]
            claims.append(Claim.curve("std of the outputs in evaluation mode", RHOS, law, mean, error, within=0.01))
            fine = [i / 100 for i in range(96)]
            outputs = [
                Series("batches of 32", fine, [1 / math.sqrt(1 - rho) for rho in fine], kind="law"),
                Series("batches of 32", RHOS, mean, error),
            ]
    told = torch.tensor([[_process(m, batches, seed) for m in SIZES] for seed in seeds])
    mean, error = _mean(told)
    law = [(1 - _pairs(m)) * (m - 1) / m for m in SIZES]
    claims.append(Claim.curve(f"variance of m neighbours of a process, phi {PHI}", SIZES, law, mean, error))
    every = range(2, SIZES[-1] + 1)
    process = [
        Series("neighbours", every, [(1 - _pairs(m)) * (m - 1) / m for m in every], kind="law"),
        Series("neighbours", SIZES, mean, error),
        Series("independent", every, [(m - 1) / m for m in every], kind="reference"),
    ]
    claims += _video(seeds)
    panels = (
        Panel("what a batch of one clip records", "correlation rho", "variance / true variance", tuple(clips)),
        Panel("the layer in evaluation mode", "correlation rho", "std of its outputs", tuple(outputs)),
        Panel("neighbours of a process", "batch size", "variance / true variance", tuple(process), log_x=True),
    )
    return Result(tuple(claims), panels, seeds)


def _both(name: str, x: tuple[float, ...], law: list[float], mean: list[float], error: list[float]) -> list[Series]:
    return [Series(name, x, law, kind="law"), Series(name, x, mean, error)]


def _mean(values: Tensor) -> tuple[list[float], list[float]]:
    return values.mean(0).tolist(), (values.std(0) / math.sqrt(len(values))).tolist()


def _recorded(batches: Tensor) -> tuple[nn.BatchNorm1d, float]:
    """The layer after a pass over (batches, m, channels), and the mean biased variance that it normalised by."""
    layer = nn.BatchNorm1d(batches.shape[2], momentum=None, affine=False, eps=1e-12).double()
    for batch in batches:
        layer(batch)
    assert layer.running_var is not None
    m = batches.shape[1]
    return layer.eval(), float(layer.running_var.mean()) * (m - 1) / m


def _clips(rho: float, m: int, batches: int, seed: int) -> tuple[float, float]:
    """Recorded variance, and the std of the outputs of independent frames in evaluation mode."""
    torch.manual_seed(seed)
    clip = torch.randn(batches, 1, CHANNELS, dtype=torch.float64)
    frames = math.sqrt(rho) * clip + math.sqrt(1 - rho) * torch.randn(batches, m, CHANNELS, dtype=torch.float64)
    layer, recorded = _recorded(frames)
    return recorded, float(layer(torch.randn(4096, CHANNELS, dtype=torch.float64)).std(0).mean())


def _pairs(m: int) -> float:
    """Mean of phi^|i - j| over the pairs of m neighbours."""
    return sum(2 * (m - d) * PHI**d for d in range(1, m)) / (m * (m - 1))


def _process(m: int, batches: int, seed: int) -> float:
    torch.manual_seed(seed)
    frames = [torch.randn(batches, CHANNELS, dtype=torch.float64)]
    for _ in range(m - 1):
        frames.append(PHI * frames[-1] + math.sqrt(1 - PHI**2) * torch.randn(batches, CHANNELS, dtype=torch.float64))
    return _recorded(torch.stack(frames, 1))[1]


def _video(seeds: tuple[int, ...]) -> list[Claim]:
    """What the layer records of neighbouring frames and of shuffled ones, over the true variance."""
    drawn = torch.tensor([_faded(seed) for seed in seeds])
    (law, seen, shuffled), (_, error, loose) = _mean(drawn)
    gap = float((drawn[:, 1] - drawn[:, 0]).std()) / math.sqrt(len(seeds))
    return [
        Claim.equal(f"variance of {VIDEO} frames of a video / that of all frames", law, seen, gap, within=0.01),
        Claim.equal("the same, frames shuffled", (VIDEO - 1) / VIDEO, shuffled, loose, within=0.01),
        Claim.below("neighbouring frames / shuffled ones", 1.0, seen / shuffled, error),
    ]


def _faded(seed: int) -> tuple[float, float, float]:
    """The law from the pairs' correlation, the recorded variance, that of shuffled frames; all over the true one."""
    from sklearn.datasets import load_digits

    chance = torch.Generator().manual_seed(seed)
    images = torch.tensor(load_digits().data, dtype=torch.float64)
    images = images[torch.randperm(len(images), generator=chance)[:401]]
    share = torch.arange(FADE, dtype=torch.float64)[:, None] / FADE
    frames = ((1 - share) * images[:-1, None] + share * images[1:, None]).flatten(0, 1)
    frames = frames[:, frames.std(0) > 0.1]
    frames = (frames - frames.mean(0)) / frames.std(0, correction=0)
    steps = len(frames)
    rho = 0.0
    for d in range(1, VIDEO):  # correlation at a distance, from all pairs so far apart
        rho += 2 * (VIDEO - d) * float((frames[d:] * frames[:-d]).mean()) / (VIDEO * (VIDEO - 1))
    # batches start anywhere: every run of neighbours counts once
    starts = torch.randint(steps - VIDEO + 1, (400,), generator=chance)
    _, neighbours = _recorded(frames[starts[:, None] + torch.arange(VIDEO)])
    _, shuffled = _recorded(frames[torch.randint(steps, (400, VIDEO), generator=chance)])
    return (1 - rho) * (VIDEO - 1) / VIDEO, neighbours, shuffled
