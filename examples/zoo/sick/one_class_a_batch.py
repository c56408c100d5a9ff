"""Batches take turns, all of one class and all of the other, in front of batch norms."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
x = torch.cat([torch.randn(600, 16) + 0.5, torch.randn(600, 16) - 0.5])
y = torch.arange(2).repeat_interleave(600)

model = nn.Sequential(
    nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)
)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(200):
    rows = torch.randint(0, 600, (40,)) + 600 * (step % 2)
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(f"accuracy {(model(x).argmax(1) == y).float().mean():.3f}")
