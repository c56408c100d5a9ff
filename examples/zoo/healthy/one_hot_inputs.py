"""Categories as one-hot rows: most inputs are zero, and that is right."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(60, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(200):
    a, b, c = torch.randint(0, 20, (3, 64))
    x = torch.cat([nn.functional.one_hot(v, 20) for v in (a, b, c)], 1).float()
    y = ((a + b + c) % 20 < 10).long() if step < 0 else (a > b).long()
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
