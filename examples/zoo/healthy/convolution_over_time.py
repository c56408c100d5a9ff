"""Dilated convolutions along time."""

import torch
from torch import nn

torch.manual_seed(0)


def draw(n=64):
    x = torch.randn(n, 16, 4)
    return x, (x[:, :, 0].sum(1) > 0).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv1d(4, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(32, 32, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(32, 2),
        )

    def forward(self, x):
        return self.convs(x.transpose(1, 2))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(120):
    x, label = draw()
    loss = nn.functional.cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x, label = draw(500)
print(f"accuracy {(net(x).argmax(1) == label).float().mean():.3f}")
