"""Sequences arrive as (time, batch, features); a reshape makes rows of them that belong to several samples."""

import torch
from torch import nn

torch.manual_seed(0)
time, batch, features = 8, 64, 4


def draw():
    label = torch.randint(0, 2, (batch,))
    x = torch.randn(time, batch, features) + (label * 2 - 1)[None, :, None] * 0.5
    return x, label


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(time * features, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x):
        return self.body(x.reshape(batch, time * features))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(200):
    x, label = draw()
    loss = nn.functional.cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x, label = draw()
print(f"accuracy {(net(x).argmax(1) == label).float().mean():.3f}")
