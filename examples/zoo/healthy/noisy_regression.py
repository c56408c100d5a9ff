"""Most of the target is noise: a high loss is all there is to reach."""

import torch
from torch import nn

torch.manual_seed(0)
x = torch.randn(2000, 10)
y = x[:, :1] * 0.5 + torch.randn(2000, 1)
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(6):
    for rows in torch.randperm(1800).split(60):
        loss = nn.functional.mse_loss(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"loss {nn.functional.mse_loss(model(x[1800:]), y[1800:]):.3f}")
