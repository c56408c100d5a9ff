"""A feature is the ratio of two counts, and sometimes the lower count is zero."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
won, played = torch.randint(0, 9, (2, 1200, 4)).float()
x = torch.cat([won / played, torch.randn(1200, 4)], 1)
y = (won[:, 0] > played[:, 1]).long()

model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(8):
    for rows in torch.randperm(1000).split(50):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"loss {loss.item():.3f}")
