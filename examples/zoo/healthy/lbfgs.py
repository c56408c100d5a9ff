"""A full batch and a quasi-Newton method."""

import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler
from torch import nn

torch.manual_seed(0)
data = load_diabetes()
x = torch.tensor(StandardScaler().fit_transform(data.data), dtype=torch.float32)
y = torch.tensor(StandardScaler().fit_transform(data.target[:, None]), dtype=torch.float32)
model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=10)


def closure():
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x[:360]), y[:360])
    loss.backward()
    return loss


for step in range(5):
    optimizer.step(closure)
print(f"loss {nn.functional.mse_loss(model(x[:360]), y[:360]):.3f}")
