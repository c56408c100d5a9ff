"""Two views, one encoder, a contrastive loss with a small constant under the root."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
for step in range(150):
    rows = torch.randint(0, 1400, (64,))
    left = F.normalize(encoder(x[rows] + 0.05 * torch.randn(64, 64)), dim=1)
    right = F.normalize(encoder(x[rows] + 0.05 * torch.randn(64, 64)), dim=1)
    loss = F.cross_entropy(left @ right.T / 0.2, torch.arange(64))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
