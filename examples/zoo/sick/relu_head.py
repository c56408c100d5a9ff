"""A ReLU behind the last layer of a regression whose targets are negative half of the time."""

import torch
from torch import nn

torch.manual_seed(0)
x = torch.rand(600, 3) * 2 - 1
y = (torch.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2]).unsqueeze(1)

model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.ReLU())
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(60):
    for rows in torch.randperm(500).split(50):
        loss = nn.functional.mse_loss(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"r2 {1 - nn.functional.mse_loss(model(x[500:]), y[500:]) / y[500:].var():.3f}")
