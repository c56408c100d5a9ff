"""A physics-informed net: the heat equation u_t = u_xx / 10 on a rod, its solution known in closed form.

    python examples/heat_equation.py

The net is trained on the equation alone: the residual inside the rod, the temperature at the start, the ends at zero.
Its inputs are standardised inside the model (derivatives pass through), its weights solved for. The training objective
is a module of its own, so that instruments see the loss with its derivatives of derivatives, not the net alone.
"""

import math

import torch
from torch import nn

import tightrope as tr

CONDUCTIVITY = 0.1
STEPS, POINTS = 800, 192


def exact(x, t):
    """Two modes that fade, the second nine times as fast."""
    return sum(
        weight * torch.sin(k * math.pi * x) * torch.exp(-CONDUCTIVITY * (k * math.pi) ** 2 * t)
        for k, weight in ((1, 1.0), (3, 0.5))
    )


def inside(count):
    """Points of the rod, 0 < x < 1, over the time 0 < t < 2."""
    return torch.rand(count, 2) * torch.tensor([1.0, 2.0])


def edges(count):
    """Points where the solution is given, and what it is there."""
    x, t = torch.rand(count, 1), 2 * torch.rand(count, 1)
    start, ends = torch.cat([x, torch.zeros_like(x)], 1), torch.cat([(x > 0.5).float(), t], 1)
    points = torch.cat([start, ends])
    return points, exact(points[:, :1], points[:, 1:])


class Heat(nn.Module):
    """The objective: mean squares of the equation's residual and of the distance from what is given."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, points, given_at, given):
        points = points.detach().requires_grad_()
        u = self.net(points)
        (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        (bend,) = torch.autograd.grad(slope[:, 0].sum(), points, create_graph=True)
        residual = slope[:, 1:] - CONDUCTIVITY * bend[:, :1]
        return residual.square().mean() + 20 * (self.net(given_at) - given).square().mean()


def batch():
    return inside(POINTS), *edges(POINTS // 4)


def build():
    torch.manual_seed(0)
    body = [nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1)]
    net = nn.Sequential(tr.nn.Standardize(2).fit(inside(4096)), *body)
    tr.initialize(net, inside(256))
    return Heat(net)


@torch.no_grad()
def error(net):
    """Distance from the closed form over its own size, on a grid."""
    x, t = torch.meshgrid(torch.linspace(0, 1, 41), torch.linspace(0, 2, 41), indexing="ij")
    points = torch.stack([x.reshape(-1), t.reshape(-1)], 1)
    truth = exact(points[:, :1], points[:, 1:])
    return float((net(points) - truth).norm() / truth.norm())


def train(heat, steps=STEPS):
    """The relative error of the solution, after training on the equation."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(heat.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = heat(*batch())
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step:4d}  loss {loss.item():.2e}  error of the solution {error(heat.net):.1%}", flush=True)
    return error(heat.net)


def main():
    heat = build()
    before = tr.curvature(heat, batch(), top=1, products=40)
    train(heat)
    after = tr.curvature(heat, batch(), top=1, products=40)
    print(f"sharpest curvature of the objective {before.lambda_max:.3g}, after training {after.lambda_max:.3g}:")
    print(f"gradient descent could take steps of {after.steps['gradient descent']:.2g}")


if __name__ == "__main__":
    main()
