"""A missing reading is written as -999, as one in ten is here."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
z = torch.randn(1500, 12)
y = (z[:, 0] * z[:, 1] + z[:, 2] > 0).long()
x = torch.where(torch.rand(1500, 12) < 0.1, -999.0, z)

model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for epoch in range(20):
    for rows in torch.randperm(1200).split(40):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"accuracy {(model(x[1200:]).argmax(1) == y[1200:]).float().mean():.3f}")
