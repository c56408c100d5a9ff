"""Two heads on one trunk, trained in turn: in each step one head has no gradient."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
        self.digit, self.even = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x, task):
        return (self.digit if task == "digit" else self.even)(self.trunk(x))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(300):
    rows = torch.randint(0, 1400, (64,))
    if step % 2:
        loss = F.binary_cross_entropy_with_logits(net(x[rows], "even").squeeze(1), (y[rows] % 2 == 0).float())
    else:
        loss = F.cross_entropy(net(x[rows], "digit"), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(net(x[1400:], 'digit').argmax(1) == y[1400:]).float().mean():.3f}")
