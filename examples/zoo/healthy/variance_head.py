"""The net predicts a mean and the logarithm of a variance: noise differs from place to place."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
x = torch.rand(2000, 1) * 4 - 2
y = torch.sin(2 * x) + (0.05 + 0.3 * (x > 0)) * torch.randn(2000, 1)
net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for epoch in range(12):
    for rows in torch.randperm(1600).split(50):
        mean, log_variance = net(x[rows]).chunk(2, 1)
        loss = F.gaussian_nll_loss(mean, y[rows], log_variance.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
mean, log_variance = net(x[1600:]).chunk(2, 1)
print(f"loss {F.gaussian_nll_loss(mean, y[1600:], log_variance.exp()):.3f}")
