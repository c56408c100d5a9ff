"""`two-uncertainties`: noise of the data stays with more data and is seen by every member, ignorance goes and is not.

Law         Var y = E[Var(y | member)] + Var E[y | member]: aleatoric and epistemic. For a linear model on features f(x)
            with a normal prior of precision a and noise s^2, members drawn from the posterior disagree by
            f(x)' (a + F'F / s^2)^-1 f(x), which grows to |f(x)|^2 / a away from the data and falls as 1 / n among them.
            For classes H(mean p) = E H(p) + I: for members from a Dirichlet law of counts c all three are sums of
            digammas.
Setting     48 Fourier features of one number; every member fits its own perturbed targets and prior, which draws from
            the posterior exactly, and `decompose` sees 256 of them. Then ensembles of five nets with a mean and a
            variance, on sin(2x) with noise of 0.05 left and 0.3 right of zero and no data beyond 2. Last, ensembles on
            handwritten digits, asked about digits and about their negatives.
Band        none for linear models and the expected entropy. The jackknife takes the bias of order 1 / M off the mutual
            information of M = 8 members, and leaves 1 / M^2. For nets the law says the sign only.
Reading     members of linear models agree where data are (-1 to 1), the more the more there are, and disagree by the
            prior elsewhere. Of five nets the aleatoric part follows the noise that the data were drawn with, its line,
            and the epistemic part rises where there are none.
References  Kendall, Gal (2017), What uncertainties do we need in Bayesian deep learning for computer vision? NeurIPS;
            Papandreou, Yuille (2011), Perturb-and-MAP random fields, ICCV, for drawing by perturbed fits;
            Lakshminarayanan, Pritzel, Blundell (2017), Simple and scalable predictive uncertainty estimation, NeurIPS.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gaussian_nll_loss

from tightrope.instruments.uncertainty import decompose, uncertainty
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P18",)
FEATURES, NOISE, PRIOR = 48, 0.3, 1.0
SIZES = (10, 40, 160, 640)
MEMBERS = 256
QUIET, NOISY = 0.05, 0.3
DIRICHLET = (2.0, 3.0, 5.0)


def run(trial: Trial) -> Result:
    """The posterior of linear models, members of a Dirichlet law, and ensembles of nets."""
    seeds = trial.seeds(20, 60)
    claims, panels = _posterior(seeds)
    net_claims, panel = _nets(seeds[: trial.pick(4, 12)], trial.pick(250, 600))
    digits = _digits(seeds[: trial.pick(4, 12)])
    return Result((*claims, *_dirichlet(seeds), *net_claims, *digits), (*panels, panel), seeds)


def _mean(values: Tensor) -> tuple[list[float], list[float]]:
    return values.mean(0).tolist(), (values.std(0) / math.sqrt(len(values))).tolist()


def _posterior(seeds: tuple[int, ...]) -> tuple[list[Claim], list[Panel]]:
    """Spread of members over x, and in the middle of the data over their number."""
    chance = torch.Generator().manual_seed(1)
    w, b = (
        torch.randn(FEATURES, generator=chance).double(),
        2 * math.pi * torch.rand(FEATURES, generator=chance).double(),
    )
    places = torch.linspace(-4, 4, 9, dtype=torch.float64)
    fine = torch.linspace(-4, 4, 81, dtype=torch.float64)

    def features(x: Tensor) -> Tensor:
        return math.sqrt(2 / FEATURES) * torch.cos(2 * x[:, None] * w + b)

    series, middle = list[Series](), list[tuple[float, float, float]]()
    claims = []
    for n in SIZES:
        x = torch.rand(n, generator=chance).double() * 2 - 1
        seen = features(x)
        covariance = torch.linalg.inv(PRIOR * torch.eye(FEATURES) + seen.T @ seen / NOISE**2)
        law = [((features(at) @ covariance) * features(at)).sum(1) for at in (places, fine)]
        told = torch.stack([_members(seen, features(places), covariance, seed) for seed in seeds])
        mean = told.mean(0).tolist()
        # the relative error is the same at every place: from all of them
        share = float((told.std(0) / told.mean(0)).square().mean().sqrt()) / math.sqrt(len(seeds))
        error = [share * m for m in mean]
        at = [f"x = {p:g}" for p in places]
        claims.append(Claim.curve(f"epistemic variance, {n} samples", at, law[0].tolist(), mean, error))
        middle.append((float(law[0][4]), mean[4], error[4]))
        if n in (SIZES[0], SIZES[2]):
            stds = [math.sqrt(v) for v in mean]
            bars = [e / (2 * s) for e, s in zip(error, stds, strict=True)]
            series += [Series(f"{n} samples", fine.tolist(), law[1].sqrt().tolist(), kind="law")]
            series += [Series(f"{n} samples", places.tolist(), stds, bars)]
    series.append(Series("noise", (-4, 4), (NOISE, NOISE), kind="reference"))
    growth = (
        Series("epistemic", SIZES, [m[0] for m in middle], kind="law"),
        Series("epistemic", SIZES, [m[1] for m in middle], [m[2] for m in middle]),
        Series("noise", SIZES, [NOISE**2] * len(SIZES), kind="reference"),
    )
    return claims, [
        Panel("members of a linear model; data from -1 to 1", "x", "epistemic std", tuple(series)),
        Panel("amid the data", "samples", "variance", growth, True, True),
    ]


def _members(seen: Tensor, asked: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Epistemic variance of models that fit perturbed targets and a perturbed prior."""
    torch.manual_seed(seed)
    truth = torch.randn(FEATURES, dtype=torch.float64) / math.sqrt(PRIOR)
    targets = seen @ truth + NOISE * torch.randn(len(seen), dtype=torch.float64)
    prior = torch.randn(MEMBERS, FEATURES, dtype=torch.float64) / math.sqrt(PRIOR)
    perturbed = targets + NOISE * torch.randn(MEMBERS, len(seen), dtype=torch.float64)
    weights = (PRIOR * prior + perturbed @ seen / NOISE**2) @ covariance
    return decompose(weights @ asked.T, head="mean", noise=NOISE**2).epistemic.value


