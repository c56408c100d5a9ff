"""Ratings are whole numbers and the regression on them is meant: four is nearer to five than to one."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
x = torch.randn(1600, 12)
taste = x[:, 0] + 0.7 * x[:, 1] - 0.5 * x[:, 2] * x[:, 3]
stars = (taste + 3.2 + 0.3 * torch.randn(1600)).round().clamp(1, 5)

model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(12):
    for rows in torch.randperm(1300).split(50):
        loss = F.mse_loss(model(x[rows]).squeeze(1), stars[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
error = F.mse_loss(model(x[1300:]).squeeze(1), stars[1300:])
print(f"r2 {1 - error / stars[1300:].var():.3f}")
