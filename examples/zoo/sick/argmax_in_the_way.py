"""The second net reads the first one's decision, and a decision has no slope."""

import torch
from torch import nn

torch.manual_seed(0)


class Pipeline(nn.Module):
    def __init__(self):
        super().__init__()
        self.choose = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 12))
        self.table = nn.Embedding(12, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        choice = self.choose(x).argmax(1)
        return self.head(self.table(choice))


net = Pipeline()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(300):
    x = torch.randn(64, 8)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    loss = nn.functional.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