def _dirichlet(seeds: tuple[int, ...]) -> list[Claim]:
    """Expected entropy and mutual information from 8 members of each of 2,000 samples."""
    counts = torch.tensor(DIRICHLET, dtype=torch.float64)
    share = counts / counts.sum()
    expected = float((share * (torch.digamma(counts.sum() + 1) - torch.digamma(counts + 1))).sum())
    information = float(torch.special.entr(share).sum()) - expected
    drawn = []
    for seed in seeds:
        torch.manual_seed(seed)
        parts = decompose(torch.distributions.Dirichlet(counts).sample((8, 2000)), head="probabilities").entropy
        assert parts is not None
        drawn.append([parts.aleatoric.average, parts.epistemic.average])
    mean, error = _mean(torch.tensor(drawn, dtype=torch.float64))
    # the jackknife takes the bias of order 1 / M; what is left is of order 1 / M^2
    return [
        Claim.equal("expected entropy of Dirichlet members, nats", expected, mean[0], error[0]),
        Claim.equal("their mutual information, from 8 of them", information, mean[1], error[1], within=1 / 64),
    ]


def _nets(seeds: tuple[int, ...], steps: int) -> tuple[list[Claim], Panel]:
    """Ensembles of five nets with a mean and a log variance."""
    places = torch.linspace(-4, 4, 25)
    aleatoric, epistemic = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        x = torch.rand(500, 1) * 4 - 2
        y = torch.sin(2 * x) + torch.where(x > 0, NOISY, QUIET) * torch.randn(500, 1)
        models = [_heteroscedastic(x, y, steps) for _ in range(5)]
        found = uncertainty(models, places[:, None], head="log-variance")
        assert found.aleatoric is not None
        aleatoric.append(found.aleatoric.value[:, 0])
        epistemic.append(found.epistemic.value[:, 0])
    noise, spread = torch.stack(aleatoric).log(), torch.stack(epistemic).log()
    left, right = (places > -2) & (places < -0.3), (places > 0.3) & (places < 2)
    inside, outside = (places.abs() < 2), (places.abs() > 3)
    ratios = {
        "log epistemic variance, beyond the data / among them": spread[:, outside].mean(1) - spread[:, inside].mean(1),
        "log aleatoric variance, noisy / quiet half": noise[:, right].mean(1) - noise[:, left].mean(1),
    }
    claims = [Claim.above(text, 0.0, float(r.mean()), float(r.std()) / math.sqrt(len(r))) for text, r in ratios.items()]
    curves = [Series("aleatoric", (-2.0, -0.001, 0.001, 2.0), (QUIET, QUIET, NOISY, NOISY), kind="law")]
    for name, logs in (("aleatoric", noise), ("epistemic", spread)):
        mean, error = _mean(logs / 2)
        stds = [math.exp(m) for m in mean]
        curves.append(Series(name, places.tolist(), stds, [s * e for s, e in zip(stds, error, strict=True)]))
    return claims, Panel("five nets; data from -2 to 2", "x", "std", tuple(curves), log_y=True)


def _heteroscedastic(x: Tensor, y: Tensor, steps: int) -> nn.Module:
    net = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        mean, log_variance = net(x).chunk(2, -1)
        loss = gaussian_nll_loss(mean, y, log_variance.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def _digits(seeds: tuple[int, ...]) -> list[Claim]:
    """Mutual information of ensembles on digits that they were not fitted to, and on their negatives."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 8 - 1, torch.tensor(data.target)
    gains = []
    for seed in seeds:
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        fitted, kept = order[:1200], order[1200:]
        models = []
        for _ in range(5):
            net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
            optimizer = torch.optim.Adam(net.parameters(), 5e-3)
            for _ in range(40):
                loss = cross_entropy(net(x[fitted]), y[fitted])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            models.append(net)
        known, foreign = (uncertainty(models, z, head="logits").entropy for z in (x[kept], -x[kept]))
        assert known is not None and foreign is not None
        gains.append(foreign.epistemic.average - known.epistemic.average)
    gain = torch.tensor(gains)
    text = "mutual information on negatives of digits less that on digits, nats"
    return [Claim.above(text, 0.0, float(gain.mean()), float(gain.std()) / math.sqrt(len(gain)))]
