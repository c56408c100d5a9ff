"""The energy of a long signal, added up in half precision: beyond 65504 it is infinite."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.filters, self.head = nn.Linear(64, 512), nn.Linear(512, 1)
        nn.init.normal_(self.filters.weight, std=2.0)

    def forward(self, x):
        signal = torch.relu(self.filters(x)).half()
        energy = (signal * signal).sum(1, keepdim=True, dtype=torch.float16)
        return self.head((signal / energy.sqrt()).float())


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for step in range(60):
    x = torch.randn(48, 64)
    y = (x[:, :1] > 0).float()
    loss = F.binary_cross_entropy_with_logits(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
