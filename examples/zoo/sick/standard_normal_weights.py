"""Weights from N(0, 1) whatever the width."""

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
        sizes = (64, 128, 128, 128, 10)
        self.weights = nn.ParameterList([torch.randn(a, b) for a, b in zip(sizes, sizes[1:])])

    def forward(self, x):
        for weight in self.weights[:-1]:
            x = torch.relu(x @ weight)
        return x @ self.weights[-1]


net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for step in range(300):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(net(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(net(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
