"""`depth-vs-width`: composition multiplies the linear pieces of a net, width adds to them.

Law         one layer of n ReLU has at most n + 1 linear regions on a line; layers of n_1 ... n_L have up to
            (n_1 + 1) ... (n_L + 1). The tent map composed with itself L times has 2^L pieces with two units a layer. A
            layer of n units bends in n places, so that of its 2^(L - 1) teeth all but n are crossed by a line, whose
            mean square error there is at least 1 / 12: no weights bring it below (1 - 2n / 2^L) / 12.
Setting     `tightrope.expressivity` counts every region on a segment: of composed tents, of a layer with as many units
            whose bends all lie inside, and of random nets of 64 units in 1 to 8 layers. The tent of 64 pieces is
            approached by one layer with its bends at the target's own and the best outer weights. Then nets of 1 and
            of 3 layers with 1000 parameters learn a tree of eight inputs, x -> cos(2a + b) of pairs, three times over.
Band        counts and bounds are exact.
Reading     12 units in six layers have 64 pieces, 12 in one have 13; a wide layer has its error until it has about as
            many units as the target has pieces. Random nets make about as many regions as they have units, whatever
            their depth: what depth could do has to be learnt.
References  Montúfar, Pascanu, Cho, Bengio (2014), On the number of linear regions of deep neural networks, NeurIPS;
            Telgarsky (2016), Benefits of depth in neural networks, COLT; Hanin, Rolnick (2019), Complexity of linear
            regions in deep networks, ICML; Poggio et al. (2017), Why and when can deep networks avoid the curse of
            dimensionality, International Journal of Automation and Computing 14.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tightrope.instruments import expressivity
from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P28",)
UNIT = torch.tensor([[0.0], [1.0]])
TEETH = 6
"""Compositions of the tent that is to be approached: 64 pieces."""
BUDGET, STEPS = 1000, 1000
"""Parameters of the nets that learn, and their steps."""


def run(trial: Trial) -> Result:
    """Counts of regions, the error of one layer beside its bound, and of shallow and deep nets of one size."""
    depths = range(1, trial.pick(10, 13))
    tents = [expressivity(_tent(depth), UNIT) for depth in depths]
    wides = [expressivity(_wide(2 * depth), UNIT) for depth in depths]
    at = [f"{d} layers" for d in depths]
    none = [0.0] * len(at)
    units = [4, 8, 12, 16, 24, 31, 40, 48, 56, 64]
    bounds = [max(1 - 2 * n / 2**TEETH, 0.0) / 12 for n in units]
    errors = [_best(n) for n in units]
    tightest = min(range(len(units) - 4), key=lambda i: errors[i] - bounds[i])
    ratios = torch.tensor([_learnt(1, seed) / _learnt(3, seed) for seed in trial.seeds(3, 12)]).log10()
    shares = _random(trial)
    claims = (
        Claim.curve("pieces of the composed tent", at, [2.0**d for d in depths],
                    [float(t.pieces or 0) for t in tents], none),
        Claim.curve("regions of one layer with as many units", at, [2.0 * d + 1 for d in depths],
                    [float(w.regions) for w in wides], none),
        Claim.above(f"mean square error of one layer of {units[tightest]} units on 64 pieces", bounds[tightest],
                    errors[tightest]),
        Claim.below("mean square error of 12 units in six layers", 1e-12, _error(_tent(TEETH))),
        Claim.below("regions of random nets over their bound, the largest share", 1.0, max(s[1] for s in shares)),
        Claim.above("log10 of the shallow net's error over the deep one's, 1000 parameters", 0.0, float(ratios.mean()),
                    float(ratios.std() / math.sqrt(len(ratios)))),
    )  # fmt: skip
    counted = [2 * d for d in depths]
    panels = (
        Panel("regions on a line", "units", "regions", (
            Series("two units a layer", counted, [2.0**d for d in depths], kind="law"),
            Series("two units a layer", counted, [float(t.regions) for t in tents]),
            Series("one layer", counted, [2.0 * d + 1 for d in depths], kind="law"),
            Series("one layer", counted, [float(w.regions) for w in wides]),
        ), log_y=True),
        Panel("64 pieces by one layer", "units", "mean square error", (
            Series("lower bound", units, bounds, kind="law"), Series("best outer weights", units, errors),
        )),
        Panel("random nets of 64 units", "layers", "regions on a segment", (
            Series("", [s[0] for s in shares], [s[2] for s in shares], [s[3] for s in shares]),
        )),
    )  # fmt: skip
    return Result(claims, panels, trial.seeds(3, 12))


def _tent(depth: int) -> nn.Sequential:
    """The tent map composed with itself: 2 relu(x) - 4 relu(x - 1/2) in each layer."""
    parts: list[nn.Module] = []
    for turn in range(depth):
        enter = nn.Linear(2 if turn else 1, 2)
        with torch.no_grad():
            enter.weight.copy_(torch.tensor([[2.0, -4.0]] * 2) if turn else torch.ones(2, 1))
            enter.bias.copy_(torch.tensor([0.0, -0.5]))
        parts += [enter, nn.ReLU()]
    leave = nn.Linear(2, 1)
    with torch.no_grad():
        leave.weight.copy_(torch.tensor([[2.0, -4.0]]))
        leave.bias.zero_()
    return nn.Sequential(*parts, leave)


def _wide(units: int) -> nn.Sequential:
    """One layer whose bends all lie inside the unit segment."""
    enter = nn.Linear(1, units)
    with torch.no_grad():
        enter.weight.fill_(1.0)
        enter.bias.copy_(-(torch.arange(units) + 0.5) / units)
    return nn.Sequential(enter, nn.ReLU(), nn.Linear(units, 1))


def _grid() -> tuple[Tensor, Tensor]:
    """Points between the bends of the target, and the target there."""
    x = (torch.arange(64 * 2**TEETH, dtype=torch.float64) + 0.5) / (64 * 2**TEETH)
    y = x
    for _ in range(TEETH):
        y = 1 - (2 * y - 1).abs()
    return x, y


def _error(model: nn.Module) -> float:
    x, y = _grid()
    with torch.no_grad():
        found: Tensor = model.double()(x[:, None])[:, 0]
    return float((found - y).square().mean())


def _best(units: int) -> float:
    """Error of a layer that follows the target as far as it has bends, with the best outer weights."""
    x, y = _grid()
    bends = torch.arange(1, units + 1, dtype=torch.float64) / 2**TEETH
    features = torch.cat([torch.ones_like(x)[:, None], x[:, None], (x[:, None] - bends.clamp(max=1)).relu()], 1)
    weights = torch.linalg.lstsq(features, y[:, None], driver="gelsd").solution
    return float(((features @ weights)[:, 0] - y).square().mean())


def _random(trial: Trial) -> list[tuple[int, float, float, float]]:
    """Layers, largest share of the bound, mean number of regions and its error, of random nets of 64 units."""
    found = []
    for layers in (1, 2, 4, 8):
        counts, share = [], 0.0
        for seed in trial.seeds(16, 40):
            torch.manual_seed(seed)
            width = 64 // layers
            parts = [m for i in range(layers) for m in (nn.Linear(width if i else 8, width), nn.ReLU())]
            for m in parts:
                if isinstance(m, nn.Linear):
                    nn.init.kaiming_normal_(m.weight)
                    nn.init.normal_(m.bias, std=0.5)
            told = expressivity(nn.Sequential(*parts, nn.Linear(width, 1)), 3 * torch.randn(2, 8))
            counts.append(float(told.regions))
            share = max(share, told.regions / told.bound)
        values = torch.tensor(counts)
        found.append((layers, share, float(values.mean()), float(values.std() / math.sqrt(len(values)))))
    return found


def _tree(x: Tensor) -> Tensor:
    while x.shape[1] > 1:
        x = torch.cos(2 * x[:, ::2] + x[:, 1::2])
    return x


def _learnt(layers: int, seed: int) -> float:
    """Test error of a net of so many layers and about `BUDGET` parameters on the tree of pairs."""
    torch.manual_seed(seed)
    width = next(w for w in range(1, BUDGET) if 9 * w + (layers - 1) * w * (w + 1) + w + 1 >= BUDGET)
    parts = [m for i in range(layers) for m in (nn.Linear(width if i else 8, width), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(width, 1))
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(6000, 8, generator=generator) - 1
    y = _tree(x)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    for step in range(STEPS):
        which = torch.arange(128) + 128 * step
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[which % 4000]), y[which % 4000]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(nn.functional.mse_loss(model(x[4000:]), y[4000:]))
