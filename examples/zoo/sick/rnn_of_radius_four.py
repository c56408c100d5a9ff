"""A tanh recurrence whose weights have a spectral radius of four: a chaos that no gradient can follow."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.recur, self.out = nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 2)
        nn.init.normal_(self.recur.weight, std=4.0 / 8)

    def forward(self, x):
        state = x.new_zeros(len(x), 64)
        for t in range(x.shape[1]):
            state = torch.tanh(self.enter(x[:, t]) + self.recur(state))
        return self.out(state)


def draw(n=64):
    x = torch.randn(n, 30, 2)
    return x, (x[:, :, 0].sum(1) > 0).long()


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(120):
    x, label = draw()
    loss = F.cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x, label = draw(500)
print(f"accuracy {(net(x).argmax(1) == label).float().mean():.3f}")
