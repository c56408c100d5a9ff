"""Coupling layers between a point and its density; the last layer of each starts at zero."""

import torch
from torch import nn

torch.manual_seed(0)


class Coupling(nn.Module):
    def __init__(self, swap):
        super().__init__()
        self.net, self.swap = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 2)), swap
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def forward(self, x):
        kept, moved = x.chunk(2, 1)[:: -1 if self.swap else 1]
        scale, shift = self.net(kept).chunk(2, 1)
        moved = moved * torch.exp(torch.tanh(scale)) + shift
        return torch.cat([moved, kept] if self.swap else [kept, moved], 1), torch.tanh(scale).squeeze(1)


layers = nn.ModuleList(Coupling(i % 2 == 0) for i in range(4))
optimizer = torch.optim.Adam(layers.parameters(), lr=3e-3)
for step in range(300):
    a = torch.randn(128)
    z, volume = torch.stack([a, 0.5 * a**2 + 0.3 * torch.randn(128)], 1), 0.0
    for layer in layers:
        z, log_scale = layer(z)
        volume = volume + log_scale
    loss = (0.5 * z.square().sum(1) - volume).mean() + 1.838
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
