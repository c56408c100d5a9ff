"""Sequences are packed into batches by length: the batches differ, and that saves padding."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


def draw(n, length):
    ids = torch.randint(1, 20, (n, length))
    return ids, (ids.float().mean(1) > 10).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(20, 16), nn.GRU(16, 32, batch_first=True), nn.Linear(32, 2)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0].mean(1))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
batches = [draw(48, length) for length in range(4, 28) for _ in range(5)]
for epoch in range(2):
    for i in torch.randperm(len(batches)).tolist():
        ids, label = batches[i]
        loss = F.cross_entropy(net(ids), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
ids, label = draw(500, 15)
print(f"accuracy {(net(ids).argmax(1) == label).float().mean():.3f}")
