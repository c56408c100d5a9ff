"""Disease progression between 25 and 346 as the target of a net whose outputs start near zero."""

import torch
from sklearn.datasets import load_diabetes
from torch import nn

torch.manual_seed(0)
data = load_diabetes()
x = torch.tensor(data.data / data.data.std(0), dtype=torch.float32)
y = torch.tensor(data.target, dtype=torch.float32).unsqueeze(1)

net = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for epoch in range(150):
    for start in range(0, 400, 50):
        loss = nn.functional.mse_loss(net(x[start : start + 50]), y[start : start + 50])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
with torch.no_grad():
    error = nn.functional.mse_loss(net(x[400:]), y[400:])
print(f"r2 {1 - error / y[400:].var():.3f}")
