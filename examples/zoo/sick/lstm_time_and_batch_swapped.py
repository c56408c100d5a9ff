"""The data is (batch, time, features), the LSTM was not told: it reads along the batch."""

import torch
from torch import nn

torch.manual_seed(0)


def draw(n=64):
    x = torch.randn(n, 12, 3)
    return x, (x[:, :, 0].sum(1) > 0).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.head(out[:, -1])


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for step in range(150):
    x, label = draw()
    loss = nn.functional.cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x, label = draw(500)
print(f"accuracy {(net(x).argmax(1) == label).float().mean():.3f}")
