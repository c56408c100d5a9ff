"""`moving-target`: what a layer reads moves with the layers below, and a normaliser pins it to a law of its own.

Law         behind batch norm every unit has the mean beta and the standard deviation gamma over the batch, whatever the
            layers below do: the law that the next layer reads moves by (beta(t) - beta(0)) / gamma(0) and by nothing
            else. A factor k on the weights of the first layer reaches the inputs of all layers above as the factor k in
            a ReLU net without biases, and as 1 behind batch or layer norm.
Setting     a classifier of handwritten digits, 64-64-64-64-10 with ReLU, trained by gradient descent, plain, with batch
            norm, and with layer norm, from the same weights and on the same batches. The first layer of fresh nets is
            then multiplied by k.
Band        the eps of 1e-5 that the normalisers add to variances of a hundredth and more: a thousandth.
Reading     left: how far the mean of a unit has moved from its place at the start, in its standard deviations there;
            the line is what beta alone moves it by. Right: the input of the last layer after the first one's weights
            were multiplied.
References  Ioffe, Szegedy (2015), Batch normalization, ICML; Santurkar, Tsipras, Ilyas, Madry (2018), How does batch
            normalization help optimization?, NeurIPS, who find that this shift is not why it helps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tightrope.lab.experiment import Claim, Panel, Result, Series, Trial

PRINCIPLES = ("P11",)
WIDTH, LAYERS, RATE, BATCH = 64, 3, 0.1, 128
KINDS = ("plain", "batch norm", "layer norm")
FACTORS = (0.3, 1.0, 3.0, 10.0)


def run(trial: Trial) -> Result:
    """Drift along training with and without a normaliser, and the answer to a shock below."""
    seeds = trial.seeds(6, 20)
    x, y = _digits()
    steps = trial.pick(120, 300)
    every = steps // 12
    at = list(range(0, steps + 1, every))
    drawn = {kind: torch.stack([_trained(kind, x, y, steps, every, seed) for seed in seeds]) for kind in KINDS}
    curves, last = list[Series](), {}
    for kind in KINDS:
        mean, error = _mean(drawn[kind][:, 0])
        last[kind] = drawn[kind][:, 0, -1].log()
        if kind == "batch norm":
            law = drawn[kind][:, 1].mean(0).tolist()
            apart = drawn[kind][:, 0] - drawn[kind][:, 1]
            curves.append(Series(kind, at, law, kind="law"))
            gap = apart.abs().max(0).values.tolist()
            told = [m + g for m, g in zip(law, gap, strict=True)]  # the seed that agrees worst
            text = "shift behind batch norm, all seeds, beside that of beta"
            claims = [
                Claim.curve(text, [f"step {i}" for i in at[1:]], law[1:], told[1:], [0.0] * len(told[1:]), within=1e-3)
            ]
        curves.append(Series(kind, at, mean, error))
    for kind in KINDS[1:]:
        ratio = last["plain"] - last[kind]
        text = f"log of the shift after {steps} steps, plain / {kind}"
        claims.append(Claim.above(text, 0.0, float(ratio.mean()), float(ratio.std()) / math.sqrt(len(ratio))))
    shocks = list[Series]()
    for kind in KINDS:
        law = [k if kind == "plain" else 1.0 for k in FACTORS]
        mean, error = _mean(torch.stack([_shocked(kind, x[:512], seed) for seed in seeds]))
        text = f"std of the last layer's input, first layer times k, {kind}"
        claims.append(Claim.curve(text, [f"k = {k:g}" for k in FACTORS], law, mean, error, within=1e-3))
        if kind != "layer norm":
            shocks += [Series(kind, FACTORS, law, kind="law"), Series(kind, FACTORS, mean, error)]
    panels = (
        Panel(
            "inputs of the layers while the net trains", "step", "shift of the mean / std at the start", tuple(curves)
        ),
        Panel("first layer times k", "k", "std of the last layer's input, after / before", tuple(shocks), True, True),
    )
    return Result(tuple(claims), panels, seeds)


def _mean(values: Tensor) -> tuple[list[float], list[float]]:
    return values.mean(0).tolist(), (values.std(0) / math.sqrt(len(values))).tolist()


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


class Net(nn.Module):
    """Hidden layers with their normalisers; keeps what the normalisers (or, without them, the layers) put out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64 if i == 0 else WIDTH, WIDTH, bias=False) for i in range(LAYERS))
        self.head = nn.Linear(WIDTH, 10)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")
        made = {"plain": nn.Identity, "batch norm": nn.BatchNorm1d, "layer norm": nn.LayerNorm}[kind]
        self.norms = nn.ModuleList(made(WIDTH) for _ in range(LAYERS))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x))
            self.seen.append(x.detach())
            x = torch.relu(x)
        out: Tensor = self.head(x)
        return out


def _trained(kind: str, x: Tensor, y: Tensor, steps: int, every: int, seed: int) -> Tensor:
    """Shift of the units' means since the start, measured, and by beta alone; rms over units and layers; (2, times)."""
    torch.manual_seed(seed)
    net = Net(kind)
    torch.manual_seed(seed)  # the same batches for all kinds
    optimizer = torch.optim.SGD(net.parameters(), RATE)
    start: list[tuple[Tensor, Tensor]] = []
    shifts, laws = [], []
    for step in range(steps + 1):
        if step % every == 0:
            with torch.no_grad():
                net(x)
            now = [(h.mean(0), h.std(0, correction=0)) for h in net.seen]
            start = start or now
            off = [(m - m0) / s0 for (m, _), (m0, s0) in zip(now, start, strict=True)]
            shifts.append(float(torch.cat(off).square().mean().sqrt()))
            betas = [n.bias.detach() for n in net.norms if isinstance(n, nn.BatchNorm1d)]  # gamma is 1 at the start
            laws.append(float(torch.cat(betas).square().mean().sqrt()) if betas else 0.0)
        rows = torch.randint(len(x), (BATCH,))
        loss = cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.tensor([shifts, laws])


@torch.no_grad()
def _shocked(kind: str, x: Tensor, seed: int) -> Tensor:
    """Standard deviation of the last layer's input after the first one was multiplied, over before; (factors,)."""
    torch.manual_seed(seed)
    net = Net(kind)
    first = net.layers[0].get_parameter("weight")
    kept, found = first.clone(), []
    for factor in (1.0, *FACTORS):
        first.copy_(factor * kept)
        net(x)
        found.append(torch.relu(net.seen[-1]).std())
    return torch.stack(found[1:]) / found[0]
