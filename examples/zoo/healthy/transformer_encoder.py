"""Two encoder layers of torch, norm first."""

import torch
from torch import nn

torch.manual_seed(0)


def draw(n=64):
    x = torch.randn(n, 16, 4)
    return x, (x[:, :, 0].sum(1) > 0).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(120):
    x, label = draw()
    loss = nn.functional.cross_entropy(net(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x, label = draw(500)
print(f"accuracy {(net(x).argmax(1) == label).float().mean():.3f}")
