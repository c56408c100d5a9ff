"""Some sequences are nothing but padding, and then a row of scores is all minus infinity."""

import torch
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        self.qkv = nn.Linear(32, 96)
        self.head = nn.Linear(32, 2)

    def forward(self, ids):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 32**0.5
        scores = scores.masked_fill((ids == 0)[:, None], float("-inf"))
        return self.head((torch.softmax(scores, -1) @ v).mean(1))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(40):
    ids = torch.randint(1, 30, (32, 12))
    lengths = torch.randint(0, 12, (32,))
    lengths[0] = 0
    ids[torch.arange(12)[None] >= lengths[:, None]] = 0
    label = (ids.float().mean(1) > 6).long()
    loss = nn.functional.cross_entropy(net(ids), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
