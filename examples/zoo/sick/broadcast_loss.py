"""Outputs of shape (n, 1) against targets of shape (n,): the loss compares all with all."""

import warnings

import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler
from torch import nn

warnings.filterwarnings("ignore")
torch.manual_seed(0)
data = load_diabetes()
x = torch.tensor(StandardScaler().fit_transform(data.data), dtype=torch.float32)
y = torch.tensor((data.target - data.target.mean()) / data.target.std(), dtype=torch.float32)

model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(30):
    for rows in torch.randperm(360).split(36):
        loss = ((model(x[rows]) - y[rows]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
error = ((model(x[360:]).squeeze(1) - y[360:]) ** 2).mean()
print(f"r2 {1 - error / y[360:].var():.3f}")
