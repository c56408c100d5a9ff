"""A trained net stays frozen; each layer gets an adapter of rank four whose second half starts at zero."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)


class Adapted(nn.Module):
    def __init__(self, linear, rank=4):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up)


def train(optimizer, labels, steps):
    for step in range(steps):
        rows = torch.randint(0, 1400, (64,))
        loss = F.cross_entropy(model(x[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
train(torch.optim.Adam(model.parameters(), lr=2e-3), (y + 3) % 10, 150)
for i in (0, 2, 4):
    model[i] = Adapted(model[i])
trained = [p for p in model.parameters() if p.requires_grad]
train(torch.optim.AdamW(trained, lr=5e-3), y, 150)
print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
