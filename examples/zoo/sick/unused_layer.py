"""Two inputs, an encoder for each; the second encoder was built and never called."""

import torch
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode_text = nn.Sequential(nn.Linear(12, 32), nn.ReLU())
        self.encode_table = nn.Sequential(nn.Linear(12, 32), nn.ReLU())
        self.head = nn.Linear(64, 2)

    def forward(self, text, table):
        left, right = self.encode_text(text), self.encode_text(text)
        return self.head(torch.cat([left, right], 1))


def draw(n=64):
    text, table = torch.randn(n, 12), torch.randn(n, 12)
    return text, table, (text[:, 0] + 2 * table[:, 0] > 0).long()


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(250):
    text, table, label = draw()
    loss = nn.functional.cross_entropy(net(text, table), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
text, table, label = draw(1000)
print(f"accuracy {(net(text, table).argmax(1) == label).float().mean():.3f}")
