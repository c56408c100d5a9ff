"""`stochastic-depth`: a branch that is dropped at random leaves x + p F(x) on average, which inference has to compute.

Law         with a gate b that is 1 with probability p, a training pass computes x + b F(x), of mean x + p F(x) and
            variance p (1 - p) F(x)^2. Inference with p F(x) continues that mean, inference with F(x) is off by
            (1 - p) F(x). Of a net of linear blocks the means multiply, so that inference is the mean of the whole; its
            energy is not: with branches of E[F^2] = v E[x^2], L blocks have (1 + p v)^L of it in training and
            (1 + p^2 v)^L at inference.
Setting     `nn.StochasticDepth` behind linear branches and behind one with a tanh, many training passes beside one of
            inference, p from 0.1 to 0.9; then nets of eight blocks that train on scikit-learn's digits at p = 0.5.
Band        exact but for the passes and the draws of weights; the variance of a gate that is estimated from m passes is
            off by 1 / m. The forecast takes the inputs as standard normal: 2 per cent for a batch of 4096.
Reading     lines are the law. A net that is read without p, as weights of the other convention are by mistake, is worse
            than the one that it was trained to be.
References  Huang, Sun, Liu, Sedra and Weinberger (2016), Deep networks with stochastic depth, ECCV, section 3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial
from tightrope.nn import StochasticDepth
from tightrope.step import predict

PRINCIPLES = ("P27",)
KEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
WIDTH, BLOCKS, STEPS, HELD = 64, 8, 120, 600
KEPT = 0.5
"""p of the nets."""
MODES = {"training": KEPT, "inference": KEPT**2}
"""Energy that a block adds, over what there is, with branches of v = 1."""


class Block(nn.Module):
    """x + b F(x)."""

    def __init__(self, keep: float, *, tanh: bool = False) -> None:
        super().__init__()
        self.branch = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.normal_(self.branch.weight, std=1 / math.sqrt(WIDTH))
        self.inner = nn.Tanh() if tanh else nn.Identity()
        self.drop = StochasticDepth(1 - keep)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        y: Tensor = x + self.drop(self.branch(self.inner(x)))
        return y


def run(trial: Trial) -> Result:
    """Means and variances of one block, energies of nets, and a training."""
    seeds, passes = trial.seeds(4, 12), trial.pick(4000, 40_000)
    single = torch.tensor([[_block(keep, seed, passes) for keep in KEEP] for seed in seeds])
    mean, error = single.mean(0), single.std(0) / math.sqrt(len(seeds))
    none, drawn = [0.0] * len(KEEP), passes * len(seeds)
    for n, p in enumerate(KEEP):  # at least the spread of so many gates
        error[n, 0] = max(float(error[n, 0]), math.sqrt(p * (1 - p) / drawn))
        error[n, 1] = max(float(error[n, 1]), abs(1 - 2 * p) * math.sqrt(p * (1 - p) / drawn))
    claims = [
        Claim.curve("slope of the mean pass on F(x), p", KEEP, KEEP, mean[:, 0].tolist(), error[:, 0].tolist()),
        Claim.curve("variance of a pass over F(x)^2, p", KEEP, [p * (1 - p) for p in KEEP], mean[:, 1].tolist(),
                    error[:, 1].tolist(), absolute=1 / passes),
        Claim.curve("inference minus x, over F(x), p", KEEP, KEEP, mean[:, 2].tolist(), none, absolute=1e-5),
        Claim.curve("mean square of a pass by the forecast, over that measured, p", KEEP, [1.0] * len(KEEP),
                    mean[:, 3].tolist(), error[:, 3].tolist(), within=0.02),
    ]  # fmt: skip
    nets = trial.pick(500, 3000)
    energies = {mode: torch.cat([_energies(mode == "training", seed, nets) for seed in seeds]) for mode in MODES}
    at = list(range(BLOCKS + 1))
    laws = {mode: [(1 + factor) ** n for n in at] for mode, factor in MODES.items()}
    for mode, table in energies.items():
        error_of = (table.std(0) / math.sqrt(len(table))).tolist()
        claims.append(Claim.curve(f"energy in {mode}, block", at, laws[mode], table.mean(0).tolist(), error_of))
    whole = torch.tensor([_whole(seed, passes) for seed in seeds])
    claims.append(Claim.equal("linear net: mean of its passes along inference", 1.0, *_number(whole)))
    losses = torch.tensor([_train(seed) for seed in trial.seeds(10, 20)])
    worse = losses[:, 1] - losses[:, 0]
    claims.append(Claim.above("loss of a trained net read without p minus with p", 0.0, *_number(worse)))
    return Result(tuple(claims), _panels(mean, error, laws, energies, losses), trial.seeds(10, 20))


def _number(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _along(y: Tensor, f: Tensor) -> float:
    """Coefficient of y on f."""
    return float((y * f).sum() / (f * f).sum())


def _block(keep: float, seed: int, passes: int) -> tuple[float, float, float, float]:
    """Coefficient on F(x) of the mean pass, its variance over F^2, the coefficient of inference, and the forecast."""
    torch.manual_seed(seed)
    block = Block(keep, tanh=True)
    x = torch.randn(1, WIDTH)
    with torch.no_grad():
        f = block.branch(block.inner(x))
        found = block(x.expand(passes, -1)) - x
        inference = block.eval()(x) - x
        block.train()
        batch = torch.randn(4096, WIDTH)
        energy = float(block(batch).square().mean())
    forecast = predict(block, batch)
    told = forecast.laws[next(e.outputs[0] for e in forecast.tape.entries if e.op == "add")].second_moment
    return _along(found.mean(0), f[0]), _along(found.var(0), f[0].square()), _along(inference, f), told / energy


def _energies(training: bool, seed: int, nets: int) -> Tensor:
    """Mean square along nets of linear blocks, over that of the input; shape (draws of weights and gates, blocks)."""
    torch.manual_seed(seed)
    x = torch.randn(nets, 4, WIDTH)
    drop = StochasticDepth(1 - KEPT).train(training)  # a gate a net
    course = [x.square().mean((1, 2))]
    for _ in range(BLOCKS):
        x = x + drop(x @ torch.randn(nets, WIDTH, WIDTH) / math.sqrt(WIDTH))
        course.append(x.square().mean((1, 2)))
    return torch.stack(course, 1) / course[0].unsqueeze(1)


def _whole(seed: int, passes: int) -> float:
    """Coefficient of the mean pass of a net of linear blocks on its inference."""
    torch.manual_seed(seed)
    net = nn.Sequential(*(Block(KEPT) for _ in range(BLOCKS)))
    x = torch.randn(1, WIDTH)
    with torch.no_grad():
        return _along(net(x.expand(5 * passes, -1)).mean(0), net.eval()(x)[0])


def _train(seed: int) -> tuple[float, float]:
    """Held-out loss of a net trained with dropped blocks, read with p and without."""
    from sklearn.datasets import load_digits

    torch.manual_seed(seed)
    data = load_digits()
    order = torch.randperm(len(data.target))
    x, y = torch.tensor(data.data, dtype=torch.float32)[order] / 8 - 1, torch.tensor(data.target)[order]
    net = nn.Sequential(*(Block(KEPT, tanh=True) for _ in range(BLOCKS)), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(STEPS):
        rows = HELD + torch.randperm(len(y) - HELD)[:64]
        loss = F.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = []
    with torch.no_grad():
        for drop in (1 - KEPT, 0.0):
            for part in net.eval().modules():
                if isinstance(part, StochasticDepth):
                    part.drop = drop
            found.append(float(F.cross_entropy(net(x[:HELD]), y[:HELD])))
    return found[0], found[1]


def _panels(
    mean: Tensor, error: Tensor, laws: dict[str, list[float]], energies: dict[str, Tensor], losses: Tensor
) -> tuple[Panel, ...]:
    first = (
        Series("mean of the passes", KEEP, KEEP, kind="law"),
        Series("mean of the passes", KEEP, mean[:, 0].tolist(), error[:, 0].tolist()),
        Series("inference", [p + 0.012 for p in KEEP], mean[:, 2].tolist()),
        Series("inference without p", KEEP, [1.0] * len(KEEP), kind="reference"),
    )
    fine = [n / 40 for n in range(2, 39)]
    spread = (
        Series("", fine, [p * (1 - p) for p in fine], kind="law"),
        Series("", KEEP, mean[:, 1].tolist(), error[:, 1].tolist()),
    )
    along = []
    for mode, table in energies.items():
        along += [
            Series(mode, range(BLOCKS + 1), laws[mode], kind="law"),
            Series(mode, range(BLOCKS + 1), table.mean(0).tolist(), (table.std(0) / math.sqrt(len(table))).tolist()),
        ]
    at = [0.0, 1.0]
    read = (Series("", at, losses.mean(0).tolist(), (losses.std(0) / math.sqrt(len(losses))).tolist()),)
    return (
        Panel("what is added to x", "p", "share of F(x)", first),
        Panel("spread of a pass", "p", "variance over F(x)^2", spread),
        Panel("linear blocks, p = 0.5", "block", "mean square over the input's", tuple(along), log_y=True),
        Panel("digits, trained with p = 0.5", "", "held-out loss", read, ticks=("read with p", "read without p")),
    )
