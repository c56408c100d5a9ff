"""A net that solves u'' = -u by its own derivatives."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(300):
    t = (torch.rand(64, 1) * 3).requires_grad_()
    u = net(t)
    (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    (ddu,) = torch.autograd.grad(du.sum(), t, create_graph=True)
    start = torch.zeros(1, 1, requires_grad=True)
    u0 = net(start)
    (du0,) = torch.autograd.grad(u0.sum(), start, create_graph=True)
    loss = ((ddu + u) ** 2).mean() + (u0 - 0).pow(2).mean() + (du0 - 1).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.4f}")
