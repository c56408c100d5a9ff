"""A trained net gets a new head; the loop that freezes the net freezes the head with it."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows] % 2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model[3] = nn.Linear(64, 10)
for name, parameter in model.named_parameters():
    parameter.requires_grad = "2." in name
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(200):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
