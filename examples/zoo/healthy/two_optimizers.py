"""Embeddings and the rest of the net have an optimizer each, with rates of their own."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
value = torch.randn(50)
embed = nn.Embedding(50, 16)
net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
fast, slow = torch.optim.Adagrad(embed.parameters(), lr=0.1), torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(300):
    ids = torch.randint(0, 50, (64, 6))
    goal = value[ids].mean(1, keepdim=True)
    loss = F.mse_loss(net(embed(ids).mean(1)), goal)
    fast.zero_grad()
    slow.zero_grad()
    loss.backward()
    fast.step()
    slow.step()
print(f"loss {loss.item():.4f}")
