"""Weights from N(0, 0.05^2) in layers of twenty units: each keeps a fortieth of the variance."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
truth = nn.Sequential(nn.Linear(28, 20), nn.Tanh(), nn.Linear(20, 6))
nn.init.normal_(truth[2].weight, std=1.5)
x = torch.randn(1500, 28)
with torch.no_grad():
    y = truth(3 * x).argmax(1)

model = nn.Sequential(
    nn.Linear(28, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 15),
    nn.ReLU(), nn.Linear(15, 6),
)  # fmt: skip
for layer in model:
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.05)
        nn.init.zeros_(layer.bias)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(12):
    for rows in torch.randperm(1200).split(40):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"accuracy {(model(x[1200:]).argmax(1) == y[1200:]).float().mean():.3f}")
