"""An LSTM as torch initialises it, read at its last step."""

import torch
from torch import nn

torch.manual_seed(0)


def draw(n=64):
    x = torch.randn(n, 16, 4)
    return x, (x[:, :, 0].sum(1) > 0).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 32, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.head(out[:, -1])


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for step in range(120):
    x, label = draw()
    loss = nn.functional.cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x, label = draw(500)
print(f"accuracy {(net(x).argmax(1) == label).float().mean():.3f}")
