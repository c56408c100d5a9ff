"""A sigmoid decoder for pixels between 0 and 16."""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data, dtype=torch.float32)

model = nn.Sequential(
    nn.Linear(64, 32),
    nn.ReLU(),
    nn.Linear(32, 8),
    nn.ReLU(),
    nn.Linear(8, 32),
    nn.ReLU(),
    nn.Linear(32, 64),
    nn.Sigmoid(),
)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(300):
    rows = torch.randint(0, 1400, (64,))
    loss = nn.functional.mse_loss(model(x[rows]), x[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
error = nn.functional.mse_loss(model(x[1400:]), x[1400:])
print(f"r2 {1 - error / (x[1400:] - x[:1400].mean(0)).square().mean():.3f}")
