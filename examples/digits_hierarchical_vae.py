"""A hierarchical variational autoencoder of digits beside a flat one: two stacked stochastic layers, z2 above z1.

tightrope run examples/digits_hierarchical_vae.py

Both bounds on held-out digits are printed in nats: the evidence bound (one draw) and the tighter importance-weighted
one (64 draws, Burda et al. 2016). What a level carries is its divergence from its prior; a level at 0 would be unused.
"""

import itertools
import math
import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Normal, kl_divergence


def net(inputs, outputs, width=128):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


class Gaussian(nn.Module):
    """A normal variable whose mean and deviation are computed from what is above or below it."""

    def __init__(self, inputs, size):
        super().__init__()
        self.net = net(inputs, 2 * size)

    def forward(self, x):
        mean, raw = self.net(x).chunk(2, -1)
        return Normal(mean, F.softplus(raw) + 1e-3)


class VAE(nn.Module):
    """p(x | z1) p(z1 | z2) ... p(zL), inferred from the bottom up: q(z1 | x) q(z2 | z1) ..."""

    def __init__(self, sizes):
        super().__init__()
        self.up = nn.ModuleList(Gaussian(a, b) for a, b in zip([64, *sizes], sizes))
        self.down = nn.ModuleList(Gaussian(b, a) for a, b in itertools.pairwise(sizes))
        self.decode = net(sizes[0], 64)
        self.log_noise = nn.Parameter(torch.tensor(-1.5))  # of a pixel given z1

    def draw(self, x):
        """Posteriors, their draws, and the prior of each level."""
        posteriors, draws = [], [x]
        for infer in self.up:
            posteriors.append(infer(draws[-1]))
            draws.append(posteriors[-1].rsample())
        top = Normal(torch.zeros_like(draws[-1]), torch.ones_like(draws[-1]))
        priors = [down(z) for down, z in zip(self.down, draws[2:])] + [top]
        return posteriors, draws[1:], priors

    def forward(self, x):
        """Reconstruction error of each sample, and divergence of each level from its prior, in nats."""
        posteriors, draws, priors = self.draw(x)
        return self.error(draws[0], x), [kl_divergence(q, p).sum(-1) for q, p in zip(posteriors, priors)]

    def error(self, z, x):
        return -Normal(self.decode(z), self.log_noise.exp()).log_prob(x).sum(-1)

    @torch.no_grad()
    def importance_bound(self, x, draws=64):
        """log of the mean over draws of p(x, z) / q(z | x)."""
        posteriors, z, priors = self.draw(x.expand(draws, *x.shape))
        log = -self.error(z[0], x) + sum(
            (p.log_prob(v) - q.log_prob(v)).sum(-1) for q, p, v in zip(posteriors, priors, z)
        )
        return (log.logsumexp(0) - math.log(draws)).mean()


def train(sizes, epochs):
    torch.manual_seed(0)
    pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    pixels = pixels[torch.randperm(len(pixels))]
    kept, held = pixels[:-300], pixels[-300:]
    loader = torch.utils.data.DataLoader(kept, 64, shuffle=True)
    model = VAE(sizes)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for epoch in range(epochs):
        share = min(1.0, (epoch + 1) / (0.25 * epochs))  # of the divergence: without a warm-up upper levels stay unused
        for x in loader:
            error, divergences = model(x)
            loss = (error + share * sum(divergences)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        error, divergences = model(held)
    used = [float(d.mean()) for d in divergences]
    print(
        f"stochastic layers {sizes}: evidence bound {-float(error.mean()) - sum(used):.2f}, importance-weighted "
        f"{float(model.importance_bound(held)):.2f}; the levels carry {', '.join(f'{u:.2f}' for u in used)} nats"
    )


if __name__ == "__main__":
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    train([8], epochs)
    train([8, 4], epochs)
