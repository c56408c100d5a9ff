"""Tanh units driven far into their flat ends by weights ten times too large."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 8 - 1, dtype=torch.float32)
y = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10)
)
with torch.no_grad():
    for layer in model:
        if isinstance(layer, nn.Linear) and layer.out_features > 10:
            layer.weight.mul_(20)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(300):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
