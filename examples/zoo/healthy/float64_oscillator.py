"""Double precision, one sample a step, a network of eight units: small, slow and right."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
net = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 2))
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
for step in range(600):
    state = torch.randn(1, 2)
    change = torch.stack([state[:, 1], -state[:, 0] - 0.2 * state[:, 1]], 1)
    loss = F.mse_loss(net(state), change)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
state = torch.randn(500, 2)
error = F.mse_loss(net(state), torch.stack([state[:, 1], -state[:, 0] - 0.2 * state[:, 1]], 1))
print(f"loss {error.item():.4f}")
