"""A no_grad left over from a test surrounds the encoder, whose weights the optimizer is meant to move."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 6), nn.Tanh())
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        with torch.no_grad():
            code = self.encoder(x)
        return self.head(code)


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(300):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
