"""An encoder and decoder with a skip, for each pixel's class."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


def draw(n=16):
    centre, radius = torch.rand(n, 2, 1, 1) * 16 + 8, torch.rand(n, 1, 1) * 4 + 3
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    mask = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < radius**2).long()
    return mask[:, None] + 0.5 * torch.randn(n, 1, 32, 32), mask


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(32, 2, 3, padding=1)

    def forward(self, x):
        fine = F.relu(self.down(x))
        coarse = F.relu(self.deep(F.max_pool2d(fine, 2)))
        return self.out(torch.cat([fine, F.relu(self.up(coarse))], 1))


net = UNet()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(60):
    image, mask = draw()
    loss = F.cross_entropy(net(image), mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
