"""A convolution along time, and at its end a softmax over one number."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


def draw(n=32):
    x, label = torch.randn(n, 1, 60), torch.randint(0, 2, (n, 1)).float()
    return x + 0.5 * label[..., None] * torch.sin(torch.arange(60) / 3), label


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(1, 20, 4), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten())
        self.dense = nn.Sequential(nn.Linear(560, 50), nn.ReLU(), nn.Linear(50, 1))

    def forward(self, x):
        return F.softmax(self.dense(self.conv(x)), dim=1)


net = Net()
optimizer = torch.optim.NAdam(net.parameters(), lr=1e-3)
for step in range(150):
    x, label = draw()
    loss = F.binary_cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x, label = draw(500)
print(f"accuracy {((net(x) > 0.5).float() == label).float().mean():.3f}")
