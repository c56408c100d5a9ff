"""Dropout by hand, without dividing by what is kept: at test time every layer gets three times its usual input."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)


class Drop(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        return x * (torch.rand_like(x) > self.rate) if self.training else x


model = nn.Sequential(
    nn.Linear(64, 128), nn.ReLU(), Drop(0.7), nn.Linear(128, 128), nn.ReLU(), Drop(0.7), nn.Linear(128, 128), nn.ReLU(),
    Drop(0.7), nn.Linear(128, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(250):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(f"loss {F.cross_entropy(model(x[1400:]), y[1400:]):.3f}")
