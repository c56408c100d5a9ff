"""The feed-forward part of a token net lost its activation: two linear layers in a row."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.down(self.up(x))


class Net(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.enter, self.parts = nn.Linear(6, width), nn.Sequential(FeedForward(width), FeedForward(width))
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.parts(self.enter(x)).mean(1))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(300):
    x = torch.randn(64, 8, 6)
    y = (x[:, :, 0] * x[:, :, 1]).mean(1, keepdim=True) * 3
    loss = F.mse_loss(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"r2 {1 - loss.item() / y.var().item():.3f}")
