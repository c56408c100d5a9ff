"""Prices in dollars: a hundred thousand times what an output starts at."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
rooms, age, distance = torch.randn(3, 1200, 1)
x = torch.cat([rooms, age, distance], 1)
price = 300_000 + 80_000 * rooms - 30_000 * age + 40_000 * torch.sin(2 * distance)

model = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(30):
    for rows in torch.randperm(1000).split(25):
        loss = F.l1_loss(model(x[rows]), price[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
error = F.mse_loss(model(x[1000:]), price[1000:])
print(f"r2 {1 - error / price[1000:].var():.3f}")
