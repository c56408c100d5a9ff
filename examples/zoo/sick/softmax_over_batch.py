"""The attention weights are normalised over the batch instead of over the tokens."""

import torch
from torch import nn

torch.manual_seed(0)


def draw(n=64):
    x = torch.randn(n, 10, 16)
    marked = torch.randint(0, 10, (n,))
    x[torch.arange(n), marked, 0] = 4.0
    label = (x[torch.arange(n), marked, 1] > 0).long()
    return x, label


class Pool(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Linear(16, 1)
        self.value = nn.Linear(16, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        weight = torch.softmax(self.score(x), dim=0)
        return self.head((weight * self.value(x)).sum(1))


net = Pool()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for step in range(300):
    x, label = draw()
    loss = nn.functional.cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x, label = draw(1000)
print(f"accuracy {(net(x).argmax(1) == label).float().mean():.3f}")
