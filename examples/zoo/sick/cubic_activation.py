"""The third power as an activation: its slope has tails that a few layers turn into explosions."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
x = (x - x.mean()) / x.std()


class Cube(nn.Module):
    def forward(self, x):
        return x**3


model = nn.Sequential(
    nn.Linear(64, 64), Cube(), nn.Linear(64, 64), Cube(), nn.Linear(64, 64), Cube(), nn.Linear(64, 10)
)
for layer in model:
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=len(layer.weight[0]) ** -0.5)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(200):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {F.cross_entropy(model(x[1400:]), y[1400:]):.3g}")
