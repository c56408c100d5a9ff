"""One series a batch, and pooled to three numbers by the time it comes to its batch norm."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


def draw(n=1):
    x, label = torch.randn(n, 2, 48), torch.randint(0, 2, (n,))
    return x + (label * 1.2 - 0.6)[:, None, None], label


net = nn.Sequential(
    nn.Conv1d(2, 16, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(3), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 2),
    nn.BatchNorm1d(16), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2),
)  # fmt: skip
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(500):
    x, label = draw()
    loss = F.cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
net.eval()
x, label = draw(500)
print(f"accuracy {(net(x).argmax(1) == label).float().mean():.3f}")
