"""The net reads a noised point and a time, and predicts the noise."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
levels = torch.cumprod(1 - torch.linspace(1e-3, 0.1, 50), 0)
net = nn.Sequential(nn.Linear(2 + 16, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))
frequency = torch.exp(torch.linspace(0, 4, 8))
optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
for step in range(400):
    angle = torch.rand(128, 1) * 6.283
    clean = torch.cat([angle.cos(), angle.sin()], 1)
    t, noise = torch.randint(0, 50, (128,)), torch.randn(128, 2)
    level = levels[t][:, None]
    noised = level.sqrt() * clean + (1 - level).sqrt() * noise
    phase = t[:, None] / 50 * frequency
    guess = net(torch.cat([noised, phase.sin(), phase.cos()], 1))
    loss = F.mse_loss(guess, noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
