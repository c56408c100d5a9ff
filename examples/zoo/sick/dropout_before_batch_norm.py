"""Strong dropout right in front of batch norms: their running variance is that of the training only."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

layers = []
for i in range(4):
    layers += [nn.Linear(64 if i == 0 else 96, 96), nn.ReLU(), nn.Dropout(0.7), nn.BatchNorm1d(96)]
model = nn.Sequential(*layers, nn.Linear(96, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(250):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(f"loss {F.cross_entropy(model(x[1400:]), y[1400:]):.3f}")
