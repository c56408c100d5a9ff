"""BatchNorm1d takes dimension 1 for channels; here it holds the time steps."""

import torch
from torch import nn

torch.manual_seed(0)
scale, offset = torch.linspace(0.02, 2, 8), torch.linspace(3, -3, 8)


def draw(n=64):
    x = torch.randn(n, 20, 8) + 0.5 * torch.randn(n, 1, 8)
    label = (x[:, :, 0].mean(1) * x[:, :, 1].mean(1) > 0).long()
    return offset + scale * x, label


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(20)
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x):
        x = self.norm(x)
        return self.head(self.body(x).mean(1))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(250):
    x, label = draw()
    loss = nn.functional.cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
net.eval()
x, label = draw(1000)
print(f"accuracy {(net(x).argmax(1) == label).float().mean():.3f}")
