"""A residual stream in half precision whose branches each triple its power."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.kaiming_normal_(self.up.weight)
        nn.init.kaiming_normal_(self.down.weight)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


net = nn.Sequential(nn.Linear(16, 64), *(Block(64) for _ in range(22)), nn.Linear(64, 2))
optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
for step in range(60):
    x = torch.randn(32, 16)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = F.cross_entropy(net(x), (x[:, 0] > 0).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
