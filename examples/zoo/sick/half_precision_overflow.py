"""Scores of long vectors in half precision: what is larger than 65504 is infinite."""

import torch
from torch import nn

torch.manual_seed(0)


class Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(32, 256), nn.Linear(32, 256)

    def forward(self, a, b):
        q, k = (60 * self.query(a)).half(), (60 * self.key(b)).half()
        return (q @ k.T).float()


net = Scorer()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(60):
    a = torch.randn(48, 32)
    b = a + 0.1 * torch.randn(48, 32)
    loss = nn.functional.cross_entropy(net(a, b) / 256, torch.arange(48))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
