"""Convolution upon convolution and no activation between them."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


def draw(n=64):
    centre, big = torch.randint(3, 9, (n, 2, 1, 1)), torch.randint(0, 2, (n,))
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    far = (rows - centre[:, 0]).abs() + (columns - centre[:, 1]).abs()
    sign = torch.randint(0, 2, (n, 1, 1)) * 2 - 1
    image = sign * ((far == 1 + big[:, None, None]) * 2.0 / (1 + big[:, None, None]))
    return image[:, None] + 0.2 * torch.randn(n, 1, 12, 12), big


net = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten(),
    nn.Linear(32 * 144, 2),
)  # fmt: skip
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(120):
    image, label = draw()
    loss = F.cross_entropy(net(image), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
image, label = draw(500)
print(f"accuracy {(net(image).argmax(1) == label).float().mean():.3f}")
