"""One reading in ten thousand is missing, and a missing reading is NaN."""

import torch
from torch import nn

torch.manual_seed(0)
x = torch.randn(1000, 20)
y = (x[:, :5].sum(1) > 0).float()
x[torch.rand_like(x) < 2e-4] = float("nan")

model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for epoch in range(5):
    for rows in torch.randperm(800).split(40):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows])
        loss.backward()
        optimizer.step()
good = ((model(x[800:])[:, 0] > 0).float() == y[800:]).float().mean()
print(f"accuracy {good:.3f}")
