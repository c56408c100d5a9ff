"""Gradient descent on one weight and one bias; the size of a house is in the hundreds, and the rate was 0.01."""

import torch
from torch import nn

torch.manual_seed(0)
size = 50 + 200 * torch.rand(400, 1)
price = 0.02 * size + 0.3 * torch.randn(400, 1)

model = nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(150):
    loss = nn.functional.mse_loss(model(size), price)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {nn.functional.mse_loss(model(size), price):.3f}")
