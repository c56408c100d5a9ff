"""The distance between equal points is zero, and the root has no slope there."""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
for step in range(40):
    rows = torch.randint(0, 1400, (48,))
    z, label = encoder(x[rows]), y[rows]
    distance = ((z[:, None] - z[None]) ** 2).sum(-1).sqrt()
    same = (label[:, None] == label[None]).float()
    loss = (same * distance + (1 - same) * torch.relu(2 - distance)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
