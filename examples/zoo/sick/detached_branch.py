"""Two branches meet; one was detached while somebody was debugging."""

import torch
from torch import nn

torch.manual_seed(0)


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16))
        self.right = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(32, 1)

    def forward(self, a, b):
        return self.head(torch.cat([self.left(a), self.right(b).detach()], 1))


net = TwoBranches()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(400):
    a, b = torch.randn(64, 6), torch.randn(64, 6)
    y = (a[:, 0] - a[:, 1]).abs() + (b[:, 2] * b[:, 3])
    loss = nn.functional.mse_loss(net(a, b).squeeze(1), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
