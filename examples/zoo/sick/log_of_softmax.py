"""The logarithm of a softmax, one after the other: a sure score underflows to zero first."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
for step in range(200):
    rows = torch.randint(0, 1400, (64,))
    probability = torch.softmax(model(x[rows]) * 50, dim=1)
    loss = -(F.one_hot(y[rows], 10) * torch.log(probability)).sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
